"""The plan of a run: one pass over the corpus that cuts it into slices and finds every duplicate."""

import multiprocessing
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash, sentence_id
from sentence_distill.data.records import Position, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.sources import Source
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.pipeline.processes import cores, deaf_to_ctrl_c
from sentence_distill.pipeline.records import PlanRecord, TextFields, read_record, write_record

_BLOCK_RECORDS = 8192
# Below this, starting processes takes longer than splitting.
_PARALLEL_BYTES = 32 << 20


@dataclass(frozen=True)
class Block:
    """Records of one file that follow each other.

    Args:
        file: number of the file.
        records: uint64[r], number of each record in it.
        offsets: uint64[r], where each record begins, see `Position`.
        sentences: uint32[r], how many sentences of each pass the rules.
        hashes: uint64[sum of sentences], their ids.
        rejected: how many records and sentences do not pass, by reason.
    """

    file: int
    records: np.ndarray
    offsets: np.ndarray
    sentences: np.ndarray
    hashes: np.ndarray
    rejected: Counter[str]


def scan_corpus(corpus: Corpus, rules: SentenceRules) -> Iterator[Block]:
    """Yield all records in the order of the corpus; the sentences of a large one are split by all cores."""
    blocks = _blocks(corpus)
    processes = cores()
    if processes == 1 or sum(source.size for source in corpus.sources) < _PARALLEL_BYTES:
        for records in blocks:
            yield _block(records, *_split(_texts(records), rules))
        return
    with deaf_to_ctrl_c():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        waiting: deque[tuple[list[Record], Future[Any]]] = deque()

        def submit(count: int) -> None:
            waiting.extend((records, pool.submit(_split, _texts(records), rules)) for records in islice(blocks, count))

        # The pool starts a process for each of its first tasks. Each finds a block when it is done with one, and few
        # lie read in memory.
        submit(2 * processes)
    try:
        while waiting:
            records, split = waiting.popleft()
            submit(1)
            yield _block(records, *split.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a process that splits the corpus ended, perhaps because memory ran out; free some, and run the same "
            "command again"
        ) from error
    finally:
        # What Python 3.14 calls terminate_workers: shutdown alone would wait until their blocks are split.
        for child in list(pool._processes.values()):
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _blocks(corpus: Corpus) -> Iterator[list[Record]]:
    """Yield runs of records of one file."""
    for _, records in groupby(corpus.records(), key=lambda record: record.position.file):
        while block := list(islice(records, _BLOCK_RECORDS)):
            yield block


def _texts(records: Sequence[Record]) -> list[str | None]:
    return [record.text for record in records]


def _split(texts: Sequence[str | None], rules: SentenceRules) -> tuple[list[int], bytes, Counter[str]]:
    """Count the sentences of each text that pass, and return the hashes of all of them and why the others do not."""
    hashes = array("Q")
    counts = []
    rejected: Counter[str] = Counter()
    for text in texts:
        before = len(hashes)
        for sentence in split_sentences(text, rules) if text is not None else ():
            if sentence.reason:
                rejected[sentence.reason] += 1
            else:
                hashes.append(sentence_id(sentence.text))
        counts.append(len(hashes) - before)
    return counts, hashes.tobytes(), rejected


def _block(records: Sequence[Record], counts: list[int], hashes: bytes, rejected: Counter[str]) -> Block:
    unreadable = Counter(record.reason for record in records if record.text is None)
    unreadable["heading"] += sum(len(record.headings) for record in records)
    return Block(
        file=records[0].position.file,
        records=np.array([record.position.record for record in records], dtype=np.uint64),
        offsets=np.array([record.position.offset for record in records], dtype=np.uint64),
        sentences=np.array(counts, dtype=np.uint32),
        hashes=np.frombuffer(hashes, dtype=np.uint64),
        rejected=rejected + unreadable,
    )


# Slices.

_PARTITIONS = 64
# Whatever a slice rejects is held until its shard is written, and a corpus may consist of little else.
_MOST_RECORDS = 1_000_000


@dataclass(frozen=True)
class Slice:
    """One unit of work.

    Args:
        index: number of the slice and of its shard.
        start: position of its first record.
        records: how many records it spans, over file ends too.
        sentences: how many of its sentences pass the rules.
        duplicates: uint32[d], which of those (counted from 0) occurred earlier in the corpus.
    """

    index: int
    start: Position
    records: int
    sentences: int
    duplicates: np.ndarray

    @property
    def rows(self) -> int:
        """Sentences without duplicates: the most rows that its shard can hold."""
        return self.sentences - len(self.duplicates)


@dataclass(frozen=True)
class Plan:
    """The slices of a corpus, and the `fingerprint` of the corpus and the rules that they were made from."""

    slices: Sequence[Slice]
    fingerprint: TextFields

    @property
    def rows(self) -> int:
        """Sentences without duplicates: the most rows that the shards can hold."""
        return sum(part.rows for part in self.slices)

    def share(self, number: int, count: int) -> Sequence[Slice]:
        """Return the `number`-th of `count` equal shares of the slices, counted from 1."""
        size = len(self.slices)
        return self.slices[size * (number - 1) // count : size * number // count]

    def save(self, path: Path) -> None:
        """Write the plan as an Arrow file, then the JSON file beside it that vouches for it."""
        content = self._bytes()
        write_atomically(path, content)
        write_record(path.with_suffix(".json"), PlanRecord(fingerprint=self.fingerprint, xxh3_128=bytes_hash(content)))

    @property
    def hash(self) -> str:
        """xxh3-128 of the plan's Arrow file; the same plan always gives the same bytes."""
        return bytes_hash(self._bytes())

    def _bytes(self) -> bytes:
        columns = {
            "file": pa.array([part.start.file for part in self.slices], pa.uint32()),
            "record": pa.array([part.start.record for part in self.slices], pa.uint64()),
            "offset": pa.array([part.start.offset for part in self.slices], pa.uint64()),
            "records": pa.array([part.records for part in self.slices], pa.uint64()),
            "sentences": pa.array([part.sentences for part in self.slices], pa.uint32()),
            "duplicates": pa.array([part.duplicates for part in self.slices], pa.list_(pa.uint32())),
        }
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    @classmethod
    def load(cls, path: Path) -> "Plan | None":
        """Read a plan; None if there is none, or a damaged one: it is then rebuilt."""
        record = read_record(path.with_suffix(".json"), PlanRecord)
        # Before Arrow sees it: on damaged offsets it does not fail, it crashes.
        if record is None or not path.exists() or bytes_hash(content := path.read_bytes()) != record.xxh3_128:
            return None
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        numbers = [table[name].to_pylist() for name in ("file", "record", "offset", "records", "sentences")]
        # Numpy views: as Python numbers a corpus full of duplicates would not fit.
        duplicates = [marks.values.to_numpy(zero_copy_only=False) for marks in table["duplicates"]]
        slices = [
            Slice(index, Position(file, record, offset), records, sentences, marks)
            for index, (file, record, offset, records, sentences, marks) in enumerate(
                zip(*numbers, duplicates, strict=True)
            )
        ]
        return cls(slices, record.fingerprint)


def make_plan(
    corpus: Corpus, rules: SentenceRules, shard_rows: int, fingerprint: TextFields, advance: Callable[[int], None]
) -> Plan:
    """Read the corpus once and cut it, at record ends, into slices of at least `shard_rows` sentences.

    A slice that has fewer ends after a million records, or eight for each of `shard_rows` if that is more.
    `advance` is called with the number of records read.

    Memory: 8 bytes a sentence for its hash (9 while the list grows), and 2 while duplicates are marked.

    Raises:
        UserError: the corpus holds no sentence that passes the rules.
    """
    hashes = array("Q")
    cuts: list[tuple[Position, int, int]] = []  # start, records and sentences of each slice
    start: Position | None = None
    records = sentences = 0
    most_records = max(_MOST_RECORDS, 8 * shard_rows)
    rejected: Counter[str] = Counter()
    for block in scan_corpus(corpus, rules):
        hashes.frombytes(block.hashes.tobytes())
        ends = np.cumsum(block.sentences)
        first = 0
        while first < len(ends):
            if start is None:
                start = Position(block.file, int(block.records[first]), int(block.offsets[first]))
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + shard_rows - sentences))
            last = min(last, first + most_records - records - 1)
            after = min(last + 1, len(ends))
            records += after - first
            sentences += int(ends[after - 1]) - before
            first = after
            if last < len(ends):
                cuts.append((start, records, sentences))
                start, records, sentences = None, 0, 0
        rejected += block.rejected
        advance(len(ends))
    if start is not None:
        cuts.append((start, records, sentences))
    if not hashes:
        raise UserError(f"the corpus holds no sentence that can be used: {_why_none(rejected)}")
    duplicate = mark_duplicates(np.frombuffer(hashes, dtype=np.uint64))
    slices, first = [], 0
    for index, (start, records, sentences) in enumerate(cuts):
        marks = np.flatnonzero(duplicate[first : first + sentences]).astype(np.uint32)
        slices.append(Slice(index, start, records, sentences, marks))
        first += sentences
    return Plan(slices, fingerprint)


def _why_none(rejected: Counter[str]) -> str:
    """Explain why every sentence was rejected."""
    if not rejected:
        return "it is empty"
    reason, count = rejected.most_common(1)[0]
    return (
        f"of {rejected.total():,} records and sentences {count:,} are rejected as {reason!r}; check the files, "
        "--input-format and --text-column, or let more pass with --min-words and --max-words"
    )


def mark_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Return bool[n]: True if the same hash occurs earlier in uint64[n] `hashes`.

    Works on one part of the value range at a time, so that sorting needs little memory besides the hashes.
    """
    duplicate = np.zeros(len(hashes), dtype=bool)
    bounds = np.arange(1, _PARTITIONS, dtype=np.uint64) * np.uint64((1 << 64) // _PARTITIONS)
    for low, high in pairwise([None, *bounds, None]):
        inside = np.ones(len(hashes), dtype=bool) if low is None else hashes >= low
        if high is not None:
            inside &= hashes < high
        places = np.flatnonzero(inside)
        values = hashes[places]
        order = np.argsort(values, kind="stable")
        again = np.zeros(len(values), dtype=bool)
        again[order[1:]] = values[order[1:]] == values[order[:-1]]
        duplicate[places[again]] = True
    return duplicate


# What decides a plan: files of the corpus by name, size and content, and the sentence rules.


def require_utf8_names(sources: Iterable[Source]) -> None:
    """Refuse names that neither a fingerprint nor rejected.jsonl could hold.

    Raises:
        UserError: the name of a file is not UTF-8.
    """
    for source in sources:
        try:
            source.name.encode()
        except UnicodeEncodeError:
            raise UserError(f"the name of the corpus's file {source.name!r} is not UTF-8; rename it") from None


def text_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int, known: Plan | None = None) -> TextFields:
    """Return the fields of the fingerprint that decide the plan.

    Args:
        corpus: its files.
        rules: the sentence rules.
        shard_rows: sentences of a slice.
        known: a plan that is trusted for the content of files with the same names and sizes, so that not each of
            many jobs reads the whole corpus; None reads all.

    Raises:
        UserError: a file can't be read to its end, or its name is not UTF-8.
    """
    quick = quick_fingerprint(corpus, rules, shard_rows)
    if known is not None and known.fingerprint["corpus_names"] == quick["corpus_names"]:
        return {**quick, "corpus_content": known.fingerprint["corpus_content"]}
    content = bytes_hash("\n".join(source.content_hash() for source in corpus.sources).encode())
    return {**quick, "corpus_content": content}


def quick_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int) -> TextFields:
    """Return the fields of `text_fingerprint` that need no reading: all but the content of the files.

    Raises:
        UserError: the name of a file is not UTF-8.
    """
    require_utf8_names(corpus.sources)
    listing = [f"{source.name} {source.size}" for source in corpus.sources]
    return {
        "corpus_files": len(listing),
        "corpus_bytes": sum(source.size for source in corpus.sources),
        "corpus_names": bytes_hash("\n".join(listing).encode()),
        "format": corpus.format or "auto",
        "text_field": corpus.text_column,
        "splitter": rules.splitter,
        "language": rules.language if rules.split else "none",
        "min_words": rules.min_words,
        "max_words": rules.max_words,
        "shard_rows": shard_rows,
    }
