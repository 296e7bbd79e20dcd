"""One slice of the plan: from its records to sentences and token ids, and with their vectors to a shard."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.pairs import tokenize_pairs
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.rejected import Rejection, write_list
from sentence_distill.pipeline.shards import DTYPES, make_table, shard_name, write_shard

# A few vectors may overflow; beyond this share something is wrong with the teacher or its precision.
_MOST_NON_FINITE = 0.01


@dataclass
class SliceText:
    """The sentences of a slice, and what became of the others.

    Attributes:
        part: the slice.
        sentences: n sentences that may become rows.
        places: n pairs of file and record.
        rejections: what was rejected so far.
        records: how many were read.
        duplicates: how many sentences were left out because they occurred earlier.
        tokens: of n sentences, once `prepare_slice` is done.
    """

    part: Slice
    sentences: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    records: int = 0
    duplicates: int = 0
    tokens: Tokens | None = None

    def counts(self) -> dict[str, object]:
        """How the slice's records were used; rows + duplicates + all rejected = sentences."""
        reasons = Counter(rejection.reason for rejection in self.rejections)
        return {
            "records": self.records,
            "sentences": len(self.sentences) + self.duplicates + len(self.rejections),
            "duplicates": self.duplicates,
            "rejected": dict(sorted(reasons.items())),
        }

    def reject(self, unfit: np.ndarray, reason: str) -> None:
        """Reject the sentences that bool[n] `unfit` marks; `keep` takes them out."""
        for row in np.flatnonzero(unfit):
            file, record = self.places[row]
            self.rejections.append(Rejection(file, record, reason, self.sentences[row][:EXCERPT_CHARACTERS]))

    def keep(self, fit: np.ndarray) -> None:
        """Keep only the sentences that bool[n] `fit` marks."""
        if fit.all():
            return
        rows = np.flatnonzero(fit)
        self.sentences = [self.sentences[row] for row in rows]
        self.places = [self.places[row] for row in rows]
        if self.tokens is not None:
            self.tokens = self.tokens.take(rows)


def read_slice(records: Iterable[Record], part: Slice, rules: SentenceRules) -> SliceText:
    """Split a slice's records and drop its duplicates.

    Raises:
        UserError: the corpus no longer yields what the plan found in it.
    """
    text = SliceText(part)
    duplicates = frozenset(part.duplicates.tolist())
    usable = 0
    for record in records:
        text.records += 1
        place = (record.position.file, record.position.record)
        if record.text is None:
            text.rejections.append(Rejection(*place, record.reason, record.excerpt))
            continue
        text.rejections.extend(Rejection(*place, "heading", heading) for heading in record.headings)
        for sentence in split_sentences(record.text, rules):
            if sentence.reason:
                text.rejections.append(Rejection(*place, sentence.reason, sentence.text[:EXCERPT_CHARACTERS]))
                continue
            if usable in duplicates:
                text.duplicates += 1
            else:
                text.sentences.append(sentence.text)
                text.places.append(place)
            usable += 1
    if (text.records, usable) != (part.records, part.sentences):
        raise UserError(
            f"the corpus changed while it was read: slice {part.index} held {part.sentences} sentences "
            f"and now holds {usable}; run again once the files are at rest"
        )
    return text


def prepare_slice(
    records: Iterable[Record],
    part: Slice,
    config: EmbedConfig,
    tokenizer: TextTokenizer,
    dtype: type[np.unsignedinteger[Any]],
    separator: Sequence[int] = (),
) -> SliceText:
    """Read and tokenise a slice; what has no tokens, or too many, is rejected.

    Args:
        records: of the slice.
        part: the slice.
        config: rules and the most tokens.
        tokenizer: the teacher's.
        dtype: of the token ids.
        separator: the teacher's, between the sides of pairs.
    """
    text = read_slice(records, part, config.rules)
    sentences = text.sentences
    tokens = tokenize_pairs(tokenizer, sentences, separator) if separator else tokenizer.tokenize(sentences)
    text.tokens = tokens.astype(dtype)
    lengths = tokens.lengths
    text.reject(lengths > config.max_tokens, "too many tokens")
    # A sentence whose every character the tokenizer drops has no tokens to pool.
    text.reject(lengths == 0, "no tokens")
    text.keep((lengths > 0) & (lengths <= config.max_tokens))
    return text


def commit_slice(
    text: SliceText,
    vectors: np.ndarray,
    *,
    config: EmbedConfig,
    out: Path,
    names: list[str],
    fingerprint: dict[str, Any],
) -> None:
    """Write the shard of a prepared slice and its list of rejected sentences.

    Args:
        text: the prepared slice of n sentences.
        vectors: float32[n, dim], the teacher's.
        config: how rows are written.
        out: folder of the shards.
        names: of the corpus files.
        fingerprint: of the run.

    Raises:
        UserError: more than a hundredth of the vectors are not finite.
    """
    with np.errstate(over="ignore"):  # what float16 can't hold becomes infinite, and is rejected below
        rows = vectors.astype(DTYPES[config.dtype])
    finite = np.isfinite(rows).all(axis=1)
    if (~finite).sum() > 1 + _MOST_NON_FINITE * len(finite):
        raise UserError(
            f"the teacher gave {(~finite).sum():,} of {len(finite):,} vectors in slice {text.part.index} that are "
            f"not finite in {config.dtype}; try --precision fp32, and --dtype float32 for vectors beyond 65,504"
        )
    text.reject(~finite, "non-finite embedding")
    text.keep(finite)
    text.rejections.sort(key=lambda rejection: (rejection.file, rejection.record))
    ids = np.array([sentence_id(sentence) for sentence in text.sentences], dtype=np.uint64)
    assert text.tokens is not None
    table = make_table(ids, text.tokens, rows[finite], text.sentences if config.keep_text else None)
    # Before the sidecar, so that a shard that exists always has its list.
    rejected = write_list(out, text.part.index, text.rejections, names)
    start: Position = text.part.start
    write_shard(
        out / shard_name(text.part.index),
        table,
        config.compression,
        {
            "source": {"file": start.file, "record": start.record, "offset": start.offset},
            "counts": text.counts(),
            "rejected_xxh3_128": rejected,
            "fingerprint": fingerprint,
            # Format 1 has it; up to version 0.1 it said that another teacher stood in.
            "notice": "",
        },
    )
