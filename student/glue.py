"""Fine-tune and score models on GLUE."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder, GlueHub, TaskMissing
from sentence_distill.pipeline.load import Located
from sentence_distill.student.classifier import StudentClassifier, initial_student
from sentence_distill.student.config import ROWS
from sentence_distill.student.finetune import Outcome, TaskModel, main_score, predict
from sentence_distill.student.fit import Fitted, Fitter, probe
from sentence_distill.student.glue_results import PARTS, Result, Results
from sentence_distill.student.metrics import shown_score, task_metrics
from sentence_distill.student.model import Student
from sentence_distill.student.models import Encode
from sentence_distill.student.task_data import TaskData
from sentence_distill.student.task_distillation import TaskTeacher
from sentence_distill.student.task_teacher import TeacherClassifier

# Nothing in them is drawn, so one seed is all.
WITHOUT_SEED = ("majority", "frozen", "teacher-frozen")
# The row of the fine-tuned teacher, and those that learn from its logits; it is the same for all their seeds.
TEACHER_SEED = 0

Predict = Callable[[Sequence[Sequence[str]]], np.ndarray]


@dataclass(frozen=True)
class Made:
    """A model for a task.

    Args:
        outcome: its scores.
        predict: from one or two columns of n texts to float[n], class numbers or scores.
        learning_rate: the best; 0 where nothing was fine-tuned.
        examples: how many it learned from.
    """

    outcome: Outcome
    predict: Predict
    learning_rate: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes the models of rows.

    Args:
        student: the distilled one; it stays as it is.
        fitter: how students are fine-tuned.
        words: gives float32[vocabulary, embedding_dim], the teacher's word embeddings as training begins with them.
        teacher: gives the teacher that is fine-tuned on tasks.
        teacher_encode: gives the teacher as an encoder of sentences. These three are asked for only where a row needs
            them, and raise a UserError where the teacher is not here.
    """

    student: Student
    fitter: Fitter
    words: Callable[[], torch.Tensor]
    teacher: Callable[[], TaskTeacher]
    teacher_encode: Callable[[], Encode]

    def make(self, row: str, data: TaskData, *, rates: Sequence[float] | None, seed: int) -> Made:
        """Make the model of a row.

        Args:
            row: a name in `ROWS`.
            data: the task.
            rates: learning rates to try; None tries those of the configuration.
            seed: of all that is drawn.

        Raises:
            UserError: the teacher is needed and not here, or fine-tuning diverged.
        """
        if row == "majority":
            return _majority(data)
        if row in ("frozen", "teacher-frozen"):
            return _probed(self.student.encode if row == "frozen" else self.teacher_encode(), data)
        if row == "teacher":
            return self._finetuned_teacher(data, rates, seed)
        train = data.train
        if row.endswith("task-specific"):
            train = self.teacher().logits(data, TEACHER_SEED)
        start = partial(self._start, row, data, seed)
        fitted = self.fitter.fit(start, data, train=train, rates=rates, seed=seed, label=row)
        return self._made(fitted.model, fitted, data, len(train.targets))

    def _start(self, row: str, data: TaskData, seed: int) -> StudentClassifier:
        """A student with a new head: distilled, or of the same shape and from scratch."""
        if row.startswith("distilled"):
            return new_classifier(self.student, data, seed)
        # Tang et al. too begin with word embeddings that others trained.
        words = None if row == "scratch" else self.words()
        return new_classifier(initial_student(self.student, seed, words=words), data, seed)

    def _finetuned_teacher(self, data: TaskData, rates: Sequence[float] | None, seed: int) -> Made:
        teacher, examples = self.teacher(), len(data.train.targets)
        start = partial(TeacherClassifier.load, teacher.located, data.task, seed)
        if seed != TEACHER_SEED:
            fitted = teacher.fitter.fit(start, data, rates=rates, seed=seed, label="teacher")
            return self._made(fitted.model, fitted, data, examples)
        saved, outcome, rate = teacher.finetuned(data, seed)
        model = TeacherClassifier.load(Located(saved, teacher.located.name), data.task, seed)
        return self._made(model, Fitted(model, outcome, rate), data, examples)

    def _made(self, model: TaskModel, fitted: Fitted[Any], data: TaskData, examples: int) -> Made:
        def predictions(texts: Sequence[Sequence[str]]) -> np.ndarray:
            tokens = model.tokenize(texts)
            return predict(model, tokens, len(data.task.labels), self.fitter.device, self.fitter.precision)

        return Made(fitted.outcome, predictions, fitted.learning_rate, examples)


def new_classifier(student: Student, data: TaskData, seed: int) -> StudentClassifier:
    """A copy of a student with a new head for a task."""
    copy = Student(deepcopy(student.encoder), student.tokenizer)
    torch.manual_seed(seed)
    return StudentClassifier(copy, len(data.train.texts), max(1, len(data.task.labels)))


def _majority(data: TaskData) -> Made:
    """The commonest class for all, or the mean score."""
    labels = data.train.targets
    constant = float(np.bincount(labels.astype(int)).argmax()) if data.task.labels else float(labels.mean())

    def predictions(texts: Sequence[Sequence[str]]) -> np.ndarray:
        return np.full(len(texts[0]), constant)

    return Made(_outcome(data, predictions), predictions, 0.0, len(labels))


def _probed(encode: Encode, data: TaskData) -> Made:
    scores, predictions = probe(encode, data.train, data.dev, classes=len(data.task.labels), metrics=data.task.metrics)
    return Made(Outcome(scores=scores, step=0, seconds=0.0), predictions, 0.0, len(data.train.targets))


def _outcome(data: TaskData, predictions: Predict) -> Outcome:
    scores = {
        name: task_metrics(data.task.metrics, part.targets, predictions(part.texts)) for name, part in data.dev.items()
    }
    return Outcome(scores=scores, step=0, seconds=0.0)


# GLUE: fills in the table of rows and tasks, one model after the other, and predicts the test sets.

# The tasks whose models predict the test splits of a part of the submission; AX has none of its own.
_MODEL_OF = {"AX": "MNLI"}
Predictions = dict[str, tuple[list[int], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class GlueRun:
    """A run over rows, tasks, shares of the training examples, and seeds.

    Args:
        source: where the tasks come from.
        maker: makes the models.
        results: where figures go; those that are there are not made again.
        seeds: of fine-tuning. The first tries all learning rates, and the best serves the others.
        fractions: shares of the training examples.
    """

    source: GlueFolder | GlueHub
    maker: RowMaker
    results: Results
    seeds: Sequence[int]
    fractions: Sequence[float] = (1.0,)

    def run(
        self, rows: Sequence[str], tasks: Sequence[str], predictions: Predictions | None = None
    ) -> Iterator[tuple[str, str, Result]]:
        """Fill in the table, task by task; yield row, task and result as each is there.

        A task whose data is missing, or a row whose teacher is, goes to `results.skipped` and the others go on.

        Args:
            rows: names in `ROWS`.
            tasks: names in `TASKS`.
            predictions: gathers, for each part of a submission, the rows' numbers and the classes or scores that the
                best model over the seeds of a row gives them; all models are made anew for it.
        """
        for task in tasks:
            try:
                data = self._load(task)
            except (TaskMissing, UserError) as error:
                self.results.skip(task, str(error))
                continue
            for row, fraction in product(rows, self.fractions):
                best: Made | None = None
                try:
                    for result, made in self._cells(row, data, fraction, anew=predictions is not None):
                        if made and (not best or main_score(made.outcome.scores) > main_score(best.outcome.scores)):
                            best = made
                        yield row, task, result
                except UserError as error:
                    self.results.skip(f"{ROWS[row]}: {task}", str(error))
                if predictions is not None and best is not None:
                    predictions |= self._predictions(task, best)

    def _predictions(self, task: str, made: Made) -> Predictions:
        """Those of the test splits that a task's model predicts."""
        predictions: Predictions = {}
        for name, (part, split) in PARTS.items():
            if _MODEL_OF.get(part.name, part.name) != task:
                continue
            try:
                examples = self.source.load_test(part, split)
                predictions[name] = examples.ids, made.predict(examples.texts)
            except (TaskMissing, UserError) as error:
                self.results.skip(name, str(error))
        return predictions

    def _load(self, task: str) -> TaskData:
        data = TaskData.load(self.source, TASKS[task])
        if data.missing:
            self.results.skip(task, data.missing)
        return data

    def _cells(self, row: str, data: TaskData, fraction: float, *, anew: bool) -> Iterator[tuple[Result, Made | None]]:
        """One result a seed, with its model where it was made now.

        Args:
            row: which.
            data: the task, with all its examples.
            fraction: of them that are used.
            anew: make models even where their results are there.
        """
        task, rates = data.task.name, None
        # Where only a share of the examples is used, the seed draws it.
        for seed in self.seeds[:1] if row in WITHOUT_SEED and fraction == 1.0 else self.seeds:
            result, made = self.results.find(row, task, seed, fraction, data.hash), None
            if result is None or anew:
                made = self.maker.make(row, data.share(fraction, seed), rates=rates, seed=seed)
                result = Result(
                    seed=seed,
                    fraction=fraction,
                    scores=made.outcome.scores,
                    learning_rate=made.learning_rate,
                    step=made.outcome.step,
                    examples=made.examples,
                    seconds=round(made.outcome.seconds, 1),
                    data=data.hash,
                )
                self.results.add(row, task, result)
            rates = rates or (result.learning_rate,)
            yield result, made


def describe(result: Result) -> str:
    """One line for a result."""
    detail = f" (step {result.step:,}, learning rate {result.learning_rate:g})" if result.step else ""
    return describe_scores(result.scores) + detail


def describe_scores(scores: dict[str, dict[str, float]]) -> str:
    """The metrics of each dev set, in per cent."""
    return "; ".join(
        f"{dev} " + ", ".join(f"{metric} {100 * value:.1f}" for metric, value in metrics.items())
        for dev, metrics in scores.items()
    )


def describe_dev(scores: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
    """The metrics of each dev set, of so many examples."""
    parts = []
    for dev, metrics in scores.items():
        shown = (f"{metric} {shown_score(metric, value, counts[dev])}" for metric, value in metrics.items())
        parts.append(f"{dev} {', '.join(shown)}")
    return "; ".join(parts)
