"""Fine-tune a teacher or a student on one task: what `sd finetune` does."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sentence_distill.data import progress
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.student.classifier import (
    StudentClassifier,
    match_labels,
    new_classifier,
    rescale,
    save_classifier,
)
from sentence_distill.student.config import STUDENT, TEACHER, FinetuneConfig
from sentence_distill.student.files import is_student, load_distillation, moved_record
from sentence_distill.student.fit import Fitter
from sentence_distill.student.metrics import shown_score
from sentence_distill.student.model import load_student
from sentence_distill.student.models import find_model
from sentence_distill.student.task_data import (
    Labelled,
    Outcome,
    TaskData,
    from_logits,
    not_a_student,
    read_task,
    scale_of,
)
from sentence_distill.student.task_teacher import TeacherClassifier


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model that is not written yet."""

    model: StudentClassifier | TeacherClassifier
    outcome: Outcome
    data: TaskData
    source: Path
    """Folder of the model that it was made of."""
    distillation: dict[str, Any]
    """Record of the student that it was made of; empty for a teacher."""

    @property
    def is_student(self) -> bool:
        """True for a student, False for a teacher."""
        return isinstance(self.model, StudentClassifier)

    def save(self, folder: Path) -> None:
        """Write a student for `sd predict`, or a teacher for `sd embed --teacher`."""
        if isinstance(self.model, StudentClassifier):
            record = moved_record(self.distillation, self.source, folder)
            save_classifier(folder, self.model, self.outcome, self.data, record)
        else:
            self.model.save(folder, self.data.task, self.outcome)

    def describe(self) -> str:
        """Return one line with the scores of each dev set."""
        parts = []
        for dev, metrics in self.outcome.scores.items():
            count = self.data.dev_counts[dev]
            shown = (f"{metric} {shown_score(metric, value, count)}" for metric, value in metrics.items())
            parts.append(f"{dev} {', '.join(shown)}")
        kind = "student" if self.is_student else "teacher"
        return f"{kind} fine-tuned on {self.data.task.name}, {'; '.join(parts)} (best at step {self.outcome.step:,})"


def finetune(config: FinetuneConfig, data: TaskData | None = None) -> Finetuned:
    """Fine-tune a teacher or a student.

    Args:
        config: what to do.
        data: what `read_task` returns for the config, if it was called before.

    Raises:
        UserError: an input can't be used, or fine-tuning diverged.
    """
    data = data or read_task(config)
    located = find_model(config.model)
    device = pick_device(config.device)
    of_student = is_student(str(located.folder))
    # Read now: the folder may be the one that is replaced.
    distillation = load_distillation(located.folder) if of_student else {}
    if config.logits is not None and not of_student:
        raise not_a_student(config.model)
    fitter = Fitter(
        config.finetuning.over(STUDENT if of_student else TEACHER), device, pick_precision("auto", device, FINETUNING)
    )
    model: StudentClassifier | TeacherClassifier
    if of_student:
        model, outcome = _finetune_student(located.folder, data, config, fitter)
    else:
        _announce(fitter, data.train)
        start = partial(TeacherClassifier.load, located, data.task, config.seed)
        model, outcome = fitter.fit(start, data, seed=config.seed, label="finetune")
    progress.log(outcome.ended)
    return Finetuned(model, outcome, data, located.folder, distillation)


def _finetune_student(
    folder: Path, data: TaskData, config: FinetuneConfig, fitter: Fitter
) -> tuple[StudentClassifier, Outcome]:
    student, train = load_student(folder), data.train
    scores_of_teacher = config.logits is not None and data.task.regression
    if config.logits is not None:
        train = from_logits(config.logits, data)
    if scores_of_teacher:
        # Whatever their unit is, so that a learning rate serves all; `match_labels` brings them to the labels' after.
        mean, deviation = scale_of(train.targets, "--logits: the teacher's scores")
        train = Labelled(train.texts, (train.targets - mean) / deviation)
    _announce(fitter, train)
    start = partial(new_classifier, student, data.task, config.seed)
    model, outcome = fitter.fit(start, data, train=train, seed=config.seed, label="finetune")
    if scores_of_teacher:
        match_labels(model, data.train, fitter)
    if data.task.regression:
        # To the unit of the user's file.
        rescale(model, data.deviation, data.mean)
    return model, outcome


def _announce(fitter: Fitter, train: Labelled) -> None:
    progress.log(f"fine-tuning: {fitter.config.describe(len(train.targets))}")
