"""The rows of GLUE's table: each a way to get a model for a task."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sentence_distill.pipeline.locate import Located
from sentence_distill.student.evaluation.models import Encode
from sentence_distill.student.finetuning.classifier import StudentClassifier, initial_student
from sentence_distill.student.finetuning.finetune import Outcome, TaskModel, predict
from sentence_distill.student.finetuning.fit import Fitted, Fitter
from sentence_distill.student.finetuning.probe import probe
from sentence_distill.student.finetuning.task_data import TaskData
from sentence_distill.student.finetuning.task_distillation import TaskTeacher
from sentence_distill.student.finetuning.task_teacher import TeacherClassifier
from sentence_distill.student.metrics import task_metrics
from sentence_distill.student.model import Student

ROWS = {
    "majority": "majority class",
    "scratch": "BiLSTM from scratch",
    "scratch-words": "BiLSTM from scratch, teacher's word embeddings",
    "task-specific": "task-specific distillation alone",
    "frozen": "distilled, frozen",
    "distilled": "distilled",
    "distilled-task-specific": "distilled + task-specific",
    "teacher-frozen": "teacher, frozen",
    "teacher": "teacher, fine-tuned",
}
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
