"""Options of the student and of its training."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sentence_distill.data.errors import UserError
from sentence_distill.data.options import SEED, check, option, parse_seconds

POOLINGS = ("mean", "max", "mean+max")
INITS = ("pca", "random")
DEFAULT_STUDENT = "distilled"

# Shapes that a name stands for; docs/training.md says what each costs and gives.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embedding_dim": 64, "hidden": 128, "layers": 1},
    # The widest that stays below 10 MB in float16, the tokenizer included.
    "small": {"embedding_dim": 112, "hidden": 256, "layers": 1},
    "base": {"embedding_dim": 300, "hidden": 300, "layers": 1},
    "large": {"embedding_dim": 384, "hidden": 512, "layers": 1},
}


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student."""

    vocabulary: int
    """Number of token ids."""
    target_dims: tuple[int, ...]
    """Widths of the teacher's layers that are approximated; the last one is the student's public embedding."""
    normalize: bool
    """Whether the public embedding is L2-normalized."""
    embedding_dim: int = 300
    """Width of the word embeddings."""
    hidden: int = 300
    """Width of the LSTM's state in each direction."""
    layers: int = 1
    """LSTM layers."""
    pooling: str = "mean"
    """How the states of all tokens become one vector: "mean", "max", or both concatenated."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling {self.pooling!r} is none of {', '.join(POOLINGS)}")
        if min(self.embedding_dim, self.hidden, self.layers) < 1:
            raise UserError("--embedding-dim, --hidden and --layers must be at least 1")

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled LSTM states."""
        return 2 * self.hidden * len(self.pooling.split("+"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of `sd train-student`."""

    shards: Path = option(Path("shards"), "Folder that sd embed made.")
    out: Path = option(Path(DEFAULT_STUDENT), "Folder of the student and its checkpoints.", flags=("--out", "-o"))
    size: Literal["tiny", "small", "base", "large"] | None = option(
        None,
        "Size of the student: 2, 4, 11 or 16 million parameters. The next three options change it.",
        shown="base, or that of --init",
    )
    embedding_dim: int | None = option(None, "Width of the word embeddings.", least=1)
    hidden: int | None = option(None, "LSTM units in each direction.", least=1)
    layers: int | None = option(None, "LSTM layers.", least=1)
    pooling: Literal["mean", "max", "mean+max"] | None = option(
        None, "How the states of all tokens become one vector.", shown="mean, or that of --init"
    )
    init: str = option(
        "pca",
        "Initial weights: the teacher's word embeddings reduced by PCA, or random ones; or a student to continue "
        "from: a folder, wiki-small, or owner/name on the hub.",
        metavar="pca|random|STUDENT",
    )
    target_layers: tuple[int, ...] | None = option(
        None,
        "Layers of the teacher to approximate, each with its own loss, out of those in the shards. The student "
        "encodes to the last one.",
        shown="all",
        metavar="N[,N…]",
    )
    cosine: float = option(1.0, "Loss weight of 1 - cosine between the student's and the teacher's vector.", least=0)
    mse: float = option(0.0, "Loss weight of the mean squared error.", least=0)
    relational: float = option(
        0.0, "Loss weight of the divergence between the similarities inside a batch, teacher to student.", least=0
    )
    temperature: float = option(0.05, "Softmax temperature of --relational.", above=0)
    epochs: int = option(3, "Stop after this many passes over the shards.", least=1)
    max_steps: int | None = option(None, "Stop after this many optimizer steps.", least=1)
    max_time: float | None = option(
        None,
        "Stop after this time of training, as in 90s, 30m or 2h, all resumed parts together. The learning rate "
        "reaches 0 by then.",
        metavar="TIME",
        parse=parse_seconds,
    )
    batch_size: int = option(128, "Sentences per batch, all of one length, over all processes together.", least=1)
    learning_rate: float = option(4e-3, "Peak learning rate, after warm-up.", above=0)
    # A row of word embeddings moves only in the batches that hold its word, by more the rarer that is.
    embedding_rate: float = option(
        2.0, "Learning rate of the word embeddings, as a multiple of --learning-rate.", above=0
    )
    warmup: float = option(0.05, "Share of the run over which the learning rate rises.", least=0, most=1)
    weight_decay: float = option(0.01, "Weight decay of AdamW, on all weights but the word embeddings.", least=0)
    clip: float = option(1.0, "Gradient clipping: maximum norm.", above=0)
    token_dropout: float = option(0.0, "Share of the tokens to mask.", least=0, below=1)
    embedding_dropout: float = option(
        0.0, "Share of a batch's words to mask wherever they occur; the others are scaled up.", least=0, below=1
    )
    held_out: float | None = option(
        None,
        "Share of the sentences, chosen by id, to validate on and never to train on.",
        shown="0.01, but at least 500 sentences, or a tenth of a small corpus",
        above=0,
        below=1,
    )
    train_fraction: float = option(
        1.0, "Share of the other sentences to train on; shows what a larger corpus would bring.", above=0, most=1
    )
    validate_every: int | None = option(
        None, "Validate after this many steps.", shown="each epoch", metavar="STEPS", least=1
    )
    patience: int | None = option(
        None, "Stop after this many validations without a better held-out cosine.", shown="never", least=1
    )
    seed: int = option(0, "Random seed.", **SEED)
    device: str = option("auto", "Device to train on: auto, cpu, cuda or cuda:N.")
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "Compute dtype of the LSTM. `auto` picks bf16 if the hardware supports it."
    )
    checkpoint_every: float = option(300.0, "Seconds between checkpoints.", metavar="SECONDS", above=0)
    keep_checkpoints: int = option(2, "Number of checkpoints to keep while it trains.", least=1)
    tensorboard: bool = option(False, "Write TensorBoard events as well.", flags=("--tensorboard/--no-tensorboard",))
    resume: bool = option(False, "Fail if --out holds no run to resume.", given=False)
    overwrite: bool = option(False, "Replace the run or the student in --out.", given=False)

    def __post_init__(self) -> None:
        check(self)
        if not any((self.cosine, self.mse, self.relational)):
            raise UserError("all weights of the loss are 0; raise --cosine, --mse or --relational")

    def recipe(self) -> dict[str, Any]:
        """Return the options that decide what is learned; distillation.json and checkpoints hold them."""
        return {name: value for name, value in asdict(self).items() if name not in _OUTSIDE_RECIPE}


# The shape is recorded as the `StudentConfig` that it becomes.
_OUTSIDE_RECIPE = {
    *("shards", "out", "size", "embedding_dim", "hidden", "layers", "pooling", "device", "precision"),
    *("checkpoint_every", "keep_checkpoints", "tensorboard", "resume", "overwrite"),
}


def default_held_out(rows: int) -> float:
    """Return the share of a corpus that is held out by default: 1%, but at least 500 rows, or a tenth of few."""
    return max(0.01, min(0.1, 500 / max(1, rows)))


ROWS = {
    "majority": "majority class",
    "scratch": "BiLSTM from scratch",
    "scratch-words": "BiLSTM from scratch, teacher's word embeddings",
    "task-specific": "task-specific distillation alone",
    "frozen": "distilled, frozen",
    "distilled": "distilled",
    "distilled-task-specific": "distilled + task-specific",
    "teacher-frozen": "teacher, frozen",
    "teacher": "teacher, fine-tuned",
}
"""Rows of `sd eval --glue`: ways to train a model for a task, with their titles."""
