"""What a report is made from: the files that training and measuring left in a student's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.student.folder import load_distillation
from sentence_distill.student.log import read_metrics

EVAL, GLUE, SPEED = "eval.json", "glue.json", "speed.json"
_MADE_BY = {EVAL: "sd eval", GLUE: "sd eval --glue --rows all", SPEED: "sd eval --speed"}


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
    """

    folder: Path
    distillation: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    glue: dict[str, Any]
    speed: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "StudentFiles":
        """Read the files of a student.

        Raises:
            UserError: there is no student in `folder`, or a file of it is damaged, which is named.
        """
        distillation = load_distillation(folder)
        evaluation, glue, speed = (_read_json(folder / name) for name in (EVAL, GLUE, SPEED))
        _check_glue(folder / GLUE, glue)
        return cls(folder, distillation, read_metrics(folder), evaluation, glue, speed)

    def command(self, name: str) -> str:
        """The command that makes one of the files, `EVAL`, `GLUE` or `SPEED`."""
        return f"{_MADE_BY[name]} --student {self.folder}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no object")
    return content


def _check_glue(path: Path, glue: dict[str, Any]) -> None:
    """Earlier versions wrote one result a task and row, not a list of them."""
    try:
        for row, tasks in glue.get("rows", {}).items():
            for task, results in tasks.items():
                if not isinstance(results, list) or any("scores" not in result for result in results):
                    raise _damaged(path, f"row {row!r} has no list of results for {task}")
    except (AttributeError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path} is damaged or of another version ({problem}); remove it, then: {_MADE_BY[path.name]}")
