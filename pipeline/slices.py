"""The main loop of stage one: read slices ahead, feed the teacher, and commit their shards.

The three run at the same time, so that the teacher, which takes nearly all of the time, rarely waits: reader processes
prepare the next slices, the main thread embeds, and a thread writes the previous slice.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.progress import counted
from sentence_distill.data.records import EXCERPT_CHARACTERS, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.load import tokenize_pairs
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.processes import receive, start_child
from sentence_distill.pipeline.records import Counts, Fingerprint, Start
from sentence_distill.pipeline.shards import (
    DTYPES,
    Rejection,
    make_table,
    shard_name,
    token_dtype,
    write_list,
    write_shard,
)

if TYPE_CHECKING:
    # Reader processes don't need PyTorch, which takes seconds to import.
    from sentence_distill.pipeline.teacher import PendingEmbeddings, Teacher

# A few vectors may overflow; more than this share means that something is wrong with the teacher or its precision.
_MOST_NON_FINITE = 0.01


@dataclass(frozen=True)
class Job:
    """Everything that the slices of a run share, in whatever process they are embedded."""

    corpus: Corpus
    rules: SentenceRules
    out: Path
    fingerprint: Fingerprint


# A slice of the corpus: from its records to sentences and token ids, and then with their vectors to a shard.


@dataclass
class SliceText:
    """The sentences of a slice, with its rejections and counts."""

    part: Slice
    sentences: list[str] = field(default_factory=list)
    """n sentences that may become rows."""
    places: list[tuple[int, int]] = field(default_factory=list)
    """File and record of each sentence."""
    rejections: list[Rejection] = field(default_factory=list)
    records: int = 0
    duplicates: int = 0
    """Number of sentences that were left out because they occur earlier in the corpus."""
    tokens: Tokens = field(default_factory=lambda: Tokens.of([]))
    """Tokens of the n sentences."""

    def reject(self, unfit: np.ndarray, reason: str) -> None:
        """Move the sentences that bool[n] `unfit` marks to the rejections."""
        if not unfit.any():
            return
        for row in np.flatnonzero(unfit):
            self.rejections.append(Rejection(*self.places[row], reason, self.sentences[row][:EXCERPT_CHARACTERS]))
        rows = np.flatnonzero(~unfit)
        self.sentences = [self.sentences[row] for row in rows]
        self.places = [self.places[row] for row in rows]
        self.tokens = self.tokens.take(rows)


def prepare_slice(job: Job, part: Slice, records: Iterable[Record], tokenizer: TextTokenizer) -> SliceText:
    """Split and tokenize the records of a slice; leave out duplicates, and sentences with no tokens or too many."""
    text = SliceText(part)
    # The plan numbers duplicates among the passing sentences of the slice, which `usable` counts in the same order.
    duplicates = frozenset(part.duplicates.tolist())
    usable = 0
    for record in records:
        text.records += 1
        place = (record.position.file, record.position.record)
        if record.text is None:
            text.rejections.append(Rejection(*place, record.reason, record.excerpt))
            continue
        text.rejections.extend(Rejection(*place, "heading", heading) for heading in record.headings)
        for sentence in split_sentences(record.text, job.rules):
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
            f"the corpus changed while it was read: slice {part.index} held {counted(part.sentences, 'sentence')} "
            f"and now holds {usable:,}; run again when the files no longer change"
        )
    sentences, separator = text.sentences, job.fingerprint.separator
    tokens = tokenize_pairs(tokenizer, sentences, separator) if separator else tokenizer.tokenize(sentences)
    text.tokens = tokens.astype(token_dtype(job.fingerprint.vocabulary))
    text.reject(text.tokens.lengths > job.fingerprint.max_tokens, "too many tokens")
    # A tokenizer may drop every character of a sentence, which leaves nothing to pool.
    text.reject(text.tokens.lengths == 0, "no tokens")
    return text


def commit_slice(job: Job, text: SliceText, vectors: np.ndarray) -> None:
    """Write the shard of a prepared slice of n sentences, and its list of rejections.

    `vectors` are float32[n, dim], or [n, dim + classes] with logits. Rows that are not finite are rejected; more than
    1% of them is an error.
    """
    dtype = job.fingerprint.dtype
    with np.errstate(over="ignore"):  # values beyond the range of float16 become infinite, and are rejected below
        rows = vectors[:, : job.fingerprint.dim].astype(DTYPES[dtype])
    logits = vectors[:, job.fingerprint.dim :]
    finite = np.isfinite(rows).all(axis=1) & np.isfinite(logits).all(axis=1)
    if (~finite).sum() > 1 + _MOST_NON_FINITE * len(finite):
        raise UserError(
            f"{(~finite).sum():,} of {len(finite):,} vectors of the teacher in slice {text.part.index} are not finite "
            f"in {dtype}; try --precision fp32, and --dtype float32 for values beyond 65,504"
        )
    sentences = len(text.sentences) + text.duplicates + len(text.rejections)
    text.reject(~finite, "non-finite embedding")
    text.rejections.sort(key=lambda rejection: (rejection.file, rejection.record))
    ids = np.array([sentence_id(sentence) for sentence in text.sentences], dtype=np.uint64)
    sources = job.corpus.sources
    corpora = np.array([sources[file].location for file, _ in text.places], dtype=np.uint16)
    kept = text.sentences if job.fingerprint.keep_text else None
    table = make_table(ids, corpora, text.tokens, rows[finite], kept, logits[finite] if logits.shape[1] else None)
    # Written before the sidecar, so that a shard that exists always has its list.
    names = [source.name for source in sources]
    rejected = write_list(job.out, text.part.index, text.rejections, names)
    start = text.part.start
    reasons = Counter(rejection.reason for rejection in text.rejections)
    write_shard(
        job.out / shard_name(text.part.index),
        table,
        source=Start(file=start.file, record=start.record, offset=start.offset),
        counts=Counts(
            records=text.records,
            sentences=sentences,
            duplicates=text.duplicates,
            rejected=dict(sorted(reasons.items())),
        ),
        rejected_xxh3_128=rejected,
        fingerprint=job.fingerprint,
    )


# Reader processes. Reading and splitting are pure Python: in a thread, they would hold the GIL while the main thread
# should feed the device.


def read_ahead(
    job: Job, tokenizer_json: str, todo: Sequence[Slice], processes: int
) -> Generator[SliceText, None, None]:
    """Prepare slices in several processes; yield them in the order of `todo`."""
    readers = []
    try:
        # Reader k of n prepares slices k, k + n, k + 2n and so on, so receiving from the readers in turn restores the
        # order without a queue. A reader blocks in `send` until its slice is received: each is at most one slice ahead.
        for number in range(min(processes, len(todo))):
            readers.append(start_child(_read, job, tokenizer_json, todo[number::processes], processes, daemon=True))
        for number in range(len(todo)):
            connection, process = readers[number % len(readers)]
            text = receive(connection)
            if text is None:
                process.join()
                raise UserError(
                    f"a process that reads the corpus died with exit code {process.exitcode}, perhaps because memory "
                    "ran out; finished shards are kept: run the same command again to resume"
                )
            if isinstance(text, Exception):
                raise text
            assert isinstance(text, SliceText)
            yield text
    finally:
        for connection, process in readers:
            process.terminate()
            connection.close()
            process.join()


def _read(connection: Connection, job: Job, tokenizer_json: str, todo: Sequence[Slice], stride: int) -> None:
    """Prepare slices and send them, in a reader process."""
    tokenizer = TextTokenizer(tokenizer_json)
    for part, records in slice_records(job.corpus, todo, stride):
        connection.send(prepare_slice(job, part, records, tokenizer))


def slice_records(corpus: Corpus, todo: Sequence[Slice], stride: int = 1) -> Iterator[tuple[Slice, Iterator[Record]]]:
    """Yield each slice with its records; slices less than `stride` apart share one pass over the corpus.

    Reading past a few slices of other readers is cheap, but to open a compressed file again means decompressing it from
    the start.
    """
    records: Iterator[Record] = iter(())
    following = sys.maxsize  # index of the slice that `records` will yield next
    for part in todo:
        if not 0 <= part.index - following < stride:
            records = corpus.records(part.start)
        # Skip to the start of the slice. The iterator is never wrapped to put the first record back: after thousands of
        # slices, the nesting would be too deep.
        first = next((record for record in records if record.position == part.start), None)
        yield part, iter(()) if first is None else chain([first], islice(records, part.records - 1))
        following = part.index + 1


# The main loop.


@dataclass
class Waits:
    """Seconds that the teacher spent waiting for text and for the disk, out of `total` seconds."""

    reading: float = 0.0
    writing: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        share = 100 / max(1e-9, self.total)
        reading, writing = self.reading * share, self.writing * share
        return f"the teacher waited {reading:.1f}% of the time for text, {writing:.1f}% for disk"


def embed_slices(
    job: Job,
    teacher: "Teacher",
    todo: Sequence[Slice],
    *,
    readers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Waits:
    """Embed slices, commit their shards, and return how long the teacher waited.

    `readers` processes read and tokenize the next slices, this thread feeds the teacher, and a second thread writes the
    previous slice. If an exception stops the loop, slices handed to the writer are still written. `advance` is called
    with the number of sentences done.
    """
    # On a GPU, `launch` only queues the computation: one slice stays pending, so that the GPU works on it while the
    # vectors of the previous one are copied back and written. On a CPU, `launch` itself computes.
    depth = 1 if teacher.device.type == "cuda" else 0
    pending: list[tuple[SliceText, PendingEmbeddings]] = []
    committed: Future[None] | None = None
    waits = Waits()
    before = started = time.monotonic()
    with (
        closing(read_ahead(job, teacher.tokenizer_json(), todo, readers)) as ahead,
        ThreadPoolExecutor(1, "writer") as writer,
    ):

        def commit_first() -> None:
            """Hand the oldest slice to the writer, once that has finished the previous one: two at most use memory."""
            nonlocal committed
            text, embeddings = pending.pop(0)
            vectors = embeddings.vectors()
            waiting = time.monotonic()
            if committed is not None:
                committed.result()
            waits.writing += time.monotonic() - waiting
            committed = writer.submit(commit_slice, job, text, vectors)

        for text in ahead:
            waits.reading += time.monotonic() - before
            advance(text.part.sentences - text.duplicates - len(text.sentences))
            pending.append((text, teacher.launch(text.tokens, job.fingerprint.token_budget, advance)))
            if len(pending) > depth:
                commit_first()
            before = time.monotonic()
        while pending:
            commit_first()
        if committed is not None:
            committed.result()
    waits.total = time.monotonic() - started
    return waits
