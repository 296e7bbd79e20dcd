"""Distil a task: fine-tune a teacher on labels, embed the task's text with it, and train a student on what it gives.

First on the vectors of the teacher's last layers, then on its logits (Tang et al. 2019, arXiv:1903.12136), then on
the labels; dev picks. Each stage lies in a folder named after all that it depends on, so a run that was stopped goes
on, and one with other options repeats only what they change.
"""

import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.student.classifier import StudentClassifier, TaskModel, TeacherClassifier, load_classifier
from sentence_distill.student.config import FinetuneConfig, TrainConfig
from sentence_distill.student.figures import DISTILLATION, Outcome, Scores, TaskRecord, load_distillation, main_score
from sentence_distill.student.files import TASK, is_student, module_weights
from sentence_distill.student.finetune import STUDENT, TEACHER, Finetuned, Fitter, constant, fit_student
from sentence_distill.student.model import load_student
from sentence_distill.student.models import find_model
from sentence_distill.student.task_data import Labelled, TaskData
from sentence_distill.student.task_teacher import TaskTeacher
from sentence_distill.student.train import train_student

# Of logits the student learns far longer than of labels: there is more text, and no overfitting seen.
_LOGIT_EPOCHS, _LOGIT_STEPS = 20, 4000
_VECTOR_EPOCHS = 6
# The labels come last and correct; a large step would undo what the logits taught.
_LABEL_RATE = 3e-4
_TIMED_TEXTS = 512


@dataclass(frozen=True)
class Row:
    """One line of the table at the end."""

    title: str
    scores: Scores
    seconds: float | None = None
    """Of training; None if there was none."""
    sentences_per_second: float | None = None


@dataclass(frozen=True)
class Distilled:
    """The student that dev picked, and all that were made on the way."""

    finetuned: Finetuned
    rows: list[Row]


class TaskRecipe:
    """The stages of one task, with one student and one teacher."""

    def __init__(self, config: FinetuneConfig, data: TaskData, place: Path) -> None:
        """Find student and teacher; `place` is where the stages' folders go."""
        assert config.teacher is not None
        self._config, self._data, self._place = config, data, place
        self._student = find_model(config.model)
        if not is_student(str(self._student.folder)):
            raise UserError(f"--teacher is what a student learns from, and {config.model} is none")
        device = pick_device(config.device)
        precision = pick_precision("auto", device, FINETUNING)
        self._fitter = Fitter(STUDENT.given(config.finetuning), device, precision)
        teacher_fitter = Fitter(TEACHER, device, precision)
        located = locate_teacher(config.teacher)
        self._teacher = TaskTeacher(
            located, place, teacher_fitter, config.synthetic, config.unlabeled, config.text_column
        )

    def run(self) -> Distilled:
        """Do what is missing of all stages; return the best student and the table."""
        data, config = self._data, self._config
        progress.log(f"stages lie in {self._place}; what is there is not done again")
        alone = self._fitted("labels alone", self._student.folder, data.train, self._fitter, [])
        teacher, of_teacher = self._teacher.finetuned(data)
        targets = self._teacher.targets(data)
        vectors = self._vectors(targets.vectors)
        shards = require_manifest(targets.logits).fingerprint.plan
        long = replace(STUDENT, epochs=_LOGIT_EPOCHS, max_steps=_LOGIT_STEPS).given(config.finetuning)
        logits = self._teacher.logits(data)
        distilled = self._fitted("distilled", vectors, logits, replace(self._fitter, config=long), [shards])
        made = [("labels alone", alone), ("distilled", distilled)]
        if not data.task.regression:
            corrected = self._corrected(distilled, [shards])
            made.append(("distilled, then labels", corrected))
        rows = [Row("majority class" if data.task.labels else "mean of the scores", constant(data)[1])]
        rows += [
            Row(f"student, {title}", each.outcome.scores, each.outcome.seconds, self._speed(each.model))
            for title, each in made
        ]
        model = TeacherClassifier.load(Located(teacher, self._teacher.located.name), data.task, 0)
        rows.append(Row("teacher, fine-tuned", of_teacher.scores, of_teacher.seconds, self._speed(model)))
        best = max((each for _, each in made), key=lambda each: main_score(each.outcome.scores))
        return Distilled(best, rows)

    def _vectors(self, shards: Path) -> Path:
        """Return the folder of the student that learned the vectors of the teacher's layers."""
        fingerprint = require_manifest(shards).fingerprint
        start = [bytes_hash(file.read_bytes()) for file in module_weights(self._student.folder)]
        key = self._key([fingerprint.plan, *fingerprint.teacher_weights, *start, str(_VECTOR_EPOCHS)])
        folder = self._place / f"vectors-{key}"
        if not (folder / DISTILLATION).exists():
            train_student(
                TrainConfig(
                    shards=shards,
                    out=folder,
                    init=str(self._student.folder),
                    epochs=_VECTOR_EPOCHS,
                    seed=self._config.seed,
                    device=self._config.device,
                )
            )
        return folder

    def _key(self, parts: list[str]) -> str:
        parts = [*parts, self._data.hash, str(self._config.seed), f"{self._fitter.precision}"]
        return bytes_hash(json.dumps(parts).encode())[:8]

    def _fitted(self, name: str, student: Path, train: Labelled, fitter: Fitter, depends: list[str]) -> Finetuned:
        """Return a student fine-tuned on examples, as it was saved by an earlier run if that is there."""
        weights = [bytes_hash(file.read_bytes()) for file in module_weights(student)]
        return self._saved(
            name,
            student,
            [*weights, *depends, repr(fitter.config)],
            lambda: fit_student(load_student(student), self._data, train, self._config.seed, fitter, label=name),
        )

    def _corrected(self, distilled: Finetuned, depends: list[str]) -> Finetuned:
        """Return the distilled student trained on with the labels, at a small rate."""
        config = replace(self._fitter.config, learning_rates=(_LABEL_RATE,))
        fitter = replace(self._fitter, config=config)
        model = distilled.model
        assert isinstance(model, StudentClassifier)
        start = partial(deepcopy, model)
        name = "distilled, then labels"
        weights = bytes_hash(b"".join(array.tobytes() for array in model.head_arrays().values()))
        return self._saved(
            name,
            distilled.source,
            [weights, *depends, repr(config)],
            lambda: fitter.fit(start, self._data, seed=self._config.seed, label=name),
        )

    def _saved(
        self, name: str, source: Path, depends: list[str], fit: Callable[[], tuple[StudentClassifier, Outcome]]
    ) -> Finetuned:
        folder = self._place / f"{name.replace(', ', '-').replace(' ', '-')}-{self._key(depends)}"
        distillation = load_distillation(source)
        if (folder / TASK).exists() and (folder / DISTILLATION).exists():
            model, _ = load_classifier(folder)
            outcome = msgspec.json.decode((folder / TASK).read_bytes(), type=TaskRecord)
        else:
            model, outcome = fit()
            Finetuned(model, outcome, self._data, source, distillation).save(folder)
        found = Finetuned(model, outcome, self._data, source, distillation)
        progress.log(f"{name}: {found.describe()}")
        return found

    def _speed(self, model: TaskModel) -> float:
        """Return the examples per second that a model labels, of some of the training examples."""
        texts = [list(column[:_TIMED_TEXTS]) for column in self._data.train.texts]
        started = time.perf_counter()
        self._fitter.predict(model, model.tokenize(texts), self._data.task.regression)
        return len(texts[0]) / (time.perf_counter() - started)
