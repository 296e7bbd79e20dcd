"""Smaller students: fewer dimensions by PCA, and weights in float16."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.corpus import sentences_of
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.figures import DISTILLATION, load_distillation
from sentence_distill.student.files import MAX_TOKENS, find_shards, moved_record, student_files
from sentence_distill.student.metrics import paired_rank_agreement, recall_figures
from sentence_distill.student.model import Student, encode_tokens, load_student, save_student, update_distillation
from sentence_distill.student.models import is_own, megabytes, own_shards, require_teacher

# About fifty per dimension of a vector with 384; with more, no metric changes visibly.
_FIT_SENTENCES = 20_000
_MEASURED_SENTENCES = 5_000
# One in this many sentences of a corpus is held out to measure fidelity.
_MEASURED_SHARE = 5
_BATCH_ROWS = 8192


class Fidelity(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Fidelity of vectors with fewer dimensions, over sentences that the projection was not fitted on."""

    dim: int
    kept: float
    """Share of the squared length of normalized vectors that remains."""
    measured_rows: int
    rank_agreement: float
    """Rank agreement with the full vectors; figures with `teacher_` compare with the teacher's."""
    recall_at_10: float | None = None
    """Recall of the full vectors' neighbors; None if there are too few sentences."""
    teacher_rank_agreement: float | None = None
    teacher_recall_at_10: float | None = None


@dataclass(frozen=True)
class Sample:
    """Tokenized sentences: some to fit the projection on, and m others to measure fidelity on."""

    fit: Tokens
    measured: Tokens
    teacher: torch.Tensor | None
    """float32[m, dim], the teacher's vectors of `measured`; None if they are unknown."""
    own: bool
    """True if the sentences are from the shards that the student was trained on."""
    source: str
    """Name of the corpus or shards, for the student's record."""


@dataclass(frozen=True)
class Reduced:
    """A student with fewer dimensions, and the fidelity at each requested number and at the full one."""

    student: Student
    fidelity: tuple[Fidelity, ...]
    sample: Sample


def reduce(
    student: Student,
    distillation: dict[str, Any],
    folder: Path,
    dims: Sequence[int],
    *,
    shards: Path | None = None,
    corpus: Sequence[str] = (),
) -> Reduced:
    """Project a student's vectors to the first number in `dims`, and measure the fidelity at each of them.

    The projection is fitted and measured on `corpus` or `shards`, by default on the student's own shards.
    """
    for dim in dims:
        if dim >= student.dim:
            raise UserError(f"--dim {dim} must be below the student's {counted(student.dim, 'dimension')}")
    sample = sample_corpus(corpus, student) if corpus else sample_shards(shards, distillation, folder)
    directions = find_directions(student, sample.fit)
    vectors = encode_tokens(student.encoder, sample.measured)
    fidelity = compare_dims(vectors, sample.teacher, directions, (*dims, student.dim))
    return Reduced(reduce_student(student, directions, dims[0]), tuple(fidelity), sample)


def sample_shards(shards: Path | None, distillation: dict[str, Any], student: Path) -> Sample:
    """Take at most 20,000 training rows, evenly spaced over the shards, and at most 5,000 held-out rows."""
    if shards is None and not find_shards(distillation, student).exists():
        raise UserError(f"the shards of {student.name} are missing; name text with --corpus, or shards with --shards")
    folder = shards or own_shards(distillation, student)
    stream = ShardStream(
        folder, held_out=distillation["training"]["held_out"], layers=distillation["teacher"]["layers"]
    )
    require_teacher(folder, stream.fingerprint, distillation)
    share, fit = min(1.0, _FIT_SENTENCES / max(1, stream.train_rows)), []
    for path, train, _ in stream.split():
        rows = train[np.unique(np.linspace(0, len(train) - 1, round(share * len(train))).astype(np.int64))]
        fit.append(Shard.open(path).tokens.take(rows, MAX_TOKENS))
    tokens, targets = stream.held_out()
    return Sample(
        fit=Tokens.concatenated(fit),
        measured=tokens.take(np.arange(min(len(tokens), _MEASURED_SENTENCES))),
        teacher=targets[:_MEASURED_SENTENCES, -stream.fingerprint.layer_dim :],
        own=is_own(stream.fingerprint, distillation),
        source=str(shards or folder.name),
    )


def sample_corpus(locations: Sequence[str], student: Student) -> Sample:
    """Take the first distinct sentences of a corpus, and hold out one in five to measure fidelity."""
    tokens = student.tokenize(sentences_of(locations, _FIT_SENTENCES + _MEASURED_SENTENCES, SentenceRules()))
    measured = np.arange(len(tokens)) % _MEASURED_SHARE == 0
    if measured.sum() < 3:
        raise UserError(
            f"--corpus holds {counted(len(tokens), 'sentence')}, too few to fit a reduction; name more text"
        )
    fit, rest = (tokens.take(np.flatnonzero(part)) for part in (~measured, measured))
    return Sample(fit, rest, teacher=None, own=False, source=", ".join(locations))


def find_directions(student: Student, tokens: Tokens) -> torch.Tensor:
    """Find the principal directions of a student's vectors, float64[dim, dim], the longest first.

    Vectors are normalized, so that all count the same. They are not centered, because cosines are measured from the
    origin.
    """
    if len(tokens) < student.dim:
        raise UserError(
            f"{counted(len(tokens), 'sentence')} to fit a reduction on: a student with {student.dim} dimensions needs "
            f"at least {student.dim}, not counting those it is measured on; name more text with --corpus"
        )
    moments = torch.zeros(student.dim, student.dim, dtype=torch.float64)
    with progress.task("encode", len(tokens), "sentences") as advance:
        for first in range(0, len(tokens), _BATCH_ROWS):
            part = tokens.take(np.arange(first, min(first + _BATCH_ROWS, len(tokens))))
            unit = functional.normalize(encode_tokens(student.encoder, part).double(), dim=1)
            moments += unit.T @ unit
            advance(len(part))
    return torch.linalg.eigh(moments).eigenvectors.T.flip(0).contiguous()


def compare_dims(
    vectors: torch.Tensor, teacher: torch.Tensor | None, directions: torch.Tensor, dims: Sequence[int]
) -> list[Fidelity]:
    """Measure the fidelity of float32[n, dim] vectors, also to the teacher's, at each number of dimensions in `dims`.

    The full number stands for the vectors themselves. The directions must not be fitted on their sentences.
    """
    found, unit = [], functional.normalize(vectors, dim=1)
    for dim in dims:
        axes = directions[:dim].T.float()
        narrow = vectors @ axes if dim < vectors.shape[1] else vectors
        kept = float((unit @ axes).square().sum() / unit.square().sum())
        figures: dict[str, float] = {}
        for prefix, reference in (("", vectors), ("teacher_", teacher)):
            if reference is not None:
                figures[f"{prefix}rank_agreement"] = paired_rank_agreement(narrow, reference)
                if (recall := recall_figures(narrow, reference).get("recall_at_10")) is not None:
                    figures[f"{prefix}recall_at_10"] = recall
        found.append(Fidelity(dim=dim, kept=kept, measured_rows=len(vectors), **figures))
    return found


def reduce_student(student: Student, directions: torch.Tensor, dim: int) -> Student:
    """Merge the projection to the first `dim` directions into a student's last layer; other weights are shared."""
    encoder = student.encoder
    last = encoder.projections[-1]
    assert isinstance(last, torch.nn.Linear)
    reduced = StudentEncoder(replace(encoder.config, target_dims=(dim,)))
    reduced.embedding, reduced.lstm = encoder.embedding, encoder.lstm
    with torch.no_grad():
        weights = {"weight": directions[:dim] @ last.weight.double(), "bias": directions[:dim] @ last.bias.double()}
        reduced.projections[0].load_state_dict({name: value.float() for name, value in weights.items()})
    return Student(reduced, student.tokenizer)


def save_reduced(folder: Path, reduced: Reduced, distillation: dict[str, Any]) -> None:
    """Write a reduced student; its record is that of the full student, with the reduction and its fidelity."""
    figures, sample = reduced.fidelity[0], reduced.sample
    # Figures of the full vectors don't apply to the reduced ones, so only those that were measured here are kept. The
    # record and the card have figures on the student's own corpus only.
    known = {"rank_agreement": figures.teacher_rank_agreement, "recall_at_10": figures.teacher_recall_at_10}
    known = {name: value for name, value in known.items() if value is not None}
    reduction = {
        **msgspec.to_builtins(figures),
        "full_dim": distillation["student"]["target_dims"][-1],
        "sentences": sample.source,
        "own": sample.own,
        # Number of sentences that the projection was fitted on.
        "rows": len(sample.fit),
    }
    metrics = {"held_out": {**known, "rows": figures.measured_rows}} if known and sample.own else {}
    save_student(folder, reduced.student, {**distillation, "metrics": metrics, "reduction": reduction})


def copy_student(source: Path, folder: Path) -> None:
    """Copy a student and its record, without checkpoints, logs and other files in its folder."""
    load_student(source)
    for name, file in student_files(source).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    write_json(folder / DISTILLATION, moved_record(load_distillation(source), source, folder))


def halve_weights(folder: Path) -> None:
    """Convert the weights in a student's folder to float16, and record it; loading converts them back to float32."""
    files = [file for file in student_files(folder).values() if file.suffix == ".safetensors"]
    halved = {file: {name: weight.half() for name, weight in load_file(file).items()} for file in files}
    for file, weights in halved.items():
        if wrong := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
            raise UserError(f"{file}: {wrong[0]} has values beyond the range of float16; keep the student in float32")
    for file, weights in halved.items():
        write_atomically(file, save(weights))
    metrics = load_distillation(folder)["metrics"]
    if "size" in metrics:
        metrics["size"] = {**metrics["size"], "megabytes": megabytes(folder)}
    update_distillation(folder, metrics=metrics, weights="float16")
