"""Options of the student and of its training."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.options import check, option

POOLINGS = ("mean", "max", "mean+max")
INITS = ("pca", "random")


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
    """Most passes over the shards."""
    max_steps: int | None = None
    """Most optimizer steps."""
    max_time: float | None = None
    """Most seconds of training, all resumed parts together."""
    batch_size: int = 128
    """Sentences of a batch, all of one length and of all processes together."""
    learning_rate: float = 4e-3
    """Peak of the schedule."""
    embedding_rate: float = 2.0
    """Learning rate of the word embeddings, as a multiple of the others'. A row moves only in the batches that hold
    its word, by more the rarer that is."""
    warmup: float = 0.05
    """Share of the run over which the learning rate rises; then it falls to 0 along a half cosine."""
    weight_decay: float = 0.01
    """Of AdamW, on all weights but the word embeddings."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    cosine: float = 1.0
    """Weight of 1 - cosine between the student's and the teacher's vector."""
    mse: float = 0.0
    """Weight of the mean squared error of the components."""
    relational: float = 0.0
    """Weight of the divergence between the teacher's and the student's similarities inside the batch."""
    temperature: float = 0.05
    """Of the softmax over those similarities."""
    target_layers: tuple[int, ...] | None = None
    """Which of the layers in the shards to approximate; None is all. The last is the public embedding."""
    token_dropout: float = 0.0
    """Share of the tokens whose word embedding is set to 0."""
    embedding_dropout: float = 0.0
    """Share of a batch's words whose embedding is set to 0 wherever they stand; the others are scaled up."""
    init: str = "pca"
    """Initial weights: random but for the word embeddings, which "pca" reduces from the teacher's, and "random" draws
    too; or the name of a student, whose weights they are."""
    held_out: float | None = None
    """Share of the rows, chosen by sentence id, that is never trained on; None is `default_held_out`."""
    train_fraction: float = 1.0
    """Share of the other rows that is trained on, chosen by sentence id, so that a larger share holds a smaller one."""
    validate_every: int | None = None
    """Steps between two validations; None is an epoch."""
    patience: int | None = None
    """Validations without a better held-out cosine after which training ends; None trains to the end."""
    seed: int = 0
    """Of the initial weights, the order of batches and dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_steps", "validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError(f"--held-out {self.held_out} must lie between 0 and 1, both excluded")
        if not 0 < self.train_fraction <= 1:
            raise UserError(f"--train-fraction {self.train_fraction} must lie between 0, excluded, and 1")
        if not any((self.cosine, self.mse, self.relational)):
            raise UserError("all weights of the loss are 0; raise --cosine, --mse or --relational")


def default_held_out(rows: int) -> float:
    """The share of a corpus that is held out if none is given: 1%, but at least 500 rows, or a tenth of few."""
    return max(0.01, min(0.1, 500 / max(1, rows)))


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{option} {value!r} is none of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of `sd export`."""

    student: str = option(
        "distilled",
        "Student to export: a folder, wiki-small, or a name on the hub.",
        argument=True,
        metavar="[STUDENT]",
    )
    format: Literal["onnx", "folder"] = option(
        "onnx", "What to write: an ONNX file with its tokenizer, or a smaller student's folder for PyTorch."
    )
    out: Path | None = option(
        None,
        "Folder to write.",
        shown="STUDENT/onnx; with --format folder STUDENT-DIM, or STUDENT-float16",
        flags=("--out", "-o"),
    )
    dim: tuple[int, ...] = option(
        (),
        "Reduce the vectors to this many dimensions by PCA. With several, as in 64,128,256, they are compared and "
        "nothing is written.",
        metavar="N[,N…]",
        least=1,
        aliases=("--dims",),
    )
    float16: bool = option(False, "Store the weights of --format folder in half the bytes.")
    int8: bool = option(False, "Store and multiply 8-bit numbers in ONNX: faster, and a quarter of the size.")
    overwrite: bool = option(False, "Replace an earlier smaller student in --out.", given=False)
    shards: Path | None = option(
        None,
        "Shards to find dimensions and measure with.",
        shown="those that the student was trained on",
    )
    corpus: tuple[str, ...] = option(
        (),
        "Text to find dimensions with instead of shards, in any form that sd embed takes; may be repeated.",
        metavar="FILE",
        repeated=True,
    )
    sentences: Path | None = option(
        None,
        "Text file to compare the ONNX file with the student on, one sentence per line.",
        shown="held-out ones of the shards",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.shards and self.corpus:
            raise UsageError("--shards and --corpus are two sources of sentences; give one of them")
        if self.corpus and not self.dim:
            raise UsageError("--corpus goes with --dim")
        if len(self.dim) > 1:
            if self.out or self.float16 or self.int8:
                raise UsageError("several numbers of dimensions are compared, and nothing is written; name one --dim")
        elif self.format == "folder":
            if not (self.dim or self.float16):
                raise UsageError("--format folder writes a smaller student; give --dim, --float16, or both")
            if self.int8 or self.sentences:
                raise UsageError("--int8 and --sentences go with an ONNX file; leave out --format folder")
            if self.shards and not self.dim:
                raise UsageError("--float16 alone writes the student as it is; leave out --shards")
        elif self.float16:
            raise UsageError("--float16 goes with --format folder; ONNX files have --int8")
