"""Options of the student and of its training."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS
from sentence_distill.data.options import check, option, parse_list
from sentence_distill.student.environment import cores

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


# Options of `sd eval` and `sd report`.

DEFAULT_STUDENT = "distilled"
"""The folder that commands read if none is named."""


def _parse_threads(text: str) -> tuple[int, ...]:
    """Read numbers of threads, as in 1,8; `all` stands for the number of cores."""
    numbers = parse_list(int, re.sub(r"\ball\b", str(cores()), text))
    if min(numbers) < 1:
        raise ValueError(f"{text!r} must be at least 1")
    return tuple(sorted(set(numbers)))


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What `sd eval` measures, and where the figures go."""

    models: tuple[str, ...] = option(
        (),
        "The same as one MODEL; may be repeated.",
        argument=True,
        repeated=True,
        flags=("--student",),
        metavar="[MODEL]...",
    )
    shards: Path | None = option(
        None, "Shards with held-out sentences, also to time.", shown="those that the first student was trained on"
    )
    sts: Path | None = option(
        None, "TSV file with columns sentence1, sentence2 and score.", shown="STS-B/dev.tsv in --glue-dir"
    )
    teacher: str | None = option(
        None, "Teacher to compare with.", metavar="NAME", shown="the student's, if this machine has it"
    )
    glue_dir: Path | None = option(None, "GLUE in the official TSV layout.", shown="nyu-mll/glue from the hub")
    json_file: Path | None = option(
        None,
        "File for the figures.",
        flags=("--json",),
        metavar="FILE",
        shown="eval, glue or speed.json in the first student's folder",
    )
    overwrite: bool = option(False, "Replace --json, whatever it holds; earlier figures are not kept.", given=False)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """How `sd eval --speed` times models."""

    sentences: Path | None = option(
        None, "Speed: text file with one sentence per line.", shown="the text in the shards", metavar="FILE"
    )
    threads: tuple[int, ...] = option(
        (),
        "Speed: numbers of threads; each model is started again for each.",
        parse=_parse_threads,
        metavar="N[,N…]",
        shown="1,all",
    )
    rounds: int = option(3, "Speed: rounds in which the models take turns; the median counts.", least=1)
    batch_sizes: tuple[int, ...] = option((1, 8, 32, 128, 512), "Speed: sentences per call.", least=1)

    def __post_init__(self) -> None:
        check(self)


def parse_note(text: str) -> str:
    """Read TASK=TEXT, a remark on the figures of a GLUE task; the task comes out spelled as GLUE spells it."""
    task, _, remark = (part.strip() for part in text.partition("="))
    known = {name.lower(): name for name in TASKS}
    if task.lower() not in known or not remark:
        raise ValueError(f"{text!r} is no TASK=TEXT with one of {', '.join(TASKS)}")
    return f"{known[task.lower()]}={remark}"


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What `sd report` writes."""

    student: Path = option(Path(DEFAULT_STUDENT), "Folder of the student.", argument=True)
    out: Path = option(Path("report.html"), "File to write.", flags=("--out", "-o"))
    title: str | None = option(None, "Title of the page.", shown="names the teacher")
    notes: tuple[str, ...] = option(
        (),
        "Footnote at every figure of a GLUE task, if its data is not the official one, say; may be repeated.",
        flags=("--note",),
        repeated=True,
        parse=parse_note,
        metavar="TASK=TEXT",
    )
    overwrite: bool = option(False, "Replace --out even if it is not a report.", given=False)

    def __post_init__(self) -> None:
        check(self)
