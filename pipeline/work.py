"""Embed slices one after another, with the next ones read ahead."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import Position, Record
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.processes import deaf_to_ctrl_c, receive, sendable
from sentence_distill.pipeline.shards import token_dtype
from sentence_distill.pipeline.slices import SliceText, commit_slice, prepare_slice

if TYPE_CHECKING:
    # Processes that read ahead need no PyTorch, which takes seconds to import.
    from sentence_distill.pipeline.teacher import Launched, Teacher


class ReadAhead:
    """Prepares slices in `processes`, each at most one slice ahead of what was taken from it.

    Processes, because reading and splitting are Python: in a thread they would take the interpreter from the
    thread that feeds the device. Iterate inside the `with` block; slices come in the order of `todo`.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        config: EmbedConfig,
        tokenizer_json: str,
        separator: Sequence[int],
        dtype: type[np.unsignedinteger[Any]],
        todo: Sequence[Slice],
        processes: int,
    ) -> None:
        """Say what to read.

        Args:
            corpus: the run's.
            config: the run's.
            tokenizer_json: the teacher's tokenizer.
            separator: the teacher's, between the sides of pairs; empty for single sentences.
            dtype: of the token ids.
            todo: slices to prepare.
            processes: how many read; the k-th takes every k-th slice.
        """
        self._count = len(todo)
        self._processes = []
        self._connections: list[Connection] = []
        # A fork would copy the threads' locks of PyTorch and Arrow in whatever state they are.
        context = multiprocessing.get_context("spawn")
        for number in range(min(processes, len(todo))):
            ours, theirs = context.Pipe(duplex=False)
            mine = todo[number::processes]
            arguments = (theirs, corpus, config, tokenizer_json, separator, dtype, mine, processes)
            self._processes.append(context.Process(target=_prepare, args=arguments, daemon=True))
            self._connections.append(ours)
            with deaf_to_ctrl_c():
                self._processes[-1].start()
            # Only the reader holds this end, so that its death shows as the end of the stream.
            theirs.close()

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.terminate()
            connection.close()
            process.join()

    def __iter__(self) -> Iterator[SliceText]:
        for number in range(self._count):
            place = number % len(self._connections)
            text = receive(self._connections[place])
            if text is None:
                self._processes[place].join()
                raise UserError(
                    f"a process that reads the corpus ended with code {self._processes[place].exitcode}, for want of "
                    "memory perhaps; what is committed stays: run the same command again to resume"
                )
            if isinstance(text, Exception):
                raise text
            assert isinstance(text, SliceText)
            yield text


def _prepare(
    connection: Connection,
    corpus: Corpus,
    config: EmbedConfig,
    tokenizer_json: str,
    separator: Sequence[int],
    dtype: type[np.unsignedinteger[Any]],
    todo: Sequence[Slice],
    stride: int,
) -> None:
    """What a reading process does: send each slice, or the error that ends the run."""
    try:
        tokenizer = TextTokenizer(tokenizer_json)
        for part, records in slice_records(corpus, todo, stride):
            connection.send(prepare_slice(records, part, config, tokenizer, dtype, separator))
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is left to read for
    except Exception as error:  # raised again where the run is
        connection.send(sendable(error))


def slice_records(corpus: Corpus, todo: Sequence[Slice], stride: int = 1) -> Iterator[tuple[Slice, Iterator[Record]]]:
    """Each slice with its records; slices at most `stride` apart share one pass over the corpus.

    To read over a few slices of others costs little, while opening a compressed file anew means to decompress
    it from its start.
    """
    records: Iterator[Record] = iter(())
    following = sys.maxsize  # the slice that `records` stands before
    for part in todo:
        near = 0 <= part.index - following < stride
        records = _forward(records, part.start) if near else corpus.records(part.start)
        yield part, islice(records, part.records)
        following = part.index + 1


def _forward(records: Iterator[Record], start: Position) -> Iterator[Record]:
    for record in records:
        if record.position == start:
            return chain([record], records)
    return iter(())


# The loop at the heart of stage one: slices come prepared, go through the teacher, and are committed behind it.


@dataclass(frozen=True)
class Job:
    """What the slices of a run have in common, whoever embeds them."""

    corpus: Corpus
    config: EmbedConfig
    out: Path
    fingerprint: dict[str, Any]


@dataclass
class Waits:
    """Seconds that the teacher stood still, in `total` seconds of a run over at least one slice."""

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
    """Embed slices and commit their shards.

    Three things go on at once: `readers` processes read and tokenise the next slices, this thread feeds the
    teacher, and a second thread writes the slice before. When it is stopped by an exception, slices whose
    vectors are there are still written.

    Args:
        job: the run.
        teacher: its teacher, loaded.
        todo: what to embed.
        readers: reading processes.
        advance: called with the number of sentences done.
    """
    waits, started = Waits(), time.monotonic()
    ahead = ReadAhead(
        corpus=job.corpus,
        config=job.config,
        tokenizer_json=teacher.tokenizer_json(),
        separator=teacher.separator,
        dtype=token_dtype(teacher.vocabulary_size),
        todo=todo,
        processes=readers,
    )
    # A GPU works on one slice while the vectors of the one before are fetched and written.
    depth = 1 if teacher.device.type == "cuda" else 0
    launched: list[tuple[SliceText, Launched]] = []
    with ahead, ThreadPoolExecutor(1, "writer") as writer:
        committed: Future[None] | None = None
        before = time.monotonic()
        for text in ahead:
            waits.reading += time.monotonic() - before
            assert text.tokens is not None
            advance(text.part.sentences - text.duplicates - len(text.sentences))
            launched.append((text, teacher.launch(text.tokens, job.config.token_budget, advance)))
            if len(launched) > depth:
                committed = _commit(job, writer, *launched.pop(0), committed, waits)
            before = time.monotonic()
        for rest in launched:
            committed = _commit(job, writer, *rest, committed, waits)
        if committed is not None:
            committed.result()
    waits.total = time.monotonic() - started
    return waits


def _commit(
    job: Job,
    writer: ThreadPoolExecutor,
    text: SliceText,
    launched: "Launched",
    before: "Future[None] | None",
    waits: Waits,
) -> "Future[None]":
    """Hand a slice to the writer once it is done with the one before, so that at most two wait in memory."""
    vectors = launched.vectors()
    started = time.monotonic()
    if before is not None:
        before.result()
    waits.writing += time.monotonic() - started
    return writer.submit(
        commit_slice,
        text,
        vectors,
        config=job.config,
        out=job.out,
        names=[source.name for source in job.corpus.sources],
        fingerprint=job.fingerprint,
    )
