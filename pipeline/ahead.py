"""Reading and tokenising ahead of the teacher, in processes of its own."""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import Position, Record
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.children import deaf_to_ctrl_c, receive, sendable
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.slices import SliceText, prepare_slice


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
