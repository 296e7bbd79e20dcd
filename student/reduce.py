"""Smaller students: fewer dimensions, float16."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn import functional

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Advance
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import DISTILLATION, MAX_TOKENS, load_distillation, moved_record, student_files
from sentence_distill.student.metrics import paired_rank_agreement, recall_figures
from sentence_distill.student.model import Student, encode_tokens, load_student, save_student, update_distillation
from sentence_distill.student.models import megabytes
from sentence_distill.student.reference import is_own, own_shards, require_teacher

# Fifty for each direction of a vector 384 wide: more move the first directions by nothing that the measures show.
FIT_SENTENCES = 20_000
MEASURED_SENTENCES = 5_000
# Of a corpus, one in so many sentences is measured with.
_MEASURED_SHARE = 5


@dataclass(frozen=True)
class Sample:
    """Tokenised sentences.

    Args:
        fit: tokens of n sentences, to find directions with.
        measured: m others; none of them is in `fit`.
        teacher: float32[m, dim], the teacher's vectors of `measured`, or None where it is not known.
        own: whether they are of the corpus that the student was trained on.
    """

    fit: Tokens
    measured: Tokens
    teacher: torch.Tensor | None
    own: bool


def sample_shards(shards: Path | None, distillation: dict[str, Any], student: Path) -> Sample:
    """At most 20,000 rows to train on, spread evenly over a student's shards, and at most 5,000 held-out ones.

    Args:
        shards: a complete folder of shards of the student's teacher; None is the one that it was trained on.
        distillation: of the student.
        student: its folder.

    Raises:
        UserError: the shards are not there, damaged, or of another teacher, or hold out too few rows.
    """
    folder = shards or own_shards(distillation, student)
    held_out, layers = distillation["training"]["held_out"], distillation["teacher"]["layers"]
    stream = ShardStream(folder, held_out=held_out, layers=layers)
    require_teacher(folder, stream.fingerprint, distillation)
    tokens, targets = stream.held_out()
    dim = stream.fingerprint["dim"] // len(stream.fingerprint["layers"])
    return Sample(
        fit=_spread(stream, FIT_SENTENCES),
        measured=tokens.take(np.arange(min(len(tokens), MEASURED_SENTENCES))),
        teacher=targets[:MEASURED_SENTENCES, -dim:],
        own=is_own(stream.fingerprint, distillation),
    )


def _spread(stream: ShardStream, count: int) -> Tokens:
    """The tokens of about `count` rows to train on, from each shard its share."""
    share, parts = min(1.0, count / max(1, stream.train_rows)), []
    for path, train, _ in stream.split():
        rows = train[np.unique(np.linspace(0, len(train) - 1, round(share * len(train))).astype(np.int64))]
        parts.append(Shard.open(path).tokens.take(rows, MAX_TOKENS))
    return Tokens.concatenated(parts)


def sample_corpus(locations: Sequence[str], student: Student) -> Sample:
    """The first sentences of a corpus, four in five to find directions with and the fifth to measure.

    Args:
        locations: files, folders, globs or URLs, as `sd embed --corpus` takes them.
        student: tokenises them.

    Raises:
        UserError: there is no such text, it can't be read, or it holds too few sentences.
    """
    # Each once: a sentence to measure with should not be known.
    sentences = dict.fromkeys(islice(_sentences(locations), FIT_SENTENCES + MEASURED_SENTENCES))
    tokens = student.tokenize(list(sentences))
    measured = np.arange(len(tokens)) % _MEASURED_SHARE == 0
    if measured.sum() < 3:
        raise UserError(f"--corpus: {len(tokens)} sentences are too few to reduce by; name more text")
    fit, rest = (tokens.take(np.flatnonzero(part)) for part in (~measured, measured))
    return Sample(fit, rest, teacher=None, own=False)


def _sentences(locations: Sequence[str]) -> Iterator[str]:
    rules = SentenceRules()
    for record in Corpus.open(locations).records():
        if record.text is not None:
            yield from (found.text for found in split_sentences(record.text, rules) if not found.reason)


# A narrower vector for search and clustering: a student's own, projected to its principal directions.

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


# A student's weights in half the bytes.


def copy_student(source: Path, folder: Path) -> None:
    """Copy a student and its record; neither checkpoints and logs, nor what else lies in its folder.

    Raises:
        UserError: there is no student that can be read in `source`.
    """
    load_student(source)
    for name, file in student_files(source).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    record = moved_record(load_distillation(source), source, folder)
    write_json(folder / DISTILLATION, record)


def halve_weights(folder: Path) -> None:
    """Store the weights in a student's folder as float16, which its record says; whoever loads it gets float32 of them.

    Raises:
        UserError: a weight lies outside of what float16 can hold.
    """
    files = [file for file in student_files(folder).values() if file.suffix == ".safetensors"]
    halved = {file: {name: weight.half() for name, weight in load_file(file).items()} for file in files}
    for file, weights in halved.items():
        if wrong := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
            raise UserError(f"{file}: {wrong[0]} holds numbers that float16 can't; keep this student in float32")
    for file, weights in halved.items():
        write_atomically(file, save(weights))
    metrics = load_distillation(folder)["metrics"]
    if "size" in metrics:
        metrics["size"] = {**metrics["size"], "megabytes": megabytes(folder)}
    update_distillation(folder, metrics=metrics, weights="float16")
