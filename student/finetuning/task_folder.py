"""A student that was fine-tuned on a task, on disk: a student's folder with the head beside it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue_tasks import GlueTask
from sentence_distill.data.task import Task
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.files import HEAD, STUDENT_FILES, TASK, module_paths
from sentence_distill.student.finetuning.classifier import StudentClassifier
from sentence_distill.student.finetuning.fit import Fitted
from sentence_distill.student.finetuning.task_data import TaskData
from sentence_distill.student.folder import load_student, save_student

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
