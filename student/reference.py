"""Sentences to measure on, with their embeddings by the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.pipeline.shards import Shard, shard_texts
from sentence_distill.pipeline.teacher import READING
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.files import find_shards
from sentence_distill.student.metrics import rarest_counts

SENTENCES = 4096
LENGTHS = (8, 16, 32, 64)
_TEXTS_OF_A_LENGTH = 32


def sentences_of_shards(shards: Path, count: int = SENTENCES) -> list[str]:
    """At most `count` sentences, spread evenly over the shards.

    Raises:
        UserError: the shards are not complete, or keep no text.
    """
    manifest = require_manifest(shards)
    if not manifest["fingerprint"]["keep_text"]:
        raise UserError(
            f"{shards} keeps no text (--no-text); sd eval --speed --sentences FILE takes a file of sentences"
        )
    entries = manifest["shards"]
    ends = np.cumsum([entry["rows"] for entry in entries])
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(np.int64))
    sentences: list[str] = []
    for entry, end in zip(entries, ends, strict=True):
        inside = rows[(rows >= end - entry["rows"]) & (rows < end)] - (end - entry["rows"])
        sentences += shard_texts(shards / entry["shard"], inside)
    return sentences


def cut_to_lengths(tokenizer: Any, sentences: Sequence[str]) -> dict[int, list[str]]:
    """Texts of exactly 8, 16, 32 and 64 tokens, at most 32 of each: sentences in a row, cut behind a token.

    Args:
        tokenizer: a `tokenizers.Tokenizer`; special tokens are not counted.
        sentences: what to cut from; they are used again where they are too few.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    by_length: dict[int, list[str]] = {}
    for length in LENGTHS:
        texts = [cut for cut in _cuts(tokenizer, sentences, length) if _tokens(tokenizer, cut) == length]
        if texts:
            by_length[length] = texts
    return by_length


def _cuts(tokenizer: Any, sentences: Sequence[str], length: int) -> list[str]:
    cuts: list[str] = []
    joined = ""
    # A token is one character at least: so many sentences make all the texts that are wanted.
    for number in range(length * _TEXTS_OF_A_LENGTH):
        joined = f"{joined} {sentences[number % len(sentences)]}".strip()
        offsets = tokenizer.encode(joined, add_special_tokens=False).offsets
        if len(offsets) >= length:
            cuts.append(joined[: offsets[length - 1][1]])
            joined = ""
        if len(cuts) == _TEXTS_OF_A_LENGTH:
            break
    return cuts


def _tokens(tokenizer: Any, text: str) -> int:
    # Cut inside a word, a text may have another number of tokens than was counted.
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


# Held-out rows of shards, with what the measures of fidelity need to know of each.

# Layers are not among them: reading those that a student approximates says which are missing.
_SAME_TEACHER = ("teacher_weights", "tokenizer", "pooling", "normalize")


@dataclass(frozen=True)
class Reference:
    """Held-out rows and the teacher's vectors of them.

    Args:
        shards: where they are from.
        fingerprint: of the run that made the shards.
        tokens: of n sentences.
        targets: float32[n, sum of dims], the teacher's layers one beside the other.
        dim: width of one layer.
        rarest: int64[n], how often the rarest token of each row occurs in the rows to train on.
        texts: n sentences; None where the shards keep no text.
    """

    shards: Path
    fingerprint: dict[str, Any]
    tokens: Tokens
    targets: torch.Tensor
    dim: int
    rarest: np.ndarray
    texts: list[str] | None

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
        return cls(
            shards=shards,
            fingerprint=stream.fingerprint,
            tokens=tokens,
            targets=targets,
            dim=stream.fingerprint["dim"] // len(stream.fingerprint["layers"]),
            rarest=rarest_counts(tokens, token_counts(stream)),
            texts=held_out_texts(stream, len(tokens)),
        )

    def require_teacher_of(self, distillation: dict[str, Any]) -> None:
        """Refuse a student of another teacher than the shards'.

        Raises:
            UserError: naming what differs.
        """
        require_teacher(self.shards, self.fingerprint, distillation)


def require_teacher(shards: Path, fingerprint: dict[str, Any], distillation: dict[str, Any]) -> None:
    """Refuse shards of another teacher than a student's.

    Args:
        shards: the folder, for the message.
        fingerprint: of the run that made them.
        distillation: of the student.

    Raises:
        UserError: naming what differs.
    """
    trained = distillation["corpus"]["fingerprint"]
    old, new = ({field: of.get(field) for field in (*_SAME_TEACHER, *READING)} for of in (trained, fingerprint))
    if differing := differing_fields(old, new):
        raise UserError(f"{shards} holds vectors of another teacher: {'; '.join(differing)}; name others with --shards")


def require_own(shards: Path, fingerprint: dict[str, Any], distillation: dict[str, Any]) -> None:
    """Refuse shards that only bear the name of those that a student was trained on.

    Where a student comes from another folder or machine, the recorded name may stand for anything here.

    Args:
        shards: the folder, for the message.
        fingerprint: of the run that made them.
        distillation: of the student.

    Raises:
        UserError: naming what differs.
    """
    if differing := differing_fields(distillation["corpus"]["fingerprint"], fingerprint):
        raise UserError(
            f"{shards} is not what the student was trained on: {'; '.join(differing)}; name the folder with --shards"
        )


def own_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """The folder of shards that the student in `folder` was trained on.

    Raises:
        UserError: it is no longer there, or something else is there now.
    """
    shards = find_shards(distillation, folder)
    if not shards.is_dir():
        raise UserError(f"no folder {shards}, where the student's shards were; name them with --shards")
    require_own(shards, require_manifest(shards)["fingerprint"], distillation)
    return shards


def is_own(fingerprint: dict[str, Any], distillation: dict[str, Any]) -> bool:
    """Whether shards are those that a student was trained on."""
    return not differing_fields(distillation["corpus"]["fingerprint"], fingerprint)


def token_counts(stream: ShardStream) -> np.ndarray:
    """int64[vocabulary]: how often each token occurs in the rows to train on; one shard is in memory at a time."""
    vocabulary = int(stream.fingerprint["vocabulary"])
    counts = np.zeros(vocabulary, dtype=np.int64)
    for path, train, _ in stream.split():
        counts += np.bincount(Shard.open(path).tokens.take(train).ids, minlength=vocabulary)
    return counts


def held_out_texts(stream: ShardStream, count: int) -> list[str] | None:
    """The sentences of the first `count` held-out rows; None where the shards keep no text."""
    if not stream.fingerprint["keep_text"]:
        return None
    texts: list[str] = []
    for path, _, held_out in stream.split():
        texts += shard_texts(path, held_out[: count - len(texts)])
    return texts
