"""Records in a student's folder: its origin and its measured figures. Nothing here imports PyTorch."""

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
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.files import write_json
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.config import DEFAULT_STUDENT, EvalConfig, StudentConfig, TrainConfig

DISTILLATION, EVAL, GLUE, SPEED = "distillation.json", "eval.json", "glue.json", "speed.json"
MADE_BY = {EVAL: "sd eval", GLUE: "sd eval --glue --rows all", SPEED: "sd eval --speed"}
"""Commands that write the files of figures."""
CHECKPOINTS = "checkpoints"


# The environment that figures depend on.

PACKAGES = (
    *("sentence-distill", "torch", "onnxruntime", "transformers", "sentence-transformers", "tokenizers", "nanotoken"),
    *("pyarrow", "numpy"),
)
# Instruction sets that matter for the speed of encoders, by their names in Linux: x86, then ARM.
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
        """Describe this machine, with today's date."""
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
    """Return the versions of the packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# eval.json: agreement with the teacher, size, speed.


class Range(msgspec.Struct):
    """Mean cosine of the sentences whose length, or rarest token's count, lies in a range."""

    least: int
    most: int | None
    """Inclusive upper bound; None for no bound."""
    rows: int
    cosine: float


class CorpusCosine(msgspec.Struct):
    """Mean cosine of the sentences of one corpus."""

    name: str
    rows: int
    cosine: float


def cosine_on(corpus: str) -> str:
    """Return the name of the mean cosine on a corpus among the scores of a validation."""
    return f"cosine on {corpus}"


def quality(scores: Mapping[str, float]) -> float:
    """Return the score that picks the best weights of a training run.

    This is the unweighted mean of the corpora's cosines: a mean over all rows would be dominated by the largest corpus.
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
    """Recall with the student's vectors as queries and the teacher's as documents."""
    by_corpus: list[CorpusCosine] = []
    """Mean cosine by corpus, for shards with several corpora."""
    by_length: list[Range] = []
    by_frequency: list[Range] = []
    other_corpus: str | None = None
    """Shards of the sentences, if the student was trained on others."""

    @property
    def cosine_of_corpora(self) -> dict[str, float]:
        """Mean cosine on each corpus, by name."""
        return {each.name: each.cosine for each in self.by_corpus}


FEWEST_ROWS = 200
"""Minimum number of rows for recall: among fewer sentences, chance alone finds many of ten neighbors."""


def too_few(rows: int | None) -> str:
    """Explain why recall is not measured over `rows` rows; "" if they suffice, or are not known."""
    if rows is None or rows >= FEWEST_ROWS:
        return ""
    return f"not measured ({counted(rows, 'held-out sentence')}; {FEWEST_ROWS} are needed)"


class Neighbor(msgspec.Struct):
    """A sentence near a query."""

    text: str
    cosine: float
    shared: bool
    """True if it is also among the other model's nearest."""


class Example(msgspec.Struct):
    """A held-out sentence with its nearest sentences by teacher and by student, nearest first."""

    query: str
    teacher: list[Neighbor]
    student: list[Neighbor]

    @property
    def shared(self) -> int:
        """Number of sentences that both models find."""
        return sum(neighbor.shared for neighbor in self.teacher)


class Size(msgspec.Struct):
    """Number of weights, and megabytes that loading a model reads from disk."""

    parameters: int
    megabytes: float


class WordOrder(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Similarity of pairs of sentences with nearly the same words but another meaning; see `data.word_order`."""

    pairs: int
    cosine: float
    """Mean cosine between the two sentences of a pair."""
    agreement: float | None = None
    """Rank correlation of these cosines with the teacher's; None for the teacher itself."""


OWN_TEXT = "its own corpus, held out"


class Probes(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Figures on text and tasks that the user named."""

    texts: dict[str, HeldOut] = {}
    """Agreement with the teacher on other text, by file name."""
    word_order: dict[str, WordOrder] = {}
    """Similarity of altered sentences, by the rule that alters them."""
    transfer: dict[str, dict[str, float]] = {}
    """Scores of frozen vectors on SentEval's tasks, by task and metric."""


class ModelFigures(Probes, kw_only=True, omit_defaults=True):
    """All figures of one model."""

    size: Size | None = None
    weights: list[str] = []
    """Hashes of its weight files, by which later runs recognize it."""
    held_out: HeldOut | None = None
    examples: list[Example] = []
    sts_spearman: float | None = None
    sentences_per_second: float | None = None
    timed_as: str | None = None
    """Dtype and backend of that speed, as "int8 in ONNX Runtime"."""
    timed_on: str | None = None
    """Machine of that speed, see `Environment.machine`."""


class Sentences(msgspec.Struct):
    """Held-out sentences that figures were measured on."""

    corpus: str
    """Hash of the corpus."""
    held_out: float


class EvalRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Content of eval.json."""

    models: dict[str, ModelFigures]
    skipped: dict[str, str]
    """Measures that were skipped, with the reasons."""
    student: str | None = None
    """Name of the model whose folder contains the file."""
    teacher: str | None = None
    """Name of that model's teacher."""
    reference: Sentences | None = None
    environment: Environment | None = None
    command: str = ""


# speed.json: timings of models that took turns on the same sentences.


class Latency(msgspec.Struct):
    """Percentiles of the latency of a call with one sentence, in milliseconds."""

    p50: float
    p99: float


class Rates(msgspec.Struct, kw_only=True):
    """Sentences per second for one number of threads; calls that would take too long are left out."""

    by_batch: dict[int, float] = {}
    """Rate by sentences per call."""
    by_length: dict[int, float] = {}
    """Rate by tokens per sentence."""
    latency_ms: Latency | None = None


class Timed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Costs of a model that is run in one way."""

    model: str
    timed_as: str = ""
    threads: dict[int, Rates] = {}
    parameters: int | None = None
    megabytes: float | None = None
    dim: int | None = None
    startup_seconds: float | None = None
    """Time from the start of Python to the first vector."""
    peak_megabytes: float | None = None
    """Peak resident memory."""
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


# Fine-tuned models: glue.json, and the record in each model's folder.

Scores = dict[str, dict[str, float]]
"""Metrics, between 0 and 1, by dev set and name."""


def main_score(scores: Scores) -> float:
    """Return a single score for a task: the mean of its metrics on the first dev set, as in GLUE."""
    return statistics.fmean(next(iter(scores.values())).values())


def shown_score(metric: str, value: float, examples: int | None) -> str:
    """Format a score with four decimals, and an accuracy over few examples with its counts: 0.9333 (14/15)."""
    if metric == "accuracy" and examples and examples < 200:
        return f"{value:.4f} ({round(value * examples)}/{examples})"
    return f"{value:.4f}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of fine-tuning a model on a task, at the best step on dev."""

    scores: Scores
    learning_rate: float = 0.0
    """Best learning rate; 0 if nothing was fine-tuned."""
    step: int = 0
    """Best step; 0 without scores if fine-tuning diverged before the first evaluation."""
    seconds: float = 0.0
    ended: str = ""
    """Step at which fine-tuning ended, and the reason."""


class TaskRecord(Outcome, frozen=True, kw_only=True):
    """Content of task.json, next to a fine-tuned student."""

    task: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev_examples: dict[str, int]


class TeacherRecord(Outcome, frozen=True, kw_only=True):
    """Content of finetuning.json, next to a fine-tuned teacher; written last, so that a folder with it is complete."""

    task: str
    files: tuple[str, ...] = ()
    """Names of the files in the folder."""


class GlueScores(Outcome, frozen=True, kw_only=True):
    """Scores of a model on the dev sets of a task."""

    seed: int = 0
    fraction: float = 1.0
    """Share of the training examples."""
    examples: int = 0
    """Number of training examples, including those with a teacher's logits."""
    data: str = ""
    """Hash of the task's training and dev examples."""


class GlueFigures(msgspec.Struct, kw_only=True):
    """Content of glue.json: the figures so far, and the settings that they depend on."""

    source: str = ""
    student: list[str] = []
    """Hashes of the student's weights."""
    computed: str = ""
    """Compute dtype and type of device."""
    finetuning: dict[str, Any] = {}
    """Hyperparameters of the students."""
    teacher_finetuning: dict[str, Any] = {}
    environments: list[Environment] = []
    """Environments that added figures, one per day and machine."""
    rows: dict[str, dict[str, list[GlueScores]]]
    """Scores by row and task."""
    skipped: dict[str, str] = {}
    """Tasks, rows and test sets that were skipped, with the reasons."""
    command: str = ""

    def find(self, row: str, task: str, seed: int, fraction: float, data: str) -> GlueScores | None:
        """Return existing scores over the same examples; None if there are none."""
        wanted = (seed, fraction, data)
        known = self.rows.get(row, {}).get(task, [])
        return next((one for one in known if (one.seed, one.fraction, one.data) == wanted), None)

    def add(self, row: str, task: str, new: GlueScores) -> None:
        """Add scores; drop those of the same seed and fraction, and all that were measured on other examples.

        The scores of a row and task are averaged, which makes no sense over different dev sets.
        """
        of_row = self.rows.setdefault(row, {})
        replaced = (new.seed, new.fraction)
        others = [one for one in of_row.get(task, []) if one.data == new.data and (one.seed, one.fraction) != replaced]
        of_row[task] = sorted([*others, new], key=lambda one: (-one.fraction, one.seed))


Figures = TypeVar("Figures", EvalRecord, SpeedRecord, GlueFigures)


def read_figures(path: Path, kind: type[Figures]) -> Figures | None:
    """Read a file of figures; None if it does not exist."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        made_by = MADE_BY.get(path.name, "sd eval")
        raise UserError(f"{path} is damaged or from another version ({error}); remove it, then: {made_by}") from error


def write_figures(path: Path, record: EvalRecord | SpeedRecord | GlueFigures) -> None:
    """Write a file of figures."""
    write_json(path, msgspec.to_builtins(record, str_keys=True))


# distillation.json: the origin of a student.


class TeacherOrigin(msgspec.Struct, kw_only=True):
    """The teacher of a student."""

    teacher: str
    """Name on the hub, or name of its folder."""
    teacher_weights: list[str] = []
    """Hashes of its weight files."""
    pooling: str
    normalize: bool
    layers: list[int]
    """Layers that the student approximates; its public embedding is the last one."""


class CorpusOrigin(msgspec.Struct, kw_only=True):
    """The shards that a student was trained on."""

    rows: int
    fingerprint: dict[str, Any]
    """Fingerprint in the shards' manifest: the options and inputs that they depend on."""


class Metrics(msgspec.Struct, kw_only=True):
    """Figures of `sd eval` among a student's metrics; measures of both models have the keys student and teacher."""

    held_out: HeldOut = msgspec.field(default_factory=HeldOut)
    probes: Probes = msgspec.field(default_factory=Probes)
    sts_spearman: dict[str, float] = {}
    sentences_per_second: dict[str, float] = {}
    timed_as: dict[str, str] = {}
    timed_on: dict[str, str] = {}
    size: Size | None = None
    teacher_size: Size | None = None


class Distillation(msgspec.Struct, kw_only=True):
    """Content of distillation.json: the origin of a student, and its measured figures."""

    teacher: TeacherOrigin
    corpus: CorpusOrigin
    shards: str
    """Path of the shards, relative to the student's folder."""
    training: TrainConfig
    """Recipe of the training; options outside of it have their defaults."""
    metrics: dict[str, Any]
    """Figures of `sd eval` (see `Metrics`); for a fine-tuned student by task, set and metric."""
    student: StudentConfig
    weights: str = "float32"
    command: str = ""
    """Command that trained it; empty if it is not known."""
    start: dict[str, Any] | None = None
    """Student that the training started from, with the hashes of its weights."""
    history: list[dict[str, float]] = []
    """Scores of the validations, in order."""
    reduction: dict[str, Any] | None = None
    """Reduction of its vectors to fewer dimensions; see `reduce.save_reduced`."""
    dev_examples: dict[str, int] | None = None
    """Number of examples in each dev set of the task that the student was fine-tuned on."""
    glue_task: str | None = None
    """The hub's name of that task, if it is in GLUE."""
    licence: str | None = None

    def task_scores(self) -> list[tuple[str, str, str, float]]:
        """Return task, set, metric and value for each score of a fine-tuned student; [] for other students."""
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
        """Return the figures of `sd eval` for the student and, if it was measured, for its teacher."""
        # A user's task may have the same name as a measure.
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
    """Read and validate distillation.json; return it unconverted, for commands that write it again."""
    path = folder / DISTILLATION
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        msgspec.convert(record, Distillation).models()
    except (FileNotFoundError, NotADirectoryError):
        if is_unfinished(folder):
            raise UserError(
                f"{folder} is not finished; complete it with the options of that run: sd train-student --resume --out "
                f"{folder}"
            ) from None
        raise UserError(f"{folder} holds no student; train one: sd train-student --out {folder}") from None
    except (ValueError, msgspec.ValidationError, UserError) as error:
        raise UserError(f"{path} is damaged or from another version ({error}); train the student again") from error
    return record


def read_distillation(folder: Path) -> Distillation:
    """Read the record of the student in a folder."""
    return msgspec.convert(load_distillation(folder), Distillation)


def is_unfinished(folder: Path) -> bool:
    """Return True if a folder holds a training run that was stopped."""
    return (folder / CHECKPOINTS).is_dir() and not (folder / DISTILLATION).exists()


# Files for the figures of `sd eval`, in which several runs are merged.


def models_of(config: EvalConfig) -> tuple[str, ...]:
    """Return the models to measure: those named by the user, by default the student in distilled/."""
    if not config.models:
        load_distillation(Path(DEFAULT_STUDENT))
    return tuple(dict.fromkeys(config.models)) or (DEFAULT_STUDENT,)


def figures_file(config: EvalConfig, name: str) -> Path:
    """Return the file for figures: --json, or `name` in the first student folder among the models."""
    models = models_of(config)
    students = [Path(model) for model in models if (Path(model) / DISTILLATION).exists()]
    if config.json_file is None and not students:
        raise UserError(
            f"{', '.join(models)}: there is no folder of a local student to write the figures to; name a file with "
            "--json"
        )
    file = config.json_file or students[0] / name
    if not file.parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"{file.parent} is not writable; name another file for the figures with --json")
    return file


def eval_file(config: EvalConfig) -> Path | None:
    """Return the file for the figures of `sd eval`; None if they are only printed.

    Figures on text and tasks of a packaged student, or of one on the hub, are only printed, so that it can be tried
    without a file.
    """
    own = any((Path(model) / DISTILLATION).exists() for model in models_of(config))
    return figures_file(config, EVAL) if own or config.json_file or not config.on_data_given else None


# Field of `ModelFigures` for each measure that may be skipped.
_MEASURES = {"held-out fidelity": "held_out", "speed": "sentences_per_second", "STS-B": "sts_spearman"}


def merged(old: EvalRecord, new: EvalRecord) -> EvalRecord:
    """Merge the figures of a run into those of a file.

    Earlier figures are kept unless they were measured again, their model's weights have changed, or they are over other
    held-out sentences than this run's.
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
    """Return the name of a model's earlier figures, but not those of a copy that is measured under its own name."""
    same = [earlier for earlier, figures in known.items() if figures.weights == model.weights]
    return name if name in same else next((earlier for earlier in same if earlier not in taken), None)


def _is_known(what: str, models: dict[str, ModelFigures]) -> bool:
    measure, _, name = what.partition(" of ")
    if measure not in _MEASURES:
        return False
    among = [models[name]] if name in models else list(models.values())
    return any(getattr(model, _MEASURES[measure]) is not None for model in among)
