"""Options of the student and of its training."""

from dataclasses import dataclass

from sentence_distill.data.errors import UserError

POOLINGS = ("mean", "max", "mean+max")
LOSSES = ("cosine", "mse", "both")
INITS = ("pca", "random")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student."""

    vocabulary: int
    """Number of token ids."""
    target_dims: tuple[int, ...]
    """Widths of the teacher's layers that are approximated; the last one is the student's public embedding."""
    normalize: bool
    """Whether the public embedding is L2-normalised."""
    embedding_dim: int = 300
    """Width of the word embeddings."""
    hidden: int = 300
    """Width of the LSTM's state in each direction."""
    layers: int = 1
    """LSTM layers."""
    pooling: str = "mean"
    """How the states of all tokens become one vector: "mean", "max", or both concatenated."""

    def __post_init__(self) -> None:
        _one_of("pooling", self.pooling, POOLINGS)
        if min(self.embedding_dim, self.hidden, self.layers) < 1:
            raise UserError("--embedding-dim, --hidden and --layers must be at least 1")

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled LSTM states."""
        return 2 * self.hidden * len(self.pooling.split("+"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a student is trained."""

    epochs: int = 3
    """Passes over the shards."""
    batch_size: int = 128
    """Sentences of a batch, all of one length."""
    learning_rate: float = 4e-3
    """Peak of the schedule."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises; then it falls to 0 along a half cosine."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    loss: str = "cosine"
    """"cosine", "mse" or "both"."""
    init: str = "pca"
    """Word embeddings: "pca" reduces the teacher's, "random" starts anew."""
    held_out: float = 0.01
    """Share of the rows, chosen by sentence id, that is never trained on."""
    seed: int = 0
    """Of the initial weights and of the order of batches."""

    def __post_init__(self) -> None:
        _one_of("loss", self.loss, LOSSES)
        _one_of("init", self.init, INITS)
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError("--epochs and --batch-size must be at least 1")
        if not 0 < self.held_out < 1:
            raise UserError(f"--held-out {self.held_out} must lie between 0 and 1, both excluded")


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value!r} is none of {', '.join(known)}")
