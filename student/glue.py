"""Fine-tune and score models on GLUE: what `sd eval --glue` does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import torch

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueSource, TaskMissing, open_glue
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.files import lock_folder
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.pipeline.load import Located
from sentence_distill.student.classifier import initial_student, new_classifier
from sentence_distill.student.config import ROWS, STUDENT, TEACHER, GlueConfig
from sentence_distill.student.files import load_distillation, module_weights
from sentence_distill.student.fit import Fitter, TaskModel
from sentence_distill.student.glue_results import (
    PARTS,
    Result,
    Results,
    StudentFinetuning,
    Submission,
    resume_results,
    write_results,
    write_submission,
)
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.model import load_student
from sentence_distill.student.models import Encode, find_teacher, open_teacher
from sentence_distill.student.start import initial_words
from sentence_distill.student.task_data import Outcome, Scores, TaskData, main_score
from sentence_distill.student.task_teacher import TaskTeacher, TeacherClassifier

# Nothing in these rows is drawn, so one seed is all.
WITHOUT_SEED = ("majority", "frozen", "teacher-frozen")
# Seed of the teacher that rows learn from; it is the same for all their seeds.
TEACHER_SEED = 0
# The tasks whose models predict the test splits of a part of the submission; AX has none of its own.
_MODEL_OF = {"AX": "MNLI"}
# Inverse strengths of the L2 penalty that probes try; the best on dev counts, as the best step of fine-tuning does.
STRENGTHS = (0.01, 0.1, 1.0)

Predict = Callable[[Sequence[Sequence[str]]], np.ndarray]
"""From one or two columns of n texts to float[n], class numbers or scores."""


def evaluate_glue(
    config: GlueConfig,
    student: Path,
    json_file: Path,
    *,
    glue_dir: Path | None = None,
    teacher: str | None = None,
    fresh: bool = False,
) -> tuple[Results, Submission | None]:
    """Fine-tune and score a student on each task; the figures so far are written after each model.

    Args:
        config: what to make.
        student: folder of the student.
        json_file: where the figures go.
        glue_dir: folder of the official TSV files; None takes the hub's copy.
        teacher: see `open_teacher`.
        fresh: begin the file anew, whatever it holds.
    """
    source = open_glue(glue_dir)
    # Two runs over one file would lose each other's figures.
    with lock_folder(json_file.parent, name=f".lock-{json_file.name}"):
        # Next to the figures: a student that others share may be read-only.
        maker = RowMaker(config, student, teacher, json_file.parent / "glue")
        results = Results(
            source="nyu-mll/glue" if glue_dir is None else "a folder of TSV files",
            student=[file_hash(file) for file in module_weights(student)],
            computed=f"{str(maker.fitter.precision).removeprefix('torch.')} on {maker.fitter.device.type}",
            finetuning=StudentFinetuning(**asdict(maker.fitter.config), synthetic=config.synthetic),
            teacher_finetuning=config.teacher_finetuning.over(TEACHER),
        )
        if not fresh:
            results = resume_results(json_file, results)
        run = _Run(config, source, maker, results, json_file)
        for task in config.tasks:
            run.score(task)
    return results, write_submission(config.submission, run.predictions) if config.submission else None


@dataclass(frozen=True)
class Made:
    """A model for a task."""

    outcome: Outcome
    predict: Predict
    examples: int
    """Number of examples that it learned from."""


class RowMaker:
    """Makes the models of rows; the teacher is asked for only if a row needs it."""

    def __init__(self, config: GlueConfig, folder: Path, teacher: str | None, work: Path) -> None:
        """Load the student; see `evaluate_glue`. Teachers that are fine-tuned on tasks go to `work`."""
        self.student, self._distillation = load_student(folder), load_distillation(folder)
        device = pick_device(config.device)
        precision = pick_precision("auto", device, FINETUNING)
        self.fitter = Fitter(config.finetuning.over(STUDENT), device, precision)
        self._teacher_fitter = Fitter(config.teacher_finetuning.over(TEACHER), device, precision)
        self._folder, self._given, self._work, self._synthetic = folder, teacher, work, config.synthetic

    @cached_property
    def words(self) -> torch.Tensor:
        """The teacher's word embeddings as training begins with them, float32[vocabulary, embedding_dim]."""
        return initial_words(self._distillation, self._folder)

    @cached_property
    def teacher(self) -> TaskTeacher:
        """The teacher that is fine-tuned on tasks."""
        located = find_teacher(self._distillation, self._given)
        return TaskTeacher(located, self._work, self._teacher_fitter, self._synthetic)

    @cached_property
    def teacher_encode(self) -> Encode:
        """The teacher as an encoder of sentences."""
        return open_teacher(self._distillation, self._given, "teacher").encode

    def make(self, row: str, data: TaskData, *, rates: Sequence[float] | None, seed: int) -> Made:
        """Make the model of a row.

        Args:
            row: a name in `ROWS`.
            data: the task.
            rates: learning rates to try; None tries those of the configuration.
            seed: seed of all that is drawn.

        Raises:
            UserError: the teacher is needed and not here, or fine-tuning diverged.
        """
        if row == "majority":
            return _majority(data)
        if row in ("frozen", "teacher-frozen"):
            scores, predict = probe(self.student.encode if row == "frozen" else self.teacher_encode, data)
            return Made(Outcome(scores=scores), predict, len(data.train.targets))
        if row == "teacher":
            return self._finetuned_teacher(data, rates, seed)
        train = self.teacher.logits(data, TEACHER_SEED) if row.endswith("task-specific") else data.train
        student = self.student
        if not row.startswith("distilled"):
            # Tang et al. too begin with word embeddings that others trained.
            student = initial_student(student, seed, words=None if row == "scratch" else self.words)
        start = partial(new_classifier, student, data.task, seed)
        model, outcome = self.fitter.fit(start, data, train=train, rates=rates, seed=seed, label=row)
        return self._made(model, outcome, data, len(train.targets))

    def _finetuned_teacher(self, data: TaskData, rates: Sequence[float] | None, seed: int) -> Made:
        teacher, located = self.teacher, self.teacher.located
        if seed == TEACHER_SEED:
            saved, outcome = teacher.finetuned(data, seed)
            model = TeacherClassifier.load(Located(saved, located.name), data.task, seed)
        else:
            start = partial(TeacherClassifier.load, located, data.task, seed)
            model, outcome = teacher.fitter.fit(start, data, rates=rates, seed=seed, label="teacher")
        return self._made(model, outcome, data, len(data.train.targets))

    def _made(self, model: TaskModel, outcome: Outcome, data: TaskData, examples: int) -> Made:
        return Made(
            outcome, lambda texts: self.fitter.predict(model, model.tokenize(texts), data.task.regression), examples
        )


def _majority(data: TaskData) -> Made:
    """Predict the commonest class for all, or the mean score."""
    labels = data.train.targets
    constant = float(labels.mean() if data.task.regression else np.bincount(labels.astype(int)).argmax())

    def predict(texts: Sequence[Sequence[str]]) -> np.ndarray:
        return np.full(len(texts[0]), constant)

    scores = {
        name: task_metrics(data.task.metrics, part.targets, predict(part.texts)) for name, part in data.dev.items()
    }
    return Made(Outcome(scores=scores), predict, len(labels))


def probe(encode: Callable[[Sequence[str]], np.ndarray], data: TaskData) -> tuple[Scores, Predict]:
    """Fit logistic regression, or ridge regression for scores, on standardized vectors of sentences or pairs.

    Args:
        encode: n sentences to float32[n, dim].
        data: the task; its first dev set picks among `STRENGTHS`.

    Raises:
        UserError: the examples are all of one class.
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


class _Run:
    """A run over rows, tasks, shares of the training examples, and seeds."""

    def __init__(
        self, config: GlueConfig, source: GlueSource, maker: RowMaker, results: Results, json_file: Path
    ) -> None:
        self._config, self._source, self._maker = config, source, maker
        self._results, self._json_file = results, json_file
        self.predictions: dict[str, tuple[list[int], np.ndarray]] = {}
        """For each part of the submission the rows' numbers and what the best model over the seeds gives them."""

    def score(self, task: str) -> None:
        """Make the models of a task. If its data is missing, or a row's teacher, that is skipped with the reason."""
        try:
            data = TaskData.load(self._source, TASKS[task])
        except (TaskMissing, UserError) as error:
            self._skip(task, str(error))
            return
        if data.missing:
            self._skip(task, data.missing)
        for row, fraction in product(self._config.chosen_rows, self._config.fractions):
            best: Made | None = None
            try:
                for made in self._seeds(row, data, fraction):
                    if best is None or main_score(made.outcome.scores) > main_score(best.outcome.scores):
                        best = made
            except UserError as error:
                self._skip(f"{ROWS[row]}: {task}", str(error))
            if self._config.submission and best is not None:
                self._predict(task, best)

    def _seeds(self, row: str, data: TaskData, fraction: float) -> Iterator[Made]:
        """Make a model a seed, unless its result is there and no predictions are asked for."""
        task, rates = data.task.name, None
        seeds = range(self._config.seed, self._config.seed + self._config.seeds)
        # If only a share of the examples is used, the seed draws it.
        for seed in seeds[:1] if row in WITHOUT_SEED and fraction == 1.0 else seeds:
            result, made = self._results.find(row, task, seed, fraction, data.hash), None
            if result is None or self._config.submission:
                made = self._maker.make(row, data.share(fraction, seed), rates=rates, seed=seed)
                figures = msgspec.structs.asdict(made.outcome)
                result = Result(seed=seed, fraction=fraction, examples=made.examples, data=data.hash, **figures)
                self._results.add(row, task, result)
                write_results(self._json_file, self._results)
            # The first seed tries all learning rates, and the best serves the others.
            rates = rates or (result.learning_rate,)
            share = "" if fraction == 1.0 else f", {result.examples:,} examples"
            progress.log(f"{task}, {row}, seed {seed}{share}: {_describe(result)}")
            if made is not None:
                yield made

    def _predict(self, task: str, made: Made) -> None:
        """Predict the test splits that are the model's of a task."""
        for name, (part, split) in PARTS.items():
            if _MODEL_OF.get(part.name, part.name) != task:
                continue
            try:
                examples = self._source.load_test(part, split)
                self.predictions[name] = examples.ids, made.predict(examples.texts)
            except (TaskMissing, UserError) as error:
                self._skip(name, str(error))

    def _skip(self, what: str, reason: str) -> None:
        self._results.skipped[what] = reason
        write_results(self._json_file, self._results)


def _describe(result: Result) -> str:
    """Return one line with the metrics of each dev set, in percent."""
    scores = "; ".join(
        f"{dev} " + ", ".join(f"{metric} {100 * value:.1f}" for metric, value in metrics.items())
        for dev, metrics in result.scores.items()
    )
    return scores + (f" (step {result.step:,}, learning rate {result.learning_rate:g})" if result.step else "")
