"""Records in a student's folder: how it was made, and what was measured of it. Nothing here imports PyTorch."""

import json
import os
import platform
import statistics
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import write_json
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.config import DEFAULT_STUDENT, EvalConfig, StudentConfig, TrainConfig

DISTILLATION, EVAL, GLUE, SPEED = "distillation.json", "eval.json", "glue.json", "speed.json"
MADE_BY = {EVAL: "sd eval", GLUE: "sd eval --glue --rows all", SPEED: "sd eval --speed"}
"""Files of figures, and the commands that write them."""
CHECKPOINTS = "checkpoints"


# What figures depend on.

PACKAGES = (
    *("sentence-distill", "torch", "onnxruntime", "transformers", "sentence-transformers", "tokenizers", "nanotoken"),
    *("pyarrow", "numpy"),
)
# Instruction sets that decide the speed of encoders, as Linux names them: those of x86, then those of ARM.
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


class Environment(msgspec.Struct, kw_only=True):
    """Machine and versions that figures depend on."""

    date: str = ""
    cpu: str = ""
    instructions: list[str] = []
    cores: int = 0
    system: str = ""
    python: str = ""
    versions: dict[str, str] = {}

    @property
    def machine(self) -> str:
        """Number of cores and the CPU's name; "" if neither is known."""
        count = f"{self.cores} core{'s' if self.cores != 1 else ''}" if self.cores else ""
        return " of ".join(filter(None, (count, self.cpu)))

    @classmethod
    def here(cls) -> "Environment":
        """Describe this machine, today."""
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d}",
            cpu=names[0] if names else platform.processor(),
            instructions=[name for name in _INSTRUCTIONS if name in flags],
            cores=cores(),
            system=platform.system(),
            python=platform.python_version(),
            versions=versions(PACKAGES),
        )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# eval.json: agreement with the teacher, size, speed.


class Range(msgspec.Struct):
    """Mean cosine of the sentences whose length, or whose rarest token's count, lies in a range."""

    least: int
    most: int | None
    """None: no upper end."""
    rows: int
    cosine: float


class CorpusCosine(msgspec.Struct):
    """Mean cosine of the sentences of one corpus."""

    name: str
    rows: int
    cosine: float


def cosine_on(corpus: str) -> str:
    """Name the mean cosine on one corpus among the scores of a validation."""
    return f"cosine on {corpus}"


def quality(scores: Mapping[str, float]) -> float:
    """Return what decides which weights of a training are the best.

    It is the mean of the corpora's cosines, each counted once: one over all rows would be that of the largest corpus.
    """
    return scores.get("mean_over_corpora", scores["cosine"])


class HeldOut(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Agreement with the teacher on held-out sentences; see `metrics.fidelity` and `metrics.recall_figures`."""

    rows: int | None = None
    cosine: float | None = None
    mse: float | None = None
    rank_agreement: float | None = None
    mean_vector_cosine: float | None = None
    recall_at_10: float | None = None
    recall_at_10_among_100: float | None = None
    recall_at_10_in_teachers_index: float | None = None
    """With queries by the student and documents by the teacher."""
    by_corpus: list[CorpusCosine] = []
    """Of shards that several corpora were embedded in."""
    by_length: list[Range] = []
    by_frequency: list[Range] = []
    other_corpus: str | None = None
    """The shards that the sentences are from, if they are not those that the student was trained on."""

    @property
    def cosine_of_corpora(self) -> dict[str, float]:
        """The mean cosine on each corpus, by its name."""
        return {each.name: each.cosine for each in self.by_corpus}


FEWEST_ROWS = 200
"""Rows below which recall is not measured: among few sentences ten neighbors are found by chance."""


def too_few(rows: int | None) -> str:
    """Explain why there is no recall over so many rows; "" if they are enough, or not known."""
    if rows is None or rows >= FEWEST_ROWS:
        return ""
    return f"not measured ({rows:,} held-out sentences; {FEWEST_ROWS} are needed)"


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


class WordOrder(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Pairs of sentences of nearly the same words: how near a model has them; see `data.word_order`."""

    pairs: int
    cosine: float
    """Mean cosine of the two sentences of a pair."""
    agreement: float | None = None
    """Rank correlation of these cosines with the teacher's; None for the teacher."""


OWN_TEXT = "its own corpus, held out"


class Probes(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was measured on text and tasks that a user named."""

    texts: dict[str, HeldOut] = {}
    """Agreement with the teacher on other text, by the name of its file."""
    word_order: dict[str, WordOrder] = {}
    """By the rule that made the second sentence of a pair from the first."""
    transfer: dict[str, dict[str, float]] = {}
    """Scores of frozen vectors on SentEval's tasks, by task and metric."""


class ModelFigures(Probes, kw_only=True, omit_defaults=True):
    """Everything measured of one model."""

    size: Size | None = None
    weights: list[str] = []
    """Hashes of its weight files, by which a later run knows it again."""
    held_out: HeldOut | None = None
    examples: list[Example] = []
    sts_spearman: float | None = None
    sentences_per_second: float | None = None
    timed_as: str | None = None
    """Dtype and backend of that speed, as "int8 in ONNX Runtime"."""
    timed_on: str | None = None
    """Machine of that speed, see `Environment.machine`."""


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


# speed.json: models that took turns on the same sentences.


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
    """Content of speed.json."""

    contenders: dict[str, Timed]
    threads: list[int]
    skipped: dict[str, str] = {}
    sentences: int = 0
    rounds: int = 0
    sts_pairs: int | None = None
    environment: Environment | None = None
    command: str = ""


# Fine-tuned models: glue.json, and the record in the folder of each.

Scores = dict[str, dict[str, float]]
"""The metrics of each dev set, by their names; between 0 and 1."""


def main_score(scores: Scores) -> float:
    """Return one number for a task: the mean of its metrics on the first dev set, as GLUE averages them."""
    return statistics.fmean(next(iter(scores.values())).values())


def shown_score(metric: str, value: float, examples: int | None) -> str:
    """Write a score with four decimals, and an accuracy over few examples with its counts: 0.9333 (14/15)."""
    if metric == "accuracy" and examples and examples < 200:
        return f"{value:.4f} ({round(value * examples)}/{examples})"
    return f"{value:.4f}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of fitting a model to a task, at the best step on dev."""

    scores: Scores
    learning_rate: float = 0.0
    """The best one; 0 if nothing was fine-tuned."""
    step: int = 0
    """The best step. 0 with no scores: fine-tuning diverged before it was scored once."""
    seconds: float = 0.0
    ended: str = ""
    """When fine-tuning ended, and why."""


class TaskRecord(Outcome, frozen=True, kw_only=True):
    """Content of task.json, next to a fine-tuned student."""

    task: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev_examples: dict[str, int]


class TeacherRecord(Outcome, frozen=True, kw_only=True):
    """Content of finetuning.json, next to a fine-tuned teacher; written last, so that a folder with it is whole."""

    task: str
    files: tuple[str, ...] = ()
    """Names of the files that were written."""


class GlueScores(Outcome, frozen=True, kw_only=True):
    """Scores of one model on the dev sets of a task."""

    seed: int = 0
    fraction: float = 1.0
    """Share of the training examples."""
    examples: int = 0
    """Number of training examples, with a teacher's logits those too."""
    data: str = ""
    """Hash of the task's training and dev examples."""


class GlueFigures(msgspec.Struct, kw_only=True):
    """Content of glue.json: the figures so far, and what they depend on."""

    source: str = ""
    student: list[str] = []
    """Hashes of the student's weights."""
    computed: str = ""
    """Compute dtype and kind of device."""
    finetuning: dict[str, Any] = {}
    """Hyperparameters of the students."""
    teacher_finetuning: dict[str, Any] = {}
    environments: list[Environment] = []
    """Every day and machine that added a figure."""
    rows: dict[str, dict[str, list[GlueScores]]]
    """Scores by row and task."""
    skipped: dict[str, str] = {}
    """Tasks, rows and test sets that could not be done, with the reason."""
    command: str = ""

    def find(self, row: str, task: str, seed: int, fraction: float, data: str) -> GlueScores | None:
        """Return scores that are there already, over the same examples."""
        wanted = (seed, fraction, data)
        known = self.rows.get(row, {}).get(task, [])
        return next((one for one in known if (one.seed, one.fraction, one.data) == wanted), None)

    def add(self, row: str, task: str, new: GlueScores) -> None:
        """Add scores, in place of those of the same seed and fraction, and of all that are over other examples.

        The scores of a row and task are averaged, and a mean over two dev sets would be of none.
        """
        of_row = self.rows.setdefault(row, {})
        replaced = (new.seed, new.fraction)
        others = [one for one in of_row.get(task, []) if one.data == new.data and (one.seed, one.fraction) != replaced]
        of_row[task] = sorted([*others, new], key=lambda one: (-one.fraction, one.seed))


Figures = TypeVar("Figures", EvalRecord, SpeedRecord, GlueFigures)


def read_figures(path: Path, kind: type[Figures]) -> Figures | None:
    """Read a file of figures; None if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        made_by = MADE_BY.get(path.name, "sd eval")
        raise UserError(f"{path} is damaged or of another version ({error}); remove it, then: {made_by}") from error


def write_figures(path: Path, record: EvalRecord | SpeedRecord | GlueFigures) -> None:
    """Write a file of figures."""
    write_json(path, msgspec.to_builtins(record, str_keys=True))


# distillation.json: how a student was made.


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


class Metrics(msgspec.Struct, kw_only=True):
    """Figures of `sd eval` among a student's metrics, by measure; those by model have the keys student and teacher."""

    held_out: HeldOut = msgspec.field(default_factory=HeldOut)
    probes: Probes = msgspec.field(default_factory=Probes)
    sts_spearman: dict[str, float] = {}
    sentences_per_second: dict[str, float] = {}
    timed_as: dict[str, str] = {}
    timed_on: dict[str, str] = {}
    size: Size | None = None
    teacher_size: Size | None = None


class Distillation(msgspec.Struct, kw_only=True):
    """Content of distillation.json: how a student was made, and what was measured of it."""

    teacher: TeacherOrigin
    corpus: CorpusOrigin
    shards: str
    """Where the shards lie, relative to the student's folder."""
    training: TrainConfig
    """The recipe; options outside it have their defaults."""
    metrics: dict[str, Any]
    """Figures of `sd eval`, see `Metrics`; those of a fine-tuned student are by task, set and metric."""
    student: StudentConfig
    weights: str = "float32"
    command: str = ""
    """The command that trained it; empty if that is not known."""
    start: dict[str, Any] | None = None
    """The student that the training began with, and the hashes of its weights."""
    history: list[dict[str, float]] = []
    """The validations, first to last."""
    reduction: dict[str, Any] | None = None
    """How its vectors were projected to fewer dimensions, see `reduce.Reduction`."""
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

    def models(self) -> dict[str, ModelFigures]:
        """Return the figures of `sd eval` by model: of the student and, if it was measured, of its teacher."""
        # A user's own task may have the name of a measure.
        tasks = {task for task, *_ in self.task_scores()}
        found = msgspec.convert({name: value for name, value in self.metrics.items() if name not in tasks}, Metrics)
        models = {
            name: ModelFigures(
                size=size,
                sts_spearman=found.sts_spearman.get(name),
                sentences_per_second=found.sentences_per_second.get(name),
                timed_as=found.timed_as.get(name),
                timed_on=found.timed_on.get(name),
            )
            for name, size in (("student", found.size), ("teacher", found.teacher_size))
        }
        own = {"held_out": found.held_out, **msgspec.structs.asdict(found.probes)}
        models["student"] = msgspec.structs.replace(models["student"], **own)
        return {name: model for name, model in models.items() if name == "student" or model != ModelFigures()}


def load_distillation(folder: Path) -> dict[str, Any]:
    """Read and check distillation.json, and return it as it stands, for commands that hand it on changed."""
    path = folder / DISTILLATION
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        msgspec.convert(record, Distillation).models()
    except (FileNotFoundError, NotADirectoryError):
        if is_unfinished(folder):
            raise UserError(
                f"{folder} is not finished: sd train-student --resume --out {folder} trains it to the end, with the "
                "options that it was begun with"
            ) from None
        raise UserError(f"{folder} holds no student; train one: sd train-student --out {folder}") from None
    except (ValueError, msgspec.ValidationError, UserError) as error:
        raise UserError(f"{path} is damaged or of another version ({error}); train the student again") from error
    return record


def read_distillation(folder: Path) -> Distillation:
    """Read how the student in a folder was made."""
    return msgspec.convert(load_distillation(folder), Distillation)


def is_unfinished(folder: Path) -> bool:
    """Tell whether a folder holds a training that was stopped."""
    return (folder / CHECKPOINTS).is_dir() and not (folder / DISTILLATION).exists()


# Where the figures of `sd eval` go, and how those of several runs share a file.


def models_of(config: EvalConfig) -> tuple[str, ...]:
    """Return the models to measure: those that were named, or the student in distilled/."""
    if not config.models:
        load_distillation(Path(DEFAULT_STUDENT))
    return tuple(dict.fromkeys(config.models)) or (DEFAULT_STUDENT,)


def figures_file(config: EvalConfig, name: str) -> Path:
    """Return the file for figures: --json, or `name` in the folder of the first student that is the user's."""
    models = models_of(config)
    students = [Path(model) for model in models if (Path(model) / DISTILLATION).exists()]
    if config.json_file is None and not students:
        raise UserError(
            f"{', '.join(models)}: none is the folder of a student of yours, where the figures would go; name a file "
            "with --json"
        )
    file = config.json_file or students[0] / name
    if not file.parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"no file can be written to {file.parent}; name another place for the figures with --json")
    return file


def eval_file(config: EvalConfig) -> Path | None:
    """Return the file for the figures of `sd eval`; None if text or tasks are measured and no student is the user's.

    Those figures are shown and written nowhere, so that a packaged student or one on the hub can be tried on them.
    """
    own = any((Path(model) / DISTILLATION).exists() for model in models_of(config))
    return figures_file(config, EVAL) if own or config.json_file or not config.on_data_given else None


# The field of `ModelFigures` that a skipped measure leaves empty.
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
            before = known.pop(earlier)
            model = msgspec.structs.replace(before, **{**measured, "texts": before.texts | model.texts})
        models[name] = model
    models |= {name: model for name, model in known.items() if name not in models}
    student, teacher = (new.student, new.teacher) if new.student else (old.student, old.teacher)
    return msgspec.structs.replace(
        new,
        models=models,
        skipped={what: why for what, why in new.skipped.items() if what not in models and not _is_known(what, models)},
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
