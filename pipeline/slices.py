"""A slice of the corpus: read it, reject what cannot be used, commit its shard."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash, sentence_id
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.files import replacing, write_atomically
from sentence_distill.pipeline.pairs import tokenize_pairs
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.shards import DTYPES, make_table, shard_name, write_shard

REJECTED = "rejected.jsonl"
_LISTS = "shard-*.rejected.jsonl"


@dataclass(frozen=True)
class Rejection:
    """A sentence or record that can't be used: number of its file, of its record there, and why."""

    file: int
    record: int
    reason: str
    excerpt: str


def write_list(folder: Path, shard: int, rejections: Iterable[Rejection], names: Sequence[str]) -> str:
    """Write a shard's list and return its checksum; records are counted from 1."""
    lines = [
        json.dumps(
            {
                "shard": shard,
                "file": names[rejection.file],
                "record": rejection.record + 1,
                "reason": rejection.reason,
                "text": rejection.excerpt,
            },
            ensure_ascii=False,
        )
        for rejection in rejections
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(_list(folder, shard), content)
    return bytes_hash(content)


def listed(folder: Path, shards: Iterable[int]) -> dict[int, set[str]]:
    """For each of `shards` the checksums of its lists that are there: beside it, in the joined file, or both."""
    found: dict[int, set[str]] = {shard: set() for shard in shards}
    if (folder / REJECTED).exists():
        joined = {shard: bytes_hash(b"".join(lines)) for shard, lines in _joined(folder) if shard in found}
        for shard, checksums in found.items():
            # A shard with nothing rejected has no line in the joined file.
            checksums.add(joined.get(shard, bytes_hash(b"")))
    # One listing: a question for each of many thousand shards takes long where the folder is far away.
    beside = {path.name for path in folder.glob(_LISTS)}
    for shard, checksums in found.items():
        if _list(folder, shard).name in beside:
            checksums.add(bytes_hash(_list(folder, shard).read_bytes()))
    return found


def join_lists(folder: Path, checksums: Sequence[str]) -> None:
    """Join the lists of all shards, each from beside its shard or from the joined file that is there.

    Args:
        folder: of the shards.
        checksums: of the list of each shard, as its sidecar has it.

    Raises:
        UserError: a list is lost or damaged; the joined file that is there stays.
    """
    groups = _joined(folder)
    current = next(groups, None)
    beside = {path.name for path in folder.glob(_LISTS)}
    with replacing(folder / REJECTED) as file:
        for shard, checksum in enumerate(checksums):
            while current is not None and current[0] < shard:
                current = next(groups, None)
            path = _list(folder, shard)
            found = [path.read_bytes()] if path.name in beside else []
            found.append(b"".join(current[1]) if current is not None and current[0] == shard else b"")
            content = next((lines for lines in found if bytes_hash(lines) == checksum), None)
            if content is None:
                raise UserError(
                    f"{folder} has lost {path.name}, or it is damaged; run sd embed again, or the job of that shard"
                )
            file.write(content)


def remove_lists(folder: Path) -> None:
    """Remove the lists of single shards."""
    for path in folder.glob(_LISTS):
        path.unlink()


def _list(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.rejected.jsonl"


def _joined(folder: Path) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The lines of the joined file, by shard; a damaged line belongs to shard -1."""
    path = folder / REJECTED
    if path.exists():
        # As bytes: text would also be cut at the line separators that Unicode has besides the line feed.
        with path.open("rb") as file:
            yield from groupby(file, key=_shard_of)


def _shard_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["shard"])
    except (ValueError, KeyError, TypeError):
        return -1


# One slice of the plan: from its records to sentences and token ids, and with their vectors to a shard.

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
