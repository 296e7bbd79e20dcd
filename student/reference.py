"""Sentences to measure on, with their embeddings by the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.manifest import ShardFolder, require_manifest
from sentence_distill.pipeline.records import Fingerprint, as_dict, differing_fields
from sentence_distill.pipeline.shards import Shard
from sentence_distill.pipeline.teacher import READING
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.files import find_shards
from sentence_distill.student.metrics import rarest_counts

SENTENCES = 4096


def sentences_of_shards(shards: Path, count: int = SENTENCES) -> list[str]:
    """Read at most `count` sentences, spread evenly over the shards.

    Raises:
        UserError: the shards are not complete, or keep no text.
    """
    manifest = require_manifest(shards)
    if not manifest.fingerprint.keep_text:
        raise UserError(
            f"{shards} keeps no text (--no-text); sd eval --speed --sentences FILE takes a file of sentences"
        )
    own, entries = ShardFolder(shards, manifest), manifest.shards
    ends = np.cumsum([entry.rows for entry in entries])
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(np.int64))
    sentences: list[str] = []
    for number, (entry, end) in enumerate(zip(entries, ends, strict=True)):
        inside = rows[(rows >= end - entry.rows) & (rows < end)] - (end - entry.rows)
        sentences += own.texts(number, inside)
    return sentences


# Held-out rows of shards, with what the measures of fidelity need to know of each.

# Layers are not among them: reading those that a student approximates says which are missing.
_SAME_TEACHER = ("teacher_weights", "tokenizer", "pooling", "normalize")


@dataclass(frozen=True)
class Reference:
    """Held-out rows and the teacher's vectors of them."""

    shards: Path
    fingerprint: Fingerprint
    """Of the run that made the shards."""
    tokens: Tokens
    targets: torch.Tensor
    """float32[n, sum of dims]: the teacher's layers side by side."""
    rarest: np.ndarray
    """int64[n]: count of each sentence's rarest token in the rows to train on."""
    texts: list[str] | None
    """None if the shards keep no text."""

    @property
    def dim(self) -> int:
        """Width of one layer of the teacher."""
        return self.fingerprint.layer_dim

    @classmethod
    def read(
        cls, shards: Path, held_out: float, layers: Sequence[int] | None, train_fraction: float = 1.0
    ) -> "Reference":
        """Read the held-out rows, at most 20,000.

        Args:
            shards: a complete folder of shards.
            held_out: share of the rows.
            layers: of the teacher; None is all in the shards.
            train_fraction: share of the other rows that was trained on.

        Raises:
            UserError: the shards are not there, damaged, lack a layer, or hold out too few rows.
        """
        stream = ShardStream(shards, held_out=held_out, layers=layers, train_fraction=train_fraction)
        tokens, targets = stream.held_out()
        rarest = rarest_counts(tokens, token_counts(stream))
        return cls(shards, stream.fingerprint, tokens, targets, rarest, stream.held_out_texts())


def require_teacher(shards: Path, fingerprint: Fingerprint, distillation: dict[str, Any]) -> None:
    """Refuse shards, made by the run of `fingerprint`, of another teacher than a student's.

    Raises:
        UserError: naming what differs.
    """
    trained = distillation["corpus"]["fingerprint"]
    old, new = (
        {field: of.get(field) for field in (*_SAME_TEACHER, *READING)} for of in (trained, as_dict(fingerprint))
    )
    if differing := differing_fields(old, new):
        raise UserError(f"{shards} holds vectors of another teacher: {'; '.join(differing)}; name others with --shards")


def own_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """Find the shards that the student in `folder` was trained on.

    Raises:
        UserError: they are no longer there, or something else is there now: if a student comes from another folder or
            machine, the recorded name may stand for anything here.
    """
    shards = find_shards(distillation, folder)
    if not shards.is_dir():
        raise UserError(f"no folder {shards}, where the student's shards were; name them with --shards")
    trained, found = distillation["corpus"]["fingerprint"], require_manifest(shards).fingerprint
    if differing := differing_fields(trained, found):
        raise UserError(
            f"{shards} is not what the student was trained on: {'; '.join(differing)}; name the folder with --shards"
        )
    return shards


def is_own(fingerprint: Fingerprint, distillation: dict[str, Any]) -> bool:
    """Tell whether shards are those that a student was trained on."""
    return not differing_fields(distillation["corpus"]["fingerprint"], fingerprint)


def token_counts(stream: ShardStream) -> np.ndarray:
    """Count each token in the rows to train on, int64[vocabulary]; one shard is in memory at a time."""
    vocabulary = stream.fingerprint.vocabulary
    counts = np.zeros(vocabulary, dtype=np.int64)
    for path, train, _ in stream.split():
        counts += np.bincount(Shard.open(path).tokens.take(train).ids, minlength=vocabulary)
    return counts
