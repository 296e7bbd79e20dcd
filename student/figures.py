"""Figures that `sd eval` leaves on disk: eval.json and speed.json, and what is read of glue.json."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import msgspec

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import write_json
from sentence_distill.student.config import DEFAULT_STUDENT, EvalConfig
from sentence_distill.student.files import is_student, load_distillation, packaged_student

EVAL, GLUE, SPEED = "eval.json", "glue.json", "speed.json"
MADE_BY = {EVAL: "sd eval", GLUE: "sd eval --glue --rows all", SPEED: "sd eval --speed"}


class Environment(msgspec.Struct, kw_only=True):
    """Machine and versions that figures depend on; see `environment.environment`."""

    date: str = ""
    cpu: str = ""
    instructions: list[str] = []
    cores: int = 0
    system: str = ""
    python: str = ""
    versions: dict[str, str] = {}


class Range(msgspec.Struct):
    """Mean cosine of the sentences whose length, or whose rarest token's count, lies in a range."""

    least: int
    most: int | None
    """None: no upper end."""
    rows: int
    cosine: float


class HeldOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Agreement with the teacher on held-out sentences; see `metrics.fidelity` and `metrics.recall_figures`."""

    rows: int | None = None
    cosine: float | None = None
    mse: float | None = None
    rank_agreement: float | None = None
    mean_vector_cosine: float | None = None
    recall_at_10: float | None = None
    recall_at_10_among_100: float | None = None
    by_length: list[Range] = []
    by_frequency: list[Range] = []
    other_corpus: str | None = None
    """The shards that the sentences are from, if they are not those that the student was trained on."""


class Neighbor(msgspec.Struct):
    """A sentence near a query."""

    text: str
    cosine: float
    shared: bool
    """Whether the other model has it among its nearest, too."""


class Example(msgspec.Struct):
    """A held-out sentence with its nearest ones by teacher and student, nearest first."""

    query: str
    teacher: list[Neighbor]
    student: list[Neighbor]

    @property
    def shared(self) -> int:
        """Number of sentences that both models find."""
        return sum(neighbor.shared for neighbor in self.teacher)


class Size(msgspec.Struct):
    """Number of weights, and what loading them reads from disk."""

    parameters: int
    megabytes: float


class ModelFigures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything measured of one model."""

    size: Size | None = None
    weights: list[str] = []
    """Hashes of its weight files, by which a later run knows it again."""
    held_out: HeldOut | None = None
    examples: list[Example] = []
    sts_spearman: float | None = None
    sentences_per_second: float | None = None
    timed_as: str | None = None


class Sentences(msgspec.Struct):
    """The held-out sentences that figures are over."""

    corpus: str
    """Hash of the corpus."""
    held_out: float


class EvalRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Content of eval.json."""

    models: dict[str, ModelFigures]
    skipped: dict[str, str]
    """What could not be measured, with the reason."""
    student: str | None = None
    """The model in whose folder the file lies."""
    teacher: str | None = None
    """The teacher of that model."""
    reference: Sentences | None = None
    environment: Environment | None = None
    command: str = ""


class Latency(msgspec.Struct):
    """Milliseconds of a call with one sentence."""

    p50: float
    p99: float


class Rates(msgspec.Struct, kw_only=True):
    """Sentences per second with some number of threads; calls that would take too long are left out."""

    by_batch: dict[int, float] = {}
    """By sentences per call."""
    by_length: dict[int, float] = {}
    """By tokens per sentence."""
    latency_ms: Latency | None = None


class Timed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Costs of one model, run in one way."""

    model: str
    timed_as: str = ""
    threads: dict[int, Rates] = {}
    parameters: int | None = None
    megabytes: float | None = None
    dim: int | None = None
    startup_seconds: float | None = None
    """From the start of Python to the first vector."""
    peak_megabytes: float | None = None
    """Resident memory."""
    sts_spearman: float | None = None


class SpeedRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Content of speed.json: models that took turns on the same sentences."""

    contenders: dict[str, Timed]
    threads: list[int]
    skipped: dict[str, str] = {}
    sentences: int = 0
    rounds: int = 0
    sts_pairs: int | None = None
    environment: Environment | None = None
    command: str = ""


class GlueScores(msgspec.Struct, kw_only=True):
    """Scores of one fine-tuned model on the dev sets of a task, between 0 and 1."""

    scores: dict[str, dict[str, float]]
    seed: int = 0
    fraction: float = 1.0
    examples: int = 0


class GlueFigures(msgspec.Struct, kw_only=True):
    """What is read of glue.json."""

    rows: dict[str, dict[str, list[GlueScores]]]
    skipped: dict[str, str] = {}
    environments: list[Environment] = []
    command: str = ""


Record = TypeVar("Record", EvalRecord, SpeedRecord, GlueFigures)


def read_figures(path: Path, kind: type[Record]) -> Record | None:
    """Read a file of figures; None if there is none.

    Raises:
        UserError: it is damaged or of another version.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        made_by = MADE_BY.get(path.name, "sd eval")
        raise UserError(f"{path} is damaged or of another version ({error}); remove it, then: {made_by}") from error


def write_figures(path: Path, record: EvalRecord | SpeedRecord) -> None:
    """Write a file of figures."""
    write_json(path, msgspec.to_builtins(record, str_keys=True))


# Where figures go.


def models_of(config: EvalConfig) -> tuple[str, ...]:
    """Return the models to measure: those that were named, or the student in distilled/.

    Raises:
        UserError: none was named, and there is no such student.
    """
    if not config.models:
        load_distillation(Path(DEFAULT_STUDENT))
    return tuple(dict.fromkeys(config.models)) or (DEFAULT_STUDENT,)


def figures_file(config: EvalConfig, name: str) -> Path:
    """Return the file for figures: --json, or `name` in the folder of the first student that is the user's.

    Raises:
        UserError: there is no such student, or no file can be written there.
    """
    models = models_of(config)
    students = [model for model in models if is_student(model)]
    if config.json_file is None and not students:
        if packaged := [model for model in models if packaged_student(model) is not None]:
            raise UserError(f"{packaged[0]} lies inside the package, where no figures can go; name a file with --json")
        raise UserError("no student is among the models, in whose folder the figures would go; name a file with --json")
    file = config.json_file or Path(students[0]) / name
    if not file.parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"no file can be written to {file.parent}; name another place for the figures with --json")
    return file


def sts_file(config: EvalConfig) -> Path | None:
    """Return the file of STS-B's pairs: --sts, or dev.tsv of --glue-dir if it is there."""
    if config.sts is not None or config.glue_dir is None:
        return config.sts
    inside = config.glue_dir / "STS-B" / "dev.tsv"
    return inside if inside.exists() else None


# Figures of several runs in one file.

# What a skipped measure leaves empty.
_MEASURES = {"held-out fidelity": "held_out", "speed": "sentences_per_second", "STS-B": "sts_spearman"}


def merged(old: EvalRecord, new: EvalRecord) -> EvalRecord:
    """Add the figures of a run to those of a file.

    What was measured before stays unless it was measured again, its model has other weights now, or it is over other
    held-out sentences than those of this run.
    """
    known = dict(old.models)
    if new.reference and new.reference != old.reference:
        for name, model in known.items():
            known[name] = msgspec.structs.replace(model, held_out=None, examples=[])
    models = {}
    for name, model in new.models.items():
        if earlier := _same_model(name, model, known, new.models):
            measured = {field: value for field, value in msgspec.structs.asdict(model).items() if value}
            model = msgspec.structs.replace(known.pop(earlier), **measured)
        models[name] = model
    models |= {name: model for name, model in known.items() if name not in models}
    skipped = {what: why for what, why in new.skipped.items() if what not in models and not _is_known(what, models)}
    student, teacher = (new.student, new.teacher) if new.student else (old.student, old.teacher)
    return msgspec.structs.replace(
        new,
        models=models,
        skipped=skipped,
        student=student if student in models else None,
        teacher=teacher if teacher in models else None,
        reference=new.reference or old.reference,
    )


def _same_model(name: str, model: ModelFigures, known: dict[str, ModelFigures], taken: Collection[str]) -> str | None:
    """Name of the earlier figures of a model; those of a copy that is measured too are left to it."""
    same = [earlier for earlier, figures in known.items() if figures.weights == model.weights]
    return name if name in same else next((earlier for earlier in same if earlier not in taken), None)


def _is_known(what: str, models: dict[str, ModelFigures]) -> bool:
    measure, _, name = what.partition(" of ")
    if measure not in _MEASURES:
        return False
    among = [models[name]] if name in models else list(models.values())
    return any(getattr(model, _MEASURES[measure]) is not None for model in among)
