"""What a report is made of."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.student.files import DISTILLATION, TASK, load_distillation
from sentence_distill.student.log import METRICS, read_metrics
from sentence_distill.student.metrics import public_targets
from sentence_distill.student.model import Student, encode_tokens
from sentence_distill.student.reference import Reference

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


# Nearest neighbours of a few sentences, by the teacher and by the student, side by side.

QUERIES = 6
NEIGHBOURS = 3


@dataclass(frozen=True)
class Neighbour:
    """A sentence near another.

    Attributes:
        text: the sentence.
        cosine: to the query.
        shared: whether the other model has it among its nearest, too.
    """

    text: str
    cosine: float
    shared: bool


@dataclass(frozen=True)
class Example:
    """A query with its nearest sentences, nearest first."""

    query: str
    teacher: list[Neighbour]
    student: list[Neighbour]

    @property
    def shared(self) -> int:
        """How many sentences both models find."""
        return sum(neighbour.shared for neighbour in self.teacher)


def read_reference(shards: Path, distillation: dict[str, Any]) -> Reference:
    """The held-out sentences of a student's shards.

    Raises:
        UserError: the shards are not there or damaged, of another teacher, or keep no text.
    """
    reference = Reference.read(shards, distillation["training"]["held_out"], distillation["teacher"]["layers"])
    reference.require_teacher_of(distillation)
    if reference.texts is None:
        raise UserError(f"{shards} keeps no text; sd embed without --no-text does")
    return reference


def nearest_examples(student: Student, reference: Reference) -> list[Example]:
    """Neighbours of `QUERIES` held-out sentences that lie equally far apart in the corpus, among all held out.

    Args:
        student: encodes all held-out sentences.
        reference: has texts and the teacher's vectors.
    """
    texts = reference.texts or []
    vectors = encode_tokens(student.encoder, reference.tokens)
    targets = public_targets(reference.targets, reference.dim, normalize=student.encoder.config.normalize)
    queries = _apart(len(texts), QUERIES)
    by_teacher, by_student = (_nearest(of, queries) for of in (targets, vectors))
    return [
        Example(texts[query], _neighbours(texts, mine, theirs), _neighbours(texts, theirs, mine))
        for query, mine, theirs in zip(queries, by_teacher, by_student, strict=True)
    ]


def _apart(count: int, most: int) -> list[int]:
    """At most `most` row numbers, equally far apart."""
    chosen = min(count, most)
    return [count * (2 * number + 1) // (2 * chosen) for number in range(chosen)]


def _nearest(vectors: torch.Tensor, queries: Sequence[int]) -> list[dict[int, float]]:
    """For each query the rows nearest to it, itself excepted, with their cosines."""
    unit = functional.normalize(vectors, dim=1)
    cosines = unit[list(queries)] @ unit.T
    cosines[torch.arange(len(queries)), list(queries)] = -torch.inf
    values, rows = cosines.topk(min(NEIGHBOURS, len(unit) - 1), dim=1)
    return [dict(zip(r, v, strict=True)) for r, v in zip(rows.tolist(), values.tolist(), strict=True)]


def _neighbours(texts: Sequence[str], rows: dict[int, float], others: dict[int, float]) -> list[Neighbour]:
    return [Neighbour(texts[row], cosine, row in others) for row, cosine in rows.items()]
