"""Encode the texts of files into files of vectors."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus, text_columns
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.records import Position, Row
from sentence_distill.data.row_writer import (
    VECTOR_FORMATS,
    fitted,
    joined_schema,
    make_batch,
    settled,
    vector_writer,
)
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.config import DEFAULT_STUDENT, EncodeConfig
from sentence_distill.student.file_job import (
    STREAM,
    Counts,
    Parts,
    check_output,
    open_input,
    output_format,
    parts_folder,
    read_ahead,
)
from sentence_distill.student.hub import SMALL, locate_student
from sentence_distill.student.onnx_encoder import open_onnx
from sentence_distill.student.onnx_student import ExportRecord, OnnxStudent, is_export

# Rows of a part, which is what a kill costs at most.
WINDOW = 1 << 15
# Or fewer, where they are long.
WINDOW_CHARACTERS = 1 << 24
# Who reads a pipe does not want to wait long.
_PIPE_WINDOW = 1 << 12


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
        """Return what the vectors depend on: hashes by name."""


@dataclass(frozen=True)
class Encoded:
    """What was written."""

    counts: Counts
    dim: int
    format: str


@dataclass
class _Window:
    """Rows that are encoded together, the reasons of those without text, and the tokens of all."""

    rows: list[Row]
    reasons: list[str]
    tokens: Tokens

    def __bool__(self) -> bool:
        return bool(self.rows)


def encode_files(config: EncodeConfig) -> Encoded:
    """Write one vector for each row of the input, in order; a row without text gets zeros.

    A file is there once it is complete. What a run that was stopped has encoded lies next to it, and the same run
    resumes after it.

    Raises:
        UserError: the input can't be read to its end, has no text, or the output is there or is another run's.
    """
    columns = text_columns(config.text_column)
    if len(columns) > 1:
        raise UsageError(f"--text-column {config.text_column}: one column; a pair is encoded in two runs, a side each")
    format = output_format(config.out, config.format, VECTOR_FORMATS)
    check_output(config.out, config.overwrite)
    leave_out = None if config.out == STREAM else parts_folder(config.out)
    corpus = open_input(config.inputs, config.input_format, config.text_column, leave_out=leave_out)
    if STREAM not in config.inputs:
        check_output(config.out, config.overwrite, corpus.sources)
        corpus.check()
    encoder = open_encoder(config)
    if format == "npy" or not config.keep_columns:
        config = replace(config, columns=(), keep_columns=True)
    job = _EncodeJob(encoder, corpus, config, format)
    return Encoded(job.stream() if config.out == STREAM else job.write(), encoder.dim, format)


class _EncodeJob:
    def __init__(self, encoder: TextEncoder, corpus: Corpus, config: EncodeConfig, format: str) -> None:
        self._encoder, self._corpus, self._config, self._format = encoder, corpus, config, format

    def stream(self) -> Counts:
        """Write to standard output."""
        counts, rows, file = Counts(), self._corpus.rows(), sys.stdout.buffer
        with progress.task("encode", None, "sentences") as advance, ExitStack() as opened:
            write = schema = None
            # Not read ahead: a thread that waits for a pipe could not be stopped.
            while window := self._read(rows, _PIPE_WINDOW):
                batch = self._batch(window)
                if write is None:
                    schema = settled(batch.schema)
                    write = opened.enter_context(vector_writer(file, self._format, schema, seekable=False))
                if self._format != "jsonl":
                    batch = _like_first(batch, schema, window.rows[0].where)
                write(batch)
                file.flush()
                counts.add_rows(window.rows, window.reasons)
                advance(len(window.rows))
        return counts

    def write(self) -> Counts:
        """Write a file; parts that a stopped run left are not encoded again."""
        parts = Parts(Path(self._config.out))
        run = {
            **self._encoder.identity(),
            "input": [[source.name, source.content_hash()] for source in self._corpus.sources],
            "text_column": self._corpus.text_column,
            "input_format": self._corpus.format,
            "window": [WINDOW, WINDOW_CHARACTERS],
            "dtype": self._config.dtype,
            "columns": self._config.columns,
            "format": self._format,
        }
        with parts.open(run, self._config.overwrite):
            # A run resumes after the last row that it has.
            rows = islice(self._corpus.rows(parts.last or Position()), 1 if parts.last else 0, None)
            with progress.task("encode", None, "sentences", parts.counts.rows) as advance:
                for window in read_ahead(lambda stopped: self._read(rows, WINDOW, stopped)):
                    parts.add(self._batch(window), window.rows, window.reasons)
                    advance(len(window.rows))
            counts = parts.counts
            if counts.rows and counts.empty == counts.rows:
                parts.remove()
                raise UserError(f"none of the {counts.rows:,} rows has text ({counts.describe()}); nothing was written")
            parts.join(self._format, self._batch(_Window([], [], self._encoder.tokenize([]))).schema)
        return counts

    def _read(self, rows: Iterator[Row], size: int, stopped: Callable[[], bool] = lambda: False) -> _Window:
        window: list[Row] = []
        texts: list[str] = []
        reasons: list[str] = []
        characters, columns = 0, self._corpus.columns
        while len(window) < size and characters < WINDOW_CHARACTERS and not stopped():
            if (row := next(rows, None)) is None:
                break
            record = row.record(columns)
            window.append(row)
            texts.append(record.text or "")
            reasons.append(record.reason)
            characters += len(texts[-1])
        return _Window(window, reasons, self._encoder.tokenize(texts))

    def _batch(self, window: _Window) -> pa.RecordBatch:
        empty = not window.rows
        vectors = np.empty((0, self._encoder.dim)) if empty else self._encoder.vectors(window.tokens)
        vectors[[bool(reason) for reason in window.reasons]] = 0
        return make_batch(window.rows, () if empty else self._config.columns, vectors, self._config.dtype)


def _like_first(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """Return the batch with the columns that the first rows decided on, which Arrow and Parquet can't change."""
    if joined_schema(schema, batch.schema, where) != schema:
        raise UserError(
            f"{where} and on: there are other columns, or types, than in the first rows; write jsonl, write to a "
            "file, or name the columns to keep with --columns"
        )
    return fitted(batch, schema)


def open_encoder(config: EncodeConfig) -> TextEncoder:
    """Open the student, or its export, in what is to compute, and say which that is."""
    if config.threads:
        # The tokenizers library reads it when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(config.threads)
    student = config.student or DEFAULT_STUDENT
    if config.student is None and not Path(student).exists():
        progress.log(f"there is no {student} here: the packaged student {SMALL} encodes")
        student = SMALL
    of_torch, threads = config.option_of_torch, config.threads or 0
    if is_export(Path(student)):
        if of_torch:
            raise UsageError(f"{of_torch} is of PyTorch, and {student} is an export, which runs in ONNX Runtime")
        if config.backend == "torch":
            raise UsageError(f"{student} is an export, which PyTorch does not run; name the student's folder")
        dtype = "int8" if ExportRecord.read(Path(student)).int8 else "float32"
        export = OnnxStudent.of_export(Path(student), threads)
        progress.log(f"encoding by {student}: {dtype} in ONNX Runtime")
        return export
    if config.backend == "onnx" or (config.backend == "auto" and not of_torch and not _has_gpu()):
        folder = locate_student(student)
        if opened := open_onnx(config.backend, lambda: OnnxStudent.of_student(folder, threads)):
            progress.log(f"encoding by {student}: int8 in ONNX Runtime")
            return opened
    return _open_torch(student, config)


def _has_gpu() -> bool:
    # PyTorch takes most of a second to import, which is left out where no driver of a GPU is (NVIDIA's, WSL's, AMD's).
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def _open_torch(student: str, config: EncodeConfig) -> TextEncoder:
    import torch

    from sentence_distill.pipeline.hardware import STUDENT, pick_device, pick_precision
    from sentence_distill.student.model import Student, TorchEncoder

    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device or "auto")
    precision = pick_precision(config.precision or "auto", device, STUDENT)
    loaded = Student.load(student, backend="torch")
    loaded.encoder.to(device)
    progress.log(f"encoding by {student}: {str(precision).removeprefix('torch.')} in PyTorch on {device}")
    return TorchEncoder(loaded, precision)
