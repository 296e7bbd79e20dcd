"""GLUE: fine-tune and score models on it, as `sd eval --glue` does, and write the submission."""

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import torch

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import (
    DIAGNOSTIC,
    HUB_NAME,
    TASKS,
    GlueFolder,
    GlueSource,
    GlueTask,
    TaskMissing,
    open_glue,
    set_name,
)
from sentence_distill.data.options import command_line
from sentence_distill.pipeline.files import lock_folder, write_atomically
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.records import differing_fields
from sentence_distill.student.classifier import StudentClassifier, TaskModel, TeacherClassifier
from sentence_distill.student.config import ROWS, EvalConfig, GlueConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.figures import (
    GLUE,
    Environment,
    GlueFigures,
    GlueScores,
    Outcome,
    Scores,
    figures_file,
    load_distillation,
    main_score,
    models_of,
    read_figures,
    write_figures,
)
from sentence_distill.student.files import weights_hashes
from sentence_distill.student.finetune import LOGITS, LOOP, STUDENT, TEACHER, Fitter, constant
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.model import Student, load_student
from sentence_distill.student.models import Encode, find_teacher, open_teacher
from sentence_distill.student.recipe import RECIPE, TaskRecipe
from sentence_distill.student.start import SCALE, initial_words
from sentence_distill.student.task_data import TaskData
from sentence_distill.student.task_teacher import TEACHER_SEED, TaskTeacher

# Nothing in these rows is drawn, so one seed is all.
WITHOUT_SEED = ("majority", "frozen", "teacher-frozen")
# The tasks whose models predict the test splits of a part of the submission; AX has none of its own.
_MODEL_OF = {"AX": "MNLI"}
# Inverse strengths of the L2 penalty that probes try; the best on dev counts, as the best step of fine-tuning does.
STRENGTHS = (0.01, 0.1, 1.0)

Predict = Callable[[Sequence[Sequence[str]]], np.ndarray]
"""From one or two columns of n texts to float[n], class numbers or scores."""


def evaluate_glue(config: EvalConfig, glue: GlueConfig) -> tuple[GlueFigures, "Submission | None"]:
    """Fine-tune and score one student as `sd eval --glue` does; glue.json is written after each model."""
    file = figures_file(config, GLUE)
    source = open_glue(config.glue_dir)
    # Two runs over one file would lose each other's figures.
    with lock_folder(file.parent, name=f".lock-{file.name}"):
        run = GlueRun(config, glue, source, file)
        if not config.overwrite:
            run.resume()
        for task in glue.tasks:
            run.score(task)
    return run.figures, write_submission(glue.submission, run.predictions) if glue.submission else None


@dataclass(frozen=True)
class Made:
    """A model for a task."""

    outcome: Outcome
    predict: Predict
    examples: int
    """Number of examples that it learned from."""


class GlueRun:
    """A run over rows, tasks, shares of the training examples, and seeds."""

    def __init__(self, config: EvalConfig, glue: GlueConfig, source: GlueSource, file: Path) -> None:
        """Load the student; its teacher is loaded if a row needs it."""
        self.config, self.source, self.file = glue, source, file
        self._folder, self._given = Path(models_of(config)[0]), config.teacher
        self.student, self._distillation = load_student(self._folder), load_distillation(self._folder)
        device = pick_device(glue.device)
        precision = pick_precision("auto", device, FINETUNING)
        self.fitter, self.logit_fitter = (
            Fitter(each.given(glue.finetuning), device, precision) for each in (STUDENT, LOGITS)
        )
        self.teacher_fitter = Fitter(TEACHER.given(glue.teacher_finetuning), device, precision)
        self.figures = GlueFigures(
            source="a folder of TSV files" if isinstance(source, GlueFolder) else HUB_NAME,
            student=weights_hashes(self._folder),
            computed=f"{str(precision).removeprefix('torch.')} on {device.type}",
            finetuning={**asdict(self.fitter.config), "loop": LOOP, "synthetic": glue.synthetic, "recipe": RECIPE},
            teacher_finetuning=asdict(self.teacher_fitter.config),
            rows={},
            command=command_line("eval", config, "--glue", glue),
        )
        self.predictions: dict[str, tuple[list[int], np.ndarray]] = {}
        """For each part of the submission the rows' numbers and what the best model over the seeds gives them."""

    def resume(self) -> None:
        """Go on with the figures in the file, if there is one; refuse those that depend on something else."""
        if (old := read_figures(self.file, GlueFigures)) is None:
            return
        dependencies = []
        for figures in (old, self.figures):
            # As they come from a file: lists, not tuples.
            nested = msgspec.json.decode(msgspec.json.encode(figures))
            flat = {name: nested[name] for name in ("source", "student", "computed")}
            for name in ("finetuning", "teacher_finetuning"):
                flat |= {f"{name} {key}": value for key, value in nested[name].items()}
            dependencies.append(flat)
        if differing := differing_fields(*dependencies):
            raise UserError(
                f"{self.file} holds figures of another run, which differs in {'; '.join(differing)}; write these "
                "elsewhere with --json, or --overwrite replaces it"
            )
        self.figures = msgspec.structs.replace(old, skipped={}, command=self.figures.command)

    def score(self, task: str) -> None:
        """Make the models of a task. If its data is missing, or a row's teacher, that is skipped with the reason."""
        try:
            data = TaskData.load(self.source, TASKS[task])
        except (TaskMissing, UserError) as error:
            self._skip(task, str(error))
            return
        if data.missing:
            self._skip(task, data.missing)
        for row, fraction in product(self.config.chosen_rows, self.config.fractions):
            best: Made | None = None
            try:
                for made in self._seeds(row, data, fraction):
                    if best is None or main_score(made.outcome.scores) > main_score(best.outcome.scores):
                        best = made
            except UserError as error:
                self._skip(f"{ROWS[row]}: {task}", str(error))
            if self.config.submission and best is not None:
                self._predict(task, best)

    def _seeds(self, row: str, data: TaskData, fraction: float) -> Iterator[Made]:
        """Make a model a seed, unless its scores are there and no predictions are asked for."""
        task, rates = data.task.name, None
        seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        # If only a share of the examples is used, the seed draws it.
        for seed in seeds[:1] if row in WITHOUT_SEED and fraction == 1.0 else seeds:
            scores, made = self.figures.find(row, task, seed, fraction, data.hash), None
            if scores is None or self.config.submission:
                made = self.make(row, data.share(fraction, seed), rates=rates, seed=seed)
                outcome = msgspec.structs.asdict(made.outcome)
                scores = GlueScores(seed=seed, fraction=fraction, examples=made.examples, data=data.hash, **outcome)
                self.figures.add(row, task, scores)
                self._write()
            # The first seed tries all learning rates, and the best serves the others.
            rates = rates or (scores.learning_rate,)
            share = "" if fraction == 1.0 else f", {scores.examples:,} examples"
            progress.log(f"{task}, {row}, seed {seed}{share}: {_describe(scores)}")
            if made is not None:
                yield made

    def _predict(self, task: str, made: Made) -> None:
        """Predict the test splits that are the model's of a task."""
        for name, (part, split) in PARTS.items():
            if _MODEL_OF.get(part.name, part.name) != task:
                continue
            try:
                examples = self.source.load_test(part, split)
                self.predictions[name] = examples.ids, made.predict(examples.texts)
            except (TaskMissing, UserError) as error:
                self._skip(name, str(error))

    def _skip(self, what: str, reason: str) -> None:
        self.figures.skipped[what] = reason
        self._write()

    def _write(self) -> None:
        """Write glue.json, with this day and machine among the environments."""
        if (now := Environment.here()) not in self.figures.environments:
            self.figures.environments.append(now)
        write_figures(self.file, self.figures)

    # The models of the table's rows.

    @cached_property
    def words(self) -> torch.Tensor:
        """The teacher's word embeddings as training begins with them, float32[vocabulary, embedding_dim]."""
        return initial_words(self._distillation, self._folder)

    @cached_property
    def teacher(self) -> TaskTeacher:
        """The teacher that is fine-tuned on tasks."""
        located = find_teacher(self._distillation, self._given)
        # Next to the figures: a student that others share may be read-only.
        return TaskTeacher(located, self.file.parent / "glue", self.teacher_fitter, self.config.synthetic)

    @cached_property
    def teacher_encode(self) -> Encode:
        """The teacher as an encoder of sentences."""
        return open_teacher(self._distillation, self._given, "teacher").encode

    def make(self, row: str, data: TaskData, *, rates: Sequence[float] | None, seed: int) -> Made:
        """Make the model of a row; `rates` are the learning rates to try, if not those of the configuration."""
        count = len(data.train.targets)
        if row == "majority":
            scores, predict = _majority(data)
            return Made(Outcome(scores=scores), predict, count)
        if row in ("frozen", "teacher-frozen"):
            scores, predict = probe(self.student.encode if row == "frozen" else self.teacher_encode, data)
            return Made(Outcome(scores=scores), predict, count)
        model: TaskModel
        if row == "teacher":
            model, outcome = self._finetuned_teacher(data, rates, seed)
        elif row == "distilled-task-specific":
            recipe = TaskRecipe(
                self._folder, self.teacher, self.fitter, self.logit_fitter, data, seed, self.config.device
            )
            best = max(recipe.distilled().values(), key=lambda each: main_score(each.outcome.scores))
            model, outcome, count = best.model, best.outcome, self.teacher.texts(data)
        else:
            train, fitter = data.train, self.fitter
            if row == "task-specific":
                train = self.teacher.logits(data)
                # As long as the recipe learns from logits.
                fitter = self.logit_fitter
            student, count = self.student, len(train.targets)
            if row != "distilled":
                # Tang et al. too begin with word embeddings that others trained.
                student = _untrained(student, seed, words=None if row == "scratch" else self.words)
            start = partial(StudentClassifier.new, student, data.task, seed)
            model, outcome = fitter.fit(start, data, train=train, rates=rates, seed=seed, label=row)
        return Made(
            outcome, lambda texts: self.fitter.predict(model, model.tokenize(texts), data.task.regression), count
        )

    def _finetuned_teacher(
        self, data: TaskData, rates: Sequence[float] | None, seed: int
    ) -> tuple[TeacherClassifier, Outcome]:
        located = self.teacher.located
        if seed == TEACHER_SEED:
            saved, outcome = self.teacher.finetuned(data)
            return TeacherClassifier.load(Located(saved, located.name), data.task, seed), outcome
        start = partial(TeacherClassifier.load, located, data.task, seed)
        return self.teacher_fitter.fit(start, data, rates=rates, seed=seed, label="teacher")


def _describe(result: GlueScores) -> str:
    """Return one line with the metrics of each dev set, in percent."""
    scores = "; ".join(
        f"{dev} " + ", ".join(f"{metric} {100 * value:.1f}" for metric, value in metrics.items())
        for dev, metrics in result.scores.items()
    )
    return scores + (f" (step {result.step:,}, learning rate {result.learning_rate:g})" if result.step else "")


def _untrained(student: Student, seed: int, *, words: torch.Tensor | None) -> Student:
    """Return a student of the same shape that learned nothing yet: the baseline from scratch.

    Its word embeddings are float32[vocabulary, embedding_dim] `words`, or drawn at random.
    """
    torch.manual_seed(seed)
    scratch = StudentEncoder(student.encoder.config)
    with torch.no_grad():
        if words is None:
            torch.nn.init.normal_(scratch.embedding.weight, std=SCALE)
        else:
            scratch.embedding.weight.copy_(words)
    return Student(scratch, student.tokenizer)


def _majority(data: TaskData) -> tuple[Scores, Predict]:
    """Predict the commonest class for all, or the mean score."""
    value, scores = constant(data)
    return scores, lambda texts: np.full(len(texts[0]), value)


def probe(encode: Encode, data: TaskData) -> tuple[Scores, Predict]:
    """Fit logistic regression, or ridge regression for scores, on standardized vectors of sentences or pairs.

    The task's first dev set picks among `STRENGTHS`.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Return float32[n, dim] vectors u of single sentences; [u, v, |u - v|, u * v] of pairs."""
        columns = [encode(column) for column in texts]
        if len(columns) == 1:
            return columns[0]
        u, v = columns
        return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)

    task, train = data.task, data.train
    if not task.regression and len(np.unique(train.targets)) < 2:
        raise UserError("all training examples are of one class, which no probe can learn from")
    vectors, dev_vectors = features(train.texts), {name: features(part.texts) for name, part in data.dev.items()}
    found = []
    for strength in STRENGTHS:
        penalized = Ridge(alpha=1 / strength) if task.regression else LogisticRegression(C=strength, max_iter=1000)
        model = make_pipeline(StandardScaler(), penalized).fit(vectors, train.targets)
        scores = {
            name: task_metrics(task.metrics, part.targets, model.predict(dev_vectors[name]))
            for name, part in data.dev.items()
        }
        found.append((scores, model))
    best_scores, best = max(found, key=lambda one: main_score(one[0]))
    return best_scores, lambda texts: best.predict(features(texts))


# The files that gluebenchmark.com takes: predictions on the test splits, whose labels are not public.

ZIP_NAME = "submission.zip"
LARGEST_SCORE = 5.0
PARTS: dict[str, tuple[GlueTask, str]] = {
    set_name(task.name, split): (task, split) for task in (*TASKS.values(), DIAGNOSTIC) for split in task.test
}
"""The eleven parts of a submission, CoLA to WNLI and AX, each with its task and test split."""


@dataclass(frozen=True)
class Submission:
    """A submission that was written."""

    path: Path
    """The zip to upload."""
    missing: tuple[str, ...]
    """Names of `PARTS` that are not in it; the site refuses a zip that lacks one."""


def write_submission(folder: Path, predictions: Mapping[str, tuple[Iterable[int], Iterable[float]]]) -> Submission:
    """Write NAME.tsv for each part that is given, and submission.zip of them; the same predictions give the same bytes.

    A part has the rows' numbers and n class numbers or, for STS-B, scores, in the order of the test file. Scores beyond
    0 to 5 are clipped.
    """
    contents = {f"{name}.tsv": _tsv(name, *predictions[name]) for name in PARTS if name in predictions}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            # Without a date of its own an entry has the earliest that there is.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name], zipfile.ZIP_DEFLATED)
    write_atomically(folder / ZIP_NAME, packed.getvalue())
    return Submission(folder / ZIP_NAME, tuple(name for name in PARTS if name not in predictions))


def _tsv(name: str, ids: Iterable[int], values: Iterable[float]) -> bytes:
    task, _ = PARTS[name]
    lines = ["index\tprediction"]
    for number, value in zip(ids, map(float, values), strict=True):
        if not math.isfinite(value):
            raise UserError(f"a prediction for {task.name} is {value}: fine-tuning diverged; lower --learning-rate")
        score = min(LARGEST_SCORE, max(0.0, value))
        lines.append(f"{number}\t{f'{score:.3f}' if task.regression else task.labels[int(value)]}")
    return ("\n".join(lines) + "\n").encode()
