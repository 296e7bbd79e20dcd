"""Jobs from rows to rows: open what is read, read windows ahead, and keep what is done until the output is complete."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import Position, Row
from sentence_distill.data.row_writer import fitted, joined_schema, settled, vector_writer
from sentence_distill.data.sources import STANDARD_INPUT, Source
from sentence_distill.pipeline.files import TEMPORARY, lock_folder, replacing, write_atomically
from sentence_distill.pipeline.records import differing_fields

STREAM = "-"
"""Standard input, or standard output."""
_SUFFIXES = {"ndjson": "jsonl", "feather": "arrow", "ipc": "arrow"}
T = TypeVar("T")


def output_format(out: str, given: str | None, known: Sequence[str]) -> str:
    """Return the format of an output: the one given, or by the name of the file, or JSON lines in a pipe.

    Raises:
        UserError: the name stands for none of `known`.
    """
    suffix = Path(out).suffix.lower().removeprefix(".")
    found = given or ("jsonl" if out == STREAM else _SUFFIXES.get(suffix, suffix))
    if found not in known:
        raise UserError(f"--out {out}: the name should end in .{', .'.join(known)}, or say --format")
    return found


def open_input(inputs: Sequence[str], format: str | None, text_column: str, *, leave_out: Path | None = None) -> Corpus:
    """Open the rows of files, or of standard input; blank lines are rows too."""
    if STANDARD_INPUT in inputs:
        return Corpus.of_standard_input(format, text_column, keep_blank=True)
    return Corpus.open(
        inputs, format=format, text_column=text_column, keep_blank=True, leave_out=leave_out, log=progress.log
    )


def check_output(out: str, overwrite: bool, sources: Sequence[Source] = ()) -> None:
    """Refuse a file that is read, or is there already.

    Raises:
        UserError: it is refused.
    """
    path = Path(out)
    if out == STREAM:
        return
    if any(source.is_file(path) for source in sources):
        raise UserError(f"--out {out} is among the input; name another file")
    if path.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{out} is there already; name another file, or --overwrite replaces it")


@contextmanager
def open_output(out: str) -> Iterator[BinaryIO]:
    """Open a file that is there once it is complete, or standard output."""
    if out == STREAM:
        yield sys.stdout.buffer
    else:
        with replacing(Path(out)) as file:
            yield file


def read_ahead(read: Callable[[Callable[[], bool]], T]) -> Iterator[T]:
    """Yield what `read` returns until that is empty; the next one is read meanwhile.

    Args:
        read: reads one; it should return early once the function that it is given returns True.
    """
    stopped = False
    reader = ThreadPoolExecutor(1)
    try:
        coming = reader.submit(read, lambda: stopped)
        while found := coming.result():
            coming = reader.submit(read, lambda: stopped)
            yield found
    finally:
        # Whoever stops a run does not want to wait for what is read ahead.
        stopped = True
        reader.shutdown(wait=True, cancel_futures=True)


class Counts(msgspec.Struct):
    """What a job did: rows written, those that have no text by reason, and where the first of them stands."""

    rows: int = 0
    without_text: dict[str, int] = msgspec.field(default_factory=dict)
    first_without: str = ""

    def add_rows(self, rows: Sequence[Row], reasons: Sequence[str]) -> None:
        """Count rows; the reason of one that has a text is ""."""
        self.rows += len(rows)
        for row, reason in zip(rows, reasons, strict=True):
            if reason:
                self.without_text[reason] = self.without_text.get(reason, 0) + 1
                self.first_without = self.first_without or row.where

    @property
    def empty(self) -> int:
        """Number of rows that have no text."""
        return sum(self.without_text.values())

    def describe(self) -> str:
        """Return the reasons for which rows have no text."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.without_text.items())
        return f"{reasons}; the first: {self.first_without}"


class _Done(msgspec.Struct):
    """Sidecar of a part: all that was done up to its end, and the position of its last row."""

    counts: Counts
    last: list[int]


def parts_folder(out: str | Path) -> Path:
    """Return the folder that keeps what is done until `out` is complete."""
    return Path(f"{out}.parts")


class Parts:
    """Finished parts of a file that is not complete yet, each an Arrow file with a sidecar that is written after it."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._folder = parts_folder(out)
        self._number = 0
        self._schema: pa.Schema | None = None
        self.counts = Counts()
        self.last: Position | None = None
        """Where the last row of the last part begins."""

    @contextmanager
    def open(self, run: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Lock the folder and read its parts; when the block ends the folder is gone, or keeps them if it fails.

        Args:
            run: what the parts depend on.
            overwrite: begin again if they are of another run.

        Raises:
            UserError: the parts are of another run, are damaged, or that run is still at work.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self._folder):
            try:
                self._check_run(run, overwrite)
                self._read()
                yield
            except BaseException:
                if not self._sidecar(0).exists():
                    # There is nothing to resume.
                    self.remove()
                raise
            self.remove()

    def add(self, batch: pa.RecordBatch, rows: Sequence[Row], reasons: Sequence[str]) -> None:
        """Write the next part."""
        # Values that can't stand in one file show now, and not when all is done.
        self._schema = joined_schema(self._schema, batch.schema, rows[0].where)
        self.counts.add_rows(rows, reasons)
        self.last = rows[-1].position
        with (
            replacing(self._part(self._number)) as file,
            vector_writer(file, "arrow", batch.schema, seekable=True) as write,
        ):
            write(batch)
        done = _Done(self.counts, [self.last.file, self.last.record, self.last.offset])
        write_atomically(self._sidecar(self._number), msgspec.json.encode(done))
        self._number += 1

    def join(self, format: str, empty: pa.Schema) -> None:
        """Write the file; `empty` is its schema if there is no part."""
        schema = settled(self._schema or empty)
        with replacing(self._out) as file, vector_writer(file, format, schema, seekable=True) as write:
            for number in range(self._number):
                with self._opened(number) as batches:
                    write(fitted(batches.get_batch(0), schema))

    def remove(self) -> None:
        """Remove the folder, in one step: half of a run that is over must not look like one to resume."""
        over = self._folder.with_name(self._folder.name + TEMPORARY)
        shutil.rmtree(over, ignore_errors=True)
        if self._folder.exists():
            os.rename(self._folder, over)
            shutil.rmtree(over)

    def _check_run(self, run: dict[str, Any], overwrite: bool) -> None:
        file = self._folder / "run.json"
        # As it reads back.
        run = msgspec.json.decode(msgspec.json.encode(run))
        if file.exists() and self._sidecar(0).exists():
            differing = differing_fields(msgspec.json.decode(file.read_bytes()), run)
            if not differing:
                return
            if not overwrite:
                raise UserError(
                    f"{self._folder} holds what another run encoded: {'; '.join(differing)}; --overwrite begins again, "
                    "or name another --out"
                )
        for orphan in self._folder.glob("part-*"):
            orphan.unlink()
        write_atomically(file, msgspec.json.encode(run))

    def _read(self) -> None:
        while self._sidecar(self._number).exists():
            try:
                done = msgspec.json.decode(self._sidecar(self._number).read_bytes(), type=_Done)
            except msgspec.DecodeError as error:
                raise self._damaged(self._sidecar(self._number), error) from error
            with self._opened(self._number) as batches:
                self._schema = joined_schema(self._schema, batches.schema, self._part(self._number).name)
            self.counts, self.last = done.counts, Position(*done.last)
            self._number += 1
        if self._number:
            progress.log(f"resuming after {self.counts.rows:,} rows, which {self._folder} holds")

    @contextmanager
    def _opened(self, number: int) -> Iterator[pa.ipc.RecordBatchFileReader]:
        try:
            with pa.memory_map(str(self._part(number))) as mapped:
                yield pa.ipc.open_file(mapped)
        except (pa.ArrowException, FileNotFoundError) as error:
            raise self._damaged(self._part(number), error) from error

    def _damaged(self, file: Path, error: Exception) -> UserError:
        return UserError(f"{file} is damaged or gone ({error}); remove {self._folder} and begin again")

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.arrow"

    def _sidecar(self, number: int) -> Path:
        return self._part(number).with_suffix(".json")
