"""What a report is made from: the files that training and measuring left in a student's folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.student.files import DISTILLATION, TASK, load_distillation
from sentence_distill.student.training.log import METRICS, read_metrics

EVAL, GLUE, SPEED = "eval.json", "glue.json", "speed.json"
_MADE_BY = {
    DISTILLATION: "sd train-student",
    METRICS: "sd train-student",
    EVAL: "sd eval",
    GLUE: "sd eval --glue --rows all",
    SPEED: "sd eval --speed",
    TASK: "sd finetune",
}


@dataclass(frozen=True)
class StudentFiles:
    """What lies in a student's folder; empty where a file is not there.

    Attributes:
        folder: of the student.
        distillation: distillation.json.
        metrics: lines of metrics.jsonl.
        evaluation: eval.json.
        glue: glue.json.
        speed: speed.json.
        task: task.json of a fine-tuned student.
    """

    folder: Path
    distillation: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    glue: dict[str, Any]
    speed: dict[str, Any]
    task: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "StudentFiles":
        """Read the files of a student.

        Raises:
            UserError: there is no student in `folder`, or a file of it is damaged, which is named.
        """
        distillation = load_distillation(folder)
        evaluation, glue, speed, task = (_read_json(folder / name) for name in (EVAL, GLUE, SPEED, TASK))
        return cls(folder, distillation, read_metrics(folder), evaluation, glue, speed, task)

    def command(self, name: str) -> str:
        """The command that makes a file of the folder."""
        return f"{_MADE_BY[name]} --student {self.folder}"

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Say which file it was where its content is not as this version writes it.

        Raises:
            UserError: naming the file.
        """
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise _unusable(self.folder / name, f"{type(error).__name__}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(content, dict):
        raise _unusable(path, "it holds no object")
    return content


def _unusable(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is damaged or of another version ({problem}); remove it, then: {_MADE_BY[path.name]}")
