"""A classifier of your own labels: train it, keep it in a folder."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples, GlueTask, Task
from sentence_distill.data.labelled import LabelledTable, examples_of, hold_out, make_task
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.classifier import StudentClassifier, rescale
from sentence_distill.student.files import HEAD, STUDENT_FILES, TASK, module_paths
from sentence_distill.student.finetune import Labelled
from sentence_distill.student.fit import Fitted
from sentence_distill.student.model import load_student, save_student
from sentence_distill.student.task_data import TaskData

_MODULE_FILES = ("*.json", "*.safetensors")


def save_classifier(
    folder: Path, fitted: Fitted[StudentClassifier], data: TaskData, distillation: dict[str, Any]
) -> None:
    """Write a fine-tuned student.

    Args:
        folder: where to; made where it is missing.
        fitted: the student with its head, and its scores.
        data: what it was fine-tuned on.
        distillation: of the student that it was made of.
    """
    task, scores = data.task, fitted.outcome.scores
    counts = {dev: len(part.targets) for dev, part in data.dev.items()}
    # Fidelity was measured before the encoder moved.
    glue_task = task.hub if isinstance(task, GlueTask) else None
    # Nor is what was made of a user's examples under the licence of what it was made of.
    changed = {"metrics": {task.name: scores}, "dev_examples": counts, "glue_task": glue_task, "licence": None}
    head = {name: value.cpu().contiguous() for name, value in fitted.model.head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / HEAD, save(head))
    record = {
        "task": task.name,
        "text_columns": task.plain_columns,
        "label_column": task.label,
        "labels": task.labels,
        "metrics": task.metrics,
        "learning_rate": fitted.learning_rate,
        "dev_examples": counts,
        **asdict(fitted.outcome),
    }
    write_json(folder / TASK, record)
    # Last, so that no student without its head passes for a finished one.
    save_student(folder, fitted.model.student, {**distillation, **changed})


def is_classifier(folder: Path) -> bool:
    """Return whether the student in a folder was fine-tuned on a task."""
    return (folder / TASK).exists() or (folder / HEAD).exists()


def load_classifier(folder: Path) -> tuple[StudentClassifier, Task]:
    """Read a fine-tuned student, and the task that it knows.

    Raises:
        UserError: the folder holds none.
    """
    try:
        record = json.loads((folder / TASK).read_text(encoding="utf-8"))
        task = Task(
            name=record["task"],
            columns=tuple(record["text_columns"]),
            label=record["label_column"],
            labels=tuple(record["labels"]),
            metrics=tuple(record["metrics"]),
        )
        classifier = StudentClassifier(load_student(folder), len(task.columns), max(1, len(task.labels)))
        classifier.head.load_state_dict(load_file(folder / HEAD))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no fine-tuned student ({error}); make one: sd finetune STUDENT") from error
    return classifier.eval(), task


def student_files(folder: Path) -> dict[str, Path]:
    """The files of a student that loading reads, with its head where it is fine-tuned, by their paths in its folder."""
    files = {name: folder / name for name in STUDENT_FILES if (folder / name).exists()}
    for module in set(module_paths(folder).values()) - {folder}:
        found = [file for pattern in _MODULE_FILES for file in module.glob(pattern)]
        files |= {file.relative_to(folder).as_posix(): file for file in found}
    return files


# A user's own task: labelled tables, with what is held out of them, as fine-tuning takes them.


@dataclass(frozen=True)
class OwnTask:
    """A task with its examples.

    Args:
        data: the examples. Scores of a regression are brought to mean 0 and deviation 1, so that a learning rate serves
            ratings of 1 to 5 and prices alike; neither correlation sees it.
        mean: of the training scores; 0 for classes.
        deviation: of the training scores; 1 for classes.
    """

    data: TaskData
    mean: float
    deviation: float

    def restore_scale(self, model: StudentClassifier) -> None:
        """Let a model that was fine-tuned on `data` give scores as they stand in the user's files."""
        rescale(model, self.deviation, self.mean)

    def describe(self) -> str:
        """One line: how many examples of what."""
        data, train = self.data, self.data.train.targets
        sizes = f"{len(train):,} training and {len(data.dev['dev'].targets):,} dev examples"
        if data.task.regression:
            return f"regression, {sizes}, scores {self.mean:.4g} ± {self.deviation:.4g}"
        counts = Counter(train.astype(int).tolist())
        commonest = [f"{data.task.labels[number]} {count:,}" for number, count in counts.most_common(10)]
        others = ", …" if len(counts) > 10 else ""
        return f"{len(data.task.labels)} classes, {sizes} (training: {', '.join(commonest)}{others})"


def make_own_task(
    name: str,
    train: LabelledTable,
    dev: LabelledTable | None,
    *,
    columns: tuple[str, ...],
    label: str,
    regression: bool | None = None,
    seed: int,
) -> OwnTask:
    """Make a task of tables.

    Args:
        name: of it.
        train: training examples.
        dev: those that pick the best step; None holds out a tenth of the training examples.
        columns: the one or two columns of texts, see `read_labelled`.
        label: the column of labels.
        regression: whether labels are scores; None decides with `is_score`.
        seed: draws what is held out.

    Raises:
        UserError: a row can't be used; it says which.
    """
    task = make_task(name, train, columns, label, regression)
    if dev is None:
        parts = hold_out(task, examples_of(task, train), seed)
    else:
        parts = examples_of(task, train), examples_of(task, dev)
    mean, deviation = 0.0, 1.0
    if task.regression:
        mean, deviation = float(np.mean(parts[0].labels)), float(np.std(parts[0].labels))
        if not np.isfinite(deviation) or deviation == 0:
            raise UserError(
                f"{train.name}: its training scores do not differ, or are too large; nothing can be learned of them"
            )
    train_part, dev_part = (_standardised(part, mean, deviation) for part in parts)
    return OwnTask(TaskData(task, train_part, {"dev": dev_part}, ""), mean, deviation)


def _standardised(examples: Examples, mean: float, deviation: float) -> Labelled:
    return Labelled(examples.texts, ((np.array(examples.labels) - mean) / deviation).astype(np.float32))
