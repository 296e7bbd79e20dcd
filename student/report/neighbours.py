"""Nearest neighbours of a few sentences, by the teacher and by the student, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.student.evaluation.reference import Reference
from sentence_distill.student.fidelity import public_targets
from sentence_distill.student.model import Student, encode_tokens

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
