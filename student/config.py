"""Options of the student and of its training."""

import math
from dataclasses import MISSING, dataclass
from typing import Literal

from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.options import check, option, parse_names
from sentence_distill.data.records import InputFormat

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
class EncodeConfig:
    """Options of `sd encode`."""

    inputs: tuple[str, ...] = option(
        (),
        "The same as the argument INPUT; may be repeated.",
        argument=True,
        repeated=True,
        flags=("--input",),
        metavar="INPUT...",
    )
    student: str | None = option(
        None,
        "Folder or name on the hub of a student, or folder of its export.",
        shown="distilled; if there is none, the packaged wiki-small",
        metavar="NAME",
    )
    out: str = option(
        "-",
        "File of the vectors; a run that was stopped is resumed.",
        shown="standard output",
        flags=("--out", "-o"),
        metavar="FILE",
    )
    format: Literal["jsonl", "parquet", "arrow", "npy"] | None = option(
        None, "Format of --out.", shown="by its name; to standard output jsonl"
    )
    input_format: InputFormat | None = option(None, "Format of the input.", shown="found from content and name")
    text_column: str = option("text", "Column of the text.", aliases=("--text-field",), metavar="NAME")
    columns: tuple[str, ...] | None = option(
        None,
        "Columns of the input to write next to the vectors.",
        shown="all",
        parse=parse_names,
        metavar="NAME[,NAME]",
    )
    keep_columns: bool = option(True, "Write the vectors alone; npy always does.", flags=("--no-text",))
    dtype: Literal["float32", "float16"] = option("float32", "Type of the vectors.")
    backend: Literal["auto", "onnx", "torch"] = option(
        "auto",
        "Compute in ONNX Runtime with int8, the fastest on a CPU, or in PyTorch. auto takes PyTorch on a GPU, or if "
        "--precision or --device is given.",
    )
    precision: Literal["auto", "bf16", "fp32"] | None = option(
        None, "Compute dtype in PyTorch.", shown="auto, bf16 if the hardware supports it"
    )
    device: str | None = option(None, "Device of PyTorch: auto, cpu, cuda or cuda:N.", shown="auto", metavar="DEVICE")
    threads: int | None = option(None, "Number of CPU threads.", shown="all cores", least=1)
    overwrite: bool = option(
        False, "Replace --out if it is there already; begin again if another run was stopped.", given=False
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.inputs:
            raise UsageError("name what to read: a file, a folder, a glob or a URL, or - for standard input")
        if "-" in self.inputs and (len(self.inputs) > 1 or self.out != "-"):
            raise UsageError(
                "standard input goes to standard output alone, since it can't be read again; give a file to be able "
                "to resume after a stop"
            )
        if self.out == "-" and self.format == "npy":
            raise UsageError("--format npy needs a file, since the number of rows stands at its start; name --out")
        if not self.keep_columns and self.columns is not None:
            raise UsageError("--no-text writes no column next to the vectors, --columns some; give one of them")
        if self.backend == "onnx" and (of_torch := self.option_of_torch):
            raise UsageError(f"{of_torch} is of PyTorch, and the backend is onnx")

    @property
    def option_of_torch(self) -> str | None:
        """An option that asks for PyTorch."""
        given = {"--precision": self.precision, "--device": self.device}
        return next((name for name, value in given.items() if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of `sd predict`."""

    folder: str = option(
        MISSING, "Folder of a fine-tuned student, or of its export; or a name on the hub.", argument=True
    )
    inputs: tuple[str, ...] = option(
        ("-",),
        "The same as the argument INPUT; may be repeated.  [default: - (standard input)]",
        argument=True,
        repeated=True,
        flags=("--input",),
        metavar="INPUT...",
    )
    out: str = option("-", "File to write; - is standard output.", flags=("--out", "-o"), metavar="FILE")
    format: Literal["jsonl", "csv", "tsv", "parquet"] | None = option(
        None, "Format of --out.", shown="by its name; to standard output jsonl"
    )
    input_format: InputFormat | None = option(None, "Format of the input.", shown="found from content and name")
    text_column: str | None = option(
        None, "Column of the texts, two for pairs.", shown="as in fine-tuning", metavar="NAME[,NAME]"
    )
    every_class: bool = option(False, "Write the probability of every class.", flags=("--all",))
    device: str = option("auto", "Device to compute on: auto, cpu, cuda or cuda:N.", metavar="DEVICE")
    overwrite: bool = option(False, "Replace --out if it is there already.", given=False)

    def __post_init__(self) -> None:
        check(self)
        if "-" in self.inputs and len(self.inputs) > 1:
            raise UsageError("standard input can't be joined with files; name one or the other")
