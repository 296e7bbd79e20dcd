"""Sentences to reduce a student's vectors by, and others to measure what is left of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student.evaluation.reference import is_own, own_shards, require_teacher
from sentence_distill.student.files import MAX_TOKENS
from sentence_distill.student.model import Student
from sentence_distill.student.training.stream import ShardStream

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
