"""A narrower vector for search and clustering: a student's own, projected to its principal directions.

The directions are the eigenvectors of the vectors' second moments, without centring. Over vectors of length 1 that is
the projection whose inner products, their cosines, come closest to the full ones in squared error (Eckart and Young,
"The approximation of one matrix by another of lower rank", Psychometrika 1936; scikit-learn's TruncatedSVD is the
same). And it is linear: projected first and brought to length 1 afterwards gives the same vectors as the other way
round, so that the student's last projection takes it in. A mean to be subtracted from vectors of length 1 could not be
taken in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Advance
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.evaluation.retrieval import recall_figures
from sentence_distill.student.fidelity import paired_rank_agreement
from sentence_distill.student.folder import save_student
from sentence_distill.student.model import Student, encode_tokens

_PART_ROWS = 8192
_LEAST_DIM = 8


@dataclass(frozen=True)
class Directions:
    """Principal directions of a student's vectors.

    Args:
        axes: float64[dim, dim], a direction a row, the one that holds most of the vectors first.
        rows: how many vectors they are of.
    """

    axes: torch.Tensor
    rows: int

    def project(self, vectors: torch.Tensor, dim: int) -> torch.Tensor:
        """Vectors as the reduced student gives them but for their length: float32[n, dim] of float32[n, full dim]."""
        return vectors @ self.axes[:dim].T.float()


def find_directions(student: Student, tokens: Tokens, advance: Advance = lambda count, note="": None) -> Directions:
    """The principal directions of a student's vectors, each brought to length 1 so that all count alike.

    Args:
        student: whose.
        tokens: of n sentences.
        advance: called with the number of sentences done.

    Raises:
        UserError: fewer sentences than the vectors have dimensions, which leave directions undecided.
    """
    if len(tokens) < student.dim:
        raise UserError(
            f"{len(tokens)} sentences to reduce by are too few: a student of {student.dim} dimensions needs "
            f"{student.dim}, beside those that it is measured with; name more text with --corpus"
        )
    moments = torch.zeros(student.dim, student.dim, dtype=torch.float64)
    for first in range(0, len(tokens), _PART_ROWS):
        rows = np.arange(first, min(first + _PART_ROWS, len(tokens)))
        part = encode_tokens(student.encoder, tokens.take(rows))
        unit = functional.normalize(part.double(), dim=1)
        moments += unit.T @ unit
        advance(len(part))
    axes = torch.linalg.eigh(moments).eigenvectors
    return Directions(axes.T.flip(0).contiguous(), len(tokens))


def reduce_student(student: Student, directions: Directions, dim: int) -> Student:
    """A student whose vectors are the first `dim` coordinates, in its last projection; the rest is shared."""
    encoder = student.encoder
    last = encoder.projections[-1]
    assert isinstance(last, torch.nn.Linear)
    axes = directions.axes[:dim]
    reduced = StudentEncoder(replace(encoder.config, target_dims=(dim,)))
    reduced.embedding, reduced.lstm = encoder.embedding, encoder.lstm
    with torch.no_grad():
        weights = {"weight": axes @ last.weight.double(), "bias": axes @ last.bias.double()}
        reduced.projections[0].load_state_dict({name: value.float() for name, value in weights.items()})
    return Student(reduced, student.tokenizer)


def compare_dims(
    vectors: torch.Tensor, teacher: torch.Tensor | None, directions: Directions, dims: Sequence[int]
) -> list[dict[str, Any]]:
    """What is left of vectors at each number of dimensions; none of them should have shaped the directions.

    Args:
        vectors: float32[n, dim], the full ones.
        teacher: float32[n, dim of the teacher], its vectors of the same sentences, or None.
        directions: of other sentences.
        dims: in the order wanted; the full number stands for the vectors as they are.

    Returns:
        For each: "dim"; "kept", the share of the squared length of the vectors, each brought to length 1, that is left;
        "rank_agreement" and, unless they are too few for it, "recall_at_10" against the full vectors; if the teacher's
        are there, "teacher_rank_agreement" and "teacher_recall_at_10" against those; "measured_rows".
    """
    found = []
    unit = functional.normalize(vectors, dim=1)
    for dim in dims:
        narrow = directions.project(vectors, dim) if dim < vectors.shape[1] else vectors
        kept = float(directions.project(unit, dim).square().sum() / unit.square().sum())
        figures: dict[str, Any] = {"dim": dim, "kept": kept, "measured_rows": len(vectors)}
        for prefix, reference in (("", vectors), ("teacher_", teacher)):
            if reference is not None:
                figures[f"{prefix}rank_agreement"] = paired_rank_agreement(narrow, reference)
                if "recall_at_10" in (recall := recall_figures(narrow, reference)):
                    figures[f"{prefix}recall_at_10"] = recall["recall_at_10"]
        found.append(figures)
    return found


def save_reduced(
    folder: Path,
    reduced: Student,
    distillation: dict[str, Any],
    *,
    source: str,
    directions: Directions,
    figures: dict[str, Any],
    own: bool,
) -> None:
    """Write a reduced student.

    Args:
        folder: where to; made where it is missing.
        reduced: the student.
        distillation: of the full one.
        source: where the sentences are from, for the record.
        directions: what it was projected to.
        figures: of its width, see `compare_dims`.
        own: whether they are over held-out sentences of the corpus that the full one was trained on.
    """
    # What was measured of the full vectors does not hold of these; against the teacher's this much is known. The record
    # and the card speak of the student's own corpus.
    known = {name.removeprefix("teacher_"): value for name, value in figures.items() if name.startswith("teacher_")}
    metrics = {"held_out": {**known, "rows": figures["measured_rows"]}} if known and own else {}
    record = {
        "full_dim": distillation["student"]["target_dims"][-1],
        "sentences": source,
        "own": own,
        "rows": directions.rows,
        **figures,
    }
    save_student(folder, reduced, {**distillation, "metrics": metrics, "reduction": record})


def usual_dims(dim: int) -> tuple[int, ...]:
    """The powers of two below a width that are worth a look: 32, 64, 128 and 256 of 384."""
    powers = [1 << power for power in range(dim.bit_length()) if _LEAST_DIM <= 1 << power < dim]
    return tuple(powers[-4:])


def require_narrower(dims: Sequence[int], dim: int) -> None:
    """Refuse numbers of dimensions that are no reduction.

    Raises:
        UserError: naming the first.
    """
    for wanted in dims:
        if not 1 <= wanted < dim:
            raise UserError(f"{wanted} dimensions are no reduction of the student's {dim}; name fewer")
