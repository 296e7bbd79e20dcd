"""Encode the texts of files into files of vectors."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import Position, Record, Row
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import TEMPORARY, lock_folder, replacing, write_atomically
from sentence_distill.pipeline.records import differing_fields
from sentence_distill.student.vector_files import fitted, joined_schema, make_batch, settled, vector_writer


class TextEncoder(Protocol):
    """From sentences to vectors, in two steps, the first of which may be done ahead."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences."""

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """float32[n, dim] of n tokenized sentences."""

    def identity(self) -> dict[str, str]:
        """What the vectors depend on: hashes by name."""


# Rows of a part, which is what a kill costs at most.
WINDOW = 1 << 15
# Or fewer, where they are long.
WINDOW_CHARACTERS = 1 << 24
# Who reads a pipe does not want to wait long.
_PIPE_WINDOW = 1 << 12
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What the rows of a file of vectors are."""

    dtype: str = "float32"
    """Of the vectors, float32 or float16."""
    columns: tuple[str, ...] | None = None
    """The columns of the input that are kept beside the vectors; None keeps all."""
    format: str
    """One of `vector_files.FORMATS`."""


@dataclass
class Encoded:
    """What a run did: rows written, those that have no text by reason, and where the first of them stands."""

    rows: int = 0
    without_text: dict[str, int] = field(default_factory=dict)
    first_without: str = ""

    def add(self, window: "_Window") -> None:
        """Count a window."""
        self.rows += len(window.rows)
        for row, record in zip(window.rows, window.records, strict=True):
            if record.text is None:
                self.without_text[record.reason] = self.without_text.get(record.reason, 0) + 1
                self.first_without = self.first_without or row.where

    def describe(self) -> str:
        """The reasons for which records have no text."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.without_text.items())
        return f"{reasons}; the first: {self.first_without}"


@dataclass
class _Window:
    """Rows that are encoded together, their texts as records, and the tokens of those."""

    rows: list[Row]
    records: list[Record]
    tokens: Tokens


class FileEncoder:
    """Encodes the rows of a corpus, one vector a row, in their order; a row without text gets zeros."""

    def __init__(self, encoder: TextEncoder, corpus: Corpus, config: EncodeConfig) -> None:
        self._encoder, self._corpus, self._config = encoder, corpus, config
        self._columns = () if config.format == "npy" else config.columns
        # Of all rows so far.
        self._schema: pa.Schema | None = None
        self._stopped = False

    def stream(self, file: BinaryIO) -> Encoded:
        """Write to a pipe.

        Raises:
            UserError: the corpus can't be read to its end.
        """
        done, rows = Encoded(), self._corpus.rows()
        with progress.task("encode", None, "sentences") as advance, ExitStack() as opened:
            write = None
            # Not read ahead: a thread that waits for a pipe could not be stopped.
            while (window := self._read(rows, _PIPE_WINDOW)).rows:
                batch = self._batch(window)
                if write is None:
                    self._schema = settled(batch.schema)
                    write = opened.enter_context(vector_writer(file, self._config.format, self._schema, seekable=False))
                write(batch if self._config.format == "jsonl" else self._like_first(batch, window.rows[0].where))
                file.flush()
                done.add(window)
                advance(len(window.rows))
        return done

    def write(self, out: Path, *, overwrite: bool = False) -> Encoded:
        """Write a file; the windows that an earlier, stopped run left beside it are not encoded again.

        Args:
            out: the file, which is there when it is complete.
            overwrite: begin again if the stopped run was another one.

        Raises:
            UserError: as `stream`; or no record has text, or the earlier run was another one, or is still at work.
        """
        parts = parts_folder(out)
        parts.mkdir(parents=True, exist_ok=True)
        with lock_folder(parts):
            try:
                self._check_run(parts, overwrite)
                done, number = self._encode_parts(parts)
            except BaseException:
                if not _sidecar(_part(parts, 0)).exists():
                    # There is nothing to resume.
                    shutil.rmtree(parts, ignore_errors=True)
                raise
            if done.rows and sum(done.without_text.values()) == done.rows:
                shutil.rmtree(parts)
                raise UserError(f"none of the {done.rows:,} rows has text ({done.describe()}); nothing was written")
            self._join(parts, number, out)
            # In one step: half of a run that is over must not look like one to go on with.
            over = parts.with_name(parts.name + TEMPORARY)
            shutil.rmtree(over, ignore_errors=True)
            os.rename(parts, over)
        shutil.rmtree(over)
        return done

    def _like_first(self, batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
        """Return the batch with the columns that the first rows decided on, which Arrow and Parquet can't change."""
        if joined_schema(self._schema, batch.schema, where) != self._schema:
            raise UserError(
                f"{where} and on: there are other columns, or types, than in the first rows; write jsonl, write to a "
                "file, or name the columns to keep with --columns"
            )
        return fitted(batch, self._schema)

    def _check_run(self, parts: Path, overwrite: bool) -> None:
        run = {
            **self._encoder.identity(),
            "input": [[source.name, source.content_hash()] for source in self._corpus.sources],
            "text_column": self._corpus.text_column,
            "input_format": self._corpus.format,
            "window": [WINDOW, WINDOW_CHARACTERS],
            **asdict(self._config),
        }
        file = parts / _RUN
        if file.exists() and _sidecar(_part(parts, 0)).exists():
            differing = differing_fields(json.loads(file.read_text(encoding="utf-8")), run)
            if not differing:
                return
            if not overwrite:
                raise UserError(
                    f"{parts} holds what another run encoded: {'; '.join(differing)}; --overwrite begins again, or "
                    "name another --out"
                )
        # Nothing to resume: delete orphaned parts.
        for part in parts.glob("part-*"):
            part.unlink()
        write_atomically(file, json.dumps(run, indent=1).encode())

    def _encode_parts(self, parts: Path) -> tuple[Encoded, int]:
        """What all windows came to, and how many parts they are."""
        done, start, number = Encoded(), None, 0
        while _sidecar(part := _part(parts, number)).exists():
            state = json.loads(_sidecar(part).read_text(encoding="utf-8"))
            start, number = Position(**state.pop("last")), number + 1
            done = Encoded(**state)
            with _opened(part) as batches:
                self._schema = joined_schema(self._schema, batches.schema, part.name)
        if number:
            progress.log(f"resuming after {done.rows:,} rows, which {parts} holds")
        with progress.task("encode", None, "sentences", done.rows) as advance:
            for window, batch in self._windows_ahead(start):
                # Values that can't stand in one file show now, and not when all is done.
                self._schema = joined_schema(self._schema, batch.schema, window.rows[0].where)
                done.add(window)
                part, number = _part(parts, number), number + 1
                with replacing(part) as file, vector_writer(file, "arrow", batch.schema, seekable=True) as write:
                    write(batch)
                state = {**asdict(done), "last": asdict(window.rows[-1].position)}
                write_atomically(_sidecar(part), json.dumps(state).encode())
                advance(len(window.rows))
        return done, number

    def _join(self, parts: Path, number: int, out: Path) -> None:
        # A file without a row has vectors all the same.
        empty = make_batch([], (), np.empty((0, self._encoder.dim)), self._config.dtype)
        schema = settled(self._schema or empty.schema)
        with (
            replacing(out) as file,
            vector_writer(file, self._config.format, schema, seekable=True) as write,
        ):
            for part in (_part(parts, place) for place in range(number)):
                with _opened(part) as batches:
                    write(fitted(batches.get_batch(0), schema))

    def _windows_ahead(self, after: Position | None) -> Iterator[tuple[_Window, pa.RecordBatch]]:
        """Yield windows with their vectors; the next one is read and tokenized meanwhile."""
        # A run goes on behind the last row that it has.
        rows = islice(self._corpus.rows(after or Position()), 0 if after is None else 1, None)
        reader = ThreadPoolExecutor(1)
        try:
            coming = reader.submit(self._read, rows, WINDOW)
            while (window := coming.result()).rows:
                coming = reader.submit(self._read, rows, WINDOW)
                yield window, self._batch(window)
        finally:
            # Whoever stops a run does not want to wait for what is read ahead.
            self._stopped = True
            reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, rows: Iterator[Row], size: int) -> _Window:
        window: list[Row] = []
        records: list[Record] = []
        characters, columns = 0, self._corpus.columns
        while len(window) < size and characters < WINDOW_CHARACTERS and not self._stopped:
            if (row := next(rows, None)) is None:
                break
            window.append(row)
            records.append(row.record(columns))
            characters += len(records[-1].text or "")
        return _Window(window, records, self._encoder.tokenize([record.text or "" for record in records]))

    def _batch(self, window: _Window) -> pa.RecordBatch:
        vectors = self._encoder.vectors(window.tokens)
        vectors[[record.text is None for record in window.records]] = 0
        return make_batch(window.rows, self._columns, vectors, self._config.dtype)


@contextmanager
def _opened(part: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    try:
        with pa.memory_map(str(part)) as mapped:
            yield pa.ipc.open_file(mapped)
    except (pa.ArrowException, FileNotFoundError) as error:
        raise UserError(f"{part} is damaged or gone ({error}); remove {part.parent} and begin again") from error


def parts_folder(out: Path) -> Path:
    """Where a run keeps what it has encoded until `out` is complete."""
    return out.with_name(f"{out.name}.parts")


def _part(parts: Path, number: int) -> Path:
    return parts / f"part-{number:06d}.arrow"


def _sidecar(part: Path) -> Path:
    return part.with_suffix(".json")
