"""The plan of a run: one pass over the corpus that cuts it into slices and finds every duplicate.

With both known in advance, a slice depends on nothing but the corpus and the plan. Whoever embeds it, in whatever order
and however often, writes the same shard, which makes resuming, retries and parallel jobs simple. The price is that the
corpus is read and split twice.
"""

import multiprocessing
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, groupby, islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash, sentence_id
from sentence_distill.data.records import Position, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.pipeline.processes import cores, deaf_to_ctrl_c
from sentence_distill.pipeline.records import PlanRecord, TextFields, read_record, write_record

_BLOCK_RECORDS = 8192
# For smaller corpora, starting processes takes longer than splitting.
_PARALLEL_BYTES = 32 << 20


@dataclass(frozen=True)
class Split:
    """The sentences of r records: counts and ids of those that pass the rules, and reasons for the others."""

    ends: np.ndarray
    """int[r], number of passing sentences up to the end of each record."""
    hashes: bytes
    """Ids of the passing sentences, as uint64."""
    rejected: Counter[str]
    """Number of other sentences, by reason."""


def scan_corpus(corpus: Corpus, rules: SentenceRules) -> Iterator[tuple[list[Record], Split]]:
    """Yield all records in corpus order, in blocks that each lie within one file, with their sentences.

    Records are read by this process. For a large corpus, a process per core splits them into sentences.
    """
    blocks = (
        list(chain([first], islice(records, _BLOCK_RECORDS - 1)))
        for _, records in groupby(corpus.records(), key=lambda record: record.position.file)
        for first in records
    )
    processes = cores()
    if processes == 1 or sum(source.size for source in corpus.sources) < _PARALLEL_BYTES:
        for records in blocks:
            yield records, _split([record.text for record in records], rules)
        return
    with deaf_to_ctrl_c():
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        waiting: deque[tuple[list[Record], Future[Split]]] = deque()

        def submit(count: int) -> None:
            for records in islice(blocks, count):
                waiting.append((records, pool.submit(_split, [record.text for record in records], rules)))

        # Results are taken in the order of submission. Two blocks per process keep all of them busy, while only few
        # blocks are in memory.
        submit(2 * processes)
    try:
        while waiting:
            records, split = waiting.popleft()
            submit(1)
            yield records, split.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that splits the corpus died, perhaps because memory ran out; free some, and run the same "
            "command again"
        ) from error
    finally:
        # Python 3.14 has `terminate_workers` for this; `shutdown` alone would wait for unfinished blocks.
        for child in list(pool._processes.values()):
            child.terminate()
        pool.shutdown(cancel_futures=True)


def _split(texts: Sequence[str | None], rules: SentenceRules) -> Split:
    hashes = array("Q")
    ends = []
    rejected: Counter[str] = Counter()
    for text in texts:
        for sentence in split_sentences(text, rules) if text is not None else ():
            if sentence.reason:
                rejected[sentence.reason] += 1
            else:
                hashes.append(sentence_id(sentence.text))
        ends.append(len(hashes))
    return Split(np.array(ends), hashes.tobytes(), rejected)


# Slices.

_PARTITIONS = 64
# Limits the memory for rejections, which are kept until the shard is written: most of a corpus may be rejected.
_MOST_RECORDS = 1_000_000


@dataclass(frozen=True)
class Slice:
    """A part of the corpus, the unit of work, which becomes the shard of the same number."""

    index: int
    start: Position
    """Position of the first record."""
    records: int
    """Number of records; they may span several files."""
    sentences: int
    """Number of sentences that pass the rules."""
    duplicates: np.ndarray
    """uint32[d], indices among these sentences of those that occur earlier in the corpus, in any slice."""

    @property
    def rows(self) -> int:
        """Number of sentences without duplicates; its shard has at most as many rows."""
        return self.sentences - len(self.duplicates)


@dataclass(frozen=True)
class Plan:
    """The slices of a corpus, and the `fingerprint` of the corpus and the rules that they follow from."""

    slices: Sequence[Slice]
    fingerprint: TextFields

    @property
    def rows(self) -> int:
        """Number of sentences without duplicates; the shards have at most as many rows."""
        return sum(part.rows for part in self.slices)

    def share(self, number: int, count: int) -> Sequence[Slice]:
        """Return share `number` of `count` equal shares of the slices, counted from 1."""
        size = len(self.slices)
        return self.slices[size * (number - 1) // count : size * number // count]

    def save(self, path: Path) -> None:
        """Write the plan as an Arrow file, then the JSON file with its checksum, without which it does not count."""
        write_atomically(path, self.content)
        write_record(path.with_suffix(".json"), PlanRecord(fingerprint=self.fingerprint, xxh3_128=self.hash))

    @property
    def hash(self) -> str:
        """xxh3-128 of the plan's Arrow file."""
        return bytes_hash(self.content)

    @property
    def content(self) -> bytes:
        """Content of the plan's Arrow file; the same plan always gives the same bytes."""
        columns = {
            **{
                name: pa.array([getattr(part.start, name) for part in self.slices], kind)
                for name, kind in (("file", pa.uint32()), ("record", pa.uint64()), ("offset", pa.uint64()))
            },
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
        """Read a plan; None if it is missing or damaged, and has to be rebuilt."""
        record = read_record(path.with_suffix(".json"), PlanRecord)
        # The checksum is compared before Arrow reads the file, because damaged offsets would crash the process.
        if record is None or not path.exists() or bytes_hash(content := path.read_bytes()) != record.xxh3_128:
            return None
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        numbers = [table[name].to_pylist() for name in ("file", "record", "offset", "records", "sentences")]
        # NumPy views: for a corpus full of duplicates, Python integers would not fit into memory.
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

    A slice may have fewer sentences if it reaches a million records, or eight times `shard_rows` if that is more.
    `advance` is called with the number of records read.

    Memory: 8 bytes per sentence for its hash (9 while the list grows), and 2 while duplicates are marked.
    """
    hashes = array("Q")
    cuts: list[tuple[Position, int, int]] = []  # start, records and sentences of each slice
    start: Position | None = None
    records = sentences = 0
    most_records = max(_MOST_RECORDS, 8 * shard_rows)
    rejected: Counter[str] = Counter()
    for block, split in scan_corpus(corpus, rules):
        hashes.frombytes(split.hashes)
        # A block may complete several slices, and a slice may span several blocks. `ends` counts the passing sentences
        # of the block cumulatively, so a binary search finds the record that fills the current slice.
        ends, first = split.ends, 0
        while first < len(ends):
            start = start or block[first].position
            before = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, before + shard_rows - sentences))
            last = min(last, first + most_records - records - 1)
            after = min(last + 1, len(ends))
            records += after - first
            sentences += int(ends[after - 1]) - before
            first = after
            # Beyond the end of the block, the slice stays open for the next one.
            if last < len(ends):
                cuts.append((start, records, sentences))
                start, records, sentences = None, 0, 0
        rejected += split.rejected
        rejected.update(record.reason for record in block if record.text is None)
        rejected["heading"] += sum(len(record.headings) for record in block)
        advance(len(block))
    if start is not None:
        cuts.append((start, records, sentences))
    if not hashes:
        reason, count = (rejected.most_common(1) or [("", 0)])[0]
        why = f": of {rejected.total():,} records and sentences, {count:,} are rejected as {reason!r}" if count else ""
        raise UserError(
            f"the corpus holds no usable sentence{why}; check the files, --input-format and --text-column, or let more "
            "pass with --min-words and --max-words"
        )
    duplicate = mark_duplicates(np.frombuffer(hashes, dtype=np.uint64))
    slices, first = [], 0
    for index, (start, records, sentences) in enumerate(cuts):
        marks = np.flatnonzero(duplicate[first : first + sentences]).astype(np.uint32)
        slices.append(Slice(index, start, records, sentences, marks))
        first += sentences
    return Plan(slices, fingerprint)


def mark_duplicates(hashes: np.ndarray) -> np.ndarray:
    """Return bool[n], True for hashes that occur earlier in uint64[n] `hashes`.

    Hashes are uniform, so each of 64 ranges of values holds about 1/64 of them. Sorting one range at a time needs
    little memory in addition to the hashes.
    """
    duplicate = np.zeros(len(hashes), dtype=bool)
    bounds = np.arange(1, _PARTITIONS, dtype=np.uint64) * np.uint64((1 << 64) // _PARTITIONS)
    for low, high in pairwise([None, *bounds, None]):
        inside = np.ones(len(hashes), dtype=bool) if low is None else hashes >= low
        if high is not None:
            inside &= hashes < high
        places = np.flatnonzero(inside)
        values = hashes[places]
        # A stable sort keeps equal hashes in corpus order, so all but the first of them are duplicates.
        order = np.argsort(values, kind="stable")
        again = np.zeros(len(values), dtype=bool)
        again[order[1:]] = values[order[1:]] == values[order[:-1]]
        duplicate[places[again]] = True
    return duplicate


# The fingerprint of a plan: the files of the corpus by name, size and content, and the sentence rules.


def text_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int, known: Plan | None = None) -> TextFields:
    """Return the fields of the fingerprint that the plan depends on.

    If the files have the names and sizes of a `known` plan, its content hash is used, so that not every one of many
    jobs reads the whole corpus.
    """
    quick = quick_fingerprint(corpus, rules, shard_rows)
    if known is not None and known.fingerprint["corpus_names"] == quick["corpus_names"]:
        return {**quick, "corpus_content": known.fingerprint["corpus_content"]}
    content = bytes_hash("\n".join(source.content_hash() for source in corpus.sources).encode())
    return {**quick, "corpus_content": content}


def quick_fingerprint(corpus: Corpus, rules: SentenceRules, shard_rows: int) -> TextFields:
    """Return the fields of `text_fingerprint` without the hash of the content, which takes time."""
    for source in corpus.sources:
        try:
            source.name.encode()
        except UnicodeEncodeError:
            # It could be written neither to a fingerprint nor to rejected.jsonl.
            raise UserError(f"the file name {source.name!r} in the corpus is not UTF-8; rename it") from None
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
        "spans": rules.spans,
    }
