"""Records in a student's folder that several modules read; each is declared here once. Nothing here imports PyTorch."""

import json
from pathlib import Path
from typing import Any

import msgspec

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import StudentConfig, TrainConfig

DISTILLATION = "distillation.json"
CHECKPOINTS = "checkpoints"


class TeacherOrigin(msgspec.Struct, kw_only=True):
    """The teacher of a student."""

    teacher: str
    """Name on the hub, or of its folder."""
    teacher_weights: list[str] = []
    """Hashes of its weight files."""
    pooling: str
    normalize: bool
    layers: list[int]
    """Layers that the student approximates; the last one is its public embedding."""


class CorpusOrigin(msgspec.Struct, kw_only=True):
    """The shards that a student was trained on."""

    rows: int
    fingerprint: dict[str, Any]
    """Options and inputs that the shards depend on, as their manifest has them."""


class WarmStartOrigin(msgspec.Struct, kw_only=True):
    """The student that a training began with."""

    student: str
    weights: list[str] = []
    """Hashes of its weight files."""


class Reduction(msgspec.Struct, kw_only=True):
    """How the vectors of a student were projected to fewer dimensions."""

    full_dim: int
    sentences: str = ""


class Distillation(msgspec.Struct, kw_only=True):
    """Content of distillation.json: how a student was made, and what was measured of it."""

    teacher: TeacherOrigin
    corpus: CorpusOrigin
    shards: str
    """Where the shards lie, relative to the student's folder."""
    training: TrainConfig
    """The recipe; options outside it have their defaults."""
    metrics: dict[str, Any]
    """Figures of `sd eval`; those of a fine-tuned student are by task, set and metric."""
    student: StudentConfig
    weights: str = "float32"
    command: str = ""
    """The command that trained it; empty if that is not known."""
    start: WarmStartOrigin | None = None
    history: list[dict[str, float]] = []
    """The validations, first to last."""
    reduction: Reduction | None = None
    dev_examples: dict[str, int] | None = None
    """Examples of each set of the task that the student was fine-tuned on."""
    glue_task: str | None = None
    """The hub's name of that task, if it is one of GLUE."""
    licence: str | None = None

    def task_scores(self) -> list[tuple[str, str, str, float]]:
        """Return task, set, metric and value of what a student was fine-tuned on; nothing if it was only distilled."""
        return [
            (task, split, metric, value)
            for task, splits in self.metrics.items()
            if isinstance(splits, dict)
            for split, scores in splits.items()
            if isinstance(scores, dict)
            for metric, value in scores.items()
            if isinstance(value, float)
        ]


_REQUIRED = {"teacher", "corpus", "shards", "training", "metrics", "student"}


def load_distillation(folder: Path) -> dict[str, Any]:
    """Read distillation.json as it stands, for commands that hand it on with other figures.

    Raises:
        UserError: there is no student in the folder.
    """
    try:
        record = json.loads((folder / DISTILLATION).read_text(encoding="utf-8"))
        if missing := _REQUIRED - record.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return record  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        if is_unfinished(folder):
            raise UserError(
                f"{folder} is not finished: sd train-student --resume --out {folder} trains it to the end, with the "
                "options that it was begun with"
            ) from None
        raise UserError(f"{folder} holds no student; train one: sd train-student --out {folder}") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / DISTILLATION} is damaged ({error}); train the student again") from error


def read_distillation(folder: Path) -> Distillation:
    """Read how the student in a folder was made.

    Raises:
        UserError: there is no student in it, or its record is damaged.
    """
    return as_distillation(load_distillation(folder), folder / DISTILLATION)


def as_distillation(record: dict[str, Any], path: Path = Path(DISTILLATION)) -> Distillation:
    """Check the content of distillation.json, which was read from `path`.

    Raises:
        UserError: a field is missing or of another type.
    """
    try:
        return msgspec.convert(record, Distillation)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged ({error}); train the student again") from error


def is_unfinished(folder: Path) -> bool:
    """Tell whether a folder holds a training that was stopped."""
    return (folder / CHECKPOINTS).is_dir() and not (folder / DISTILLATION).exists()


# Figures that `sd eval` measured: as much of each as the model card shows.


class LengthRange(msgspec.Struct):
    """Mean cosine of held-out sentences in a range of lengths, or of their rarest word's count."""

    least: int
    most: int | None
    """None: no upper end."""
    cosine: float


class Agreement(msgspec.Struct, kw_only=True):
    """Agreement with the teacher on held-out sentences."""

    rows: int | None = None
    cosine: float | None = None
    mean_vector_cosine: float | None = None
    rank_agreement: float | None = None
    recall_at_10: float | None = None
    recall_at_10_among_100: float | None = None
    mse: float | None = None
    by_length: list[LengthRange] = []
    by_frequency: list[LengthRange] = []


class ModelSize(msgspec.Struct):
    """Number of weights, and their size on disk."""

    parameters: int
    megabytes: float


class Measured(msgspec.Struct, kw_only=True):
    """`metrics` of a student that was not fine-tuned."""

    held_out: Agreement = msgspec.field(default_factory=Agreement)
    sts_spearman: dict[str, float] = {}
    """By model: student, teacher."""
    sentences_per_second: dict[str, float] = {}
    size: ModelSize | None = None
    teacher_size: ModelSize | None = None


class GlueResult(msgspec.Struct, kw_only=True):
    """Scores of one fine-tuned model of glue.json, between 0 and 1."""

    scores: dict[str, dict[str, float]]
    fraction: float = 1.0


class GlueResults(msgspec.Struct, kw_only=True):
    """Content of glue.json: by row and task, one result for each seed and share of the examples."""

    rows: dict[str, dict[str, list[GlueResult]]] = {}


class Machine(msgspec.Struct, kw_only=True):
    """The machine that figures were measured on."""

    cores: int = 0
    cpu: str = ""


class Latency(msgspec.Struct, kw_only=True):
    """Milliseconds of a call with one sentence."""

    p50: float | None = None
    p99: float | None = None


class Rates(msgspec.Struct, kw_only=True):
    """Speed with some number of threads."""

    by_batch: dict[int, float] = {}
    """Sentences per second, by sentences per call."""
    latency_ms: Latency = msgspec.field(default_factory=Latency)


class Contender(msgspec.Struct, kw_only=True):
    """Costs of one model, run in one way."""

    threads: dict[int, Rates] = {}
    sts_spearman: float | None = None
    startup_seconds: float | None = None
    peak_megabytes: float | None = None
    megabytes: float | None = None
    parameters: int | None = None


class SpeedResults(msgspec.Struct, kw_only=True):
    """Content of speed.json."""

    environment: Machine = msgspec.field(default_factory=Machine)
    threads: list[int] = []
    contenders: dict[str, Contender] = {}
