"""Files of rows to files of vectors or predictions, row by row and in their order: `sd encode` and `sd predict`."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus, text_columns
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.records import Position, Row
from sentence_distill.data.row_writer import (
    ROW_FORMATS,
    VECTOR_FORMATS,
    fitted,
    joined_schema,
    make_batch,
    open_writer,
    settled,
    vector_writer,
)
from sentence_distill.data.sources import STANDARD_INPUT, Source
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import TEMPORARY, lock_folder, replacing, write_atomically
from sentence_distill.pipeline.records import differing_fields
from sentence_distill.student.config import DEFAULT_STUDENT, EncodeConfig, PredictConfig
from sentence_distill.student.files import SMALL, is_export, locate_student
from sentence_distill.student.onnx_student import ExportRecord, OnnxStudent, open_onnx
from sentence_distill.student.predict import Classifier

if TYPE_CHECKING:
    from sentence_distill.student.model import TorchEncoder

STREAM = "-"
"""Standard input, or standard output."""
# Rows of a part of `sd encode`, which is what a kill costs at most; or fewer, if they are long.
WINDOW = 1 << 15
WINDOW_CHARACTERS = 1 << 24
# Who reads a pipe does not want to wait long.
_PIPE_WINDOW = 1 << 12
# Rows that are predicted together: enough that batches of near lengths are full, and few enough to hold with all their
# columns.
CHUNK_ROWS = 8192
_SUFFIXES = {"ndjson": "jsonl", "feather": "arrow", "ipc": "arrow"}


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


def _output_format(out: str, given: str | None, known: Sequence[str]) -> str:
    """Return the format of an output: the one given, or by the name of the file, or JSON lines in a pipe."""
    suffix = Path(out).suffix.lower().removeprefix(".")
    found = given or ("jsonl" if out == STREAM else _SUFFIXES.get(suffix, suffix))
    if found not in known:
        raise UserError(f"--out {out}: the name should end in .{', .'.join(known)}, or say --format")
    return found


def _open_input(inputs: Sequence[str], format: str | None, text_column: str, leave_out: Path | None = None) -> Corpus:
    """Open the rows of files, or of standard input; blank lines are rows too."""
    if STANDARD_INPUT in inputs:
        return Corpus.of_standard_input(format, text_column, keep_blank=True)
    return Corpus.open(
        inputs, format=format, text_column=text_column, keep_blank=True, leave_out=leave_out, log=progress.log
    )


def _check_output(out: str, overwrite: bool, sources: Sequence[Source]) -> None:
    """Refuse a file that is read, or is there already."""
    path = Path(out)
    if out == STREAM:
        return
    if any(source.is_file(path) for source in sources):
        raise UserError(f"--out {out} is among the input; name another file")
    if path.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{out} is there already; name another file, or --overwrite replaces it")


# Rows to vectors.


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


def encode_files(config: EncodeConfig) -> Encoded:
    """Write one vector for each row of the input, in order; a row without text gets zeros.

    A file is there once it is complete. What a run that was stopped has encoded lies next to it, and the same run
    resumes after it.
    """
    columns = text_columns(config.text_column)
    if len(columns) > 1:
        raise UsageError(f"--text-column {config.text_column}: one column; a pair is encoded in two runs, a side each")
    format = _output_format(config.out, config.format, VECTOR_FORMATS)
    leave_out = None if config.out == STREAM else parts_folder(config.out)
    corpus = _open_input(config.inputs, config.input_format, config.text_column, leave_out)
    _check_output(config.out, config.overwrite, corpus.sources)
    if STREAM not in config.inputs:
        corpus.check()
    encoder = _open_encoder(config)
    if format == "npy" or not config.keep_columns:
        config = replace(config, columns=(), keep_columns=True)
    job = _EncodeJob(encoder, corpus, config, format)
    return Encoded(job.stream() if config.out == STREAM else job.write(), encoder.dim, format)


class _EncodeJob:
    def __init__(
        self, encoder: "OnnxStudent | TorchEncoder", corpus: Corpus, config: EncodeConfig, format: str
    ) -> None:
        self._encoder, self._corpus, self._config, self._format = encoder, corpus, config, format

    def stream(self) -> Counts:
        """Write to standard output."""
        counts, rows, file = Counts(), self._corpus.rows(), sys.stdout.buffer
        with progress.task("encode", None, "sentences") as advance, ExitStack() as opened:
            write = schema = None
            # Not read ahead: a thread that waits for a pipe could not be stopped.
            while (window := self._read(rows, _PIPE_WINDOW)).rows:
                batch = self._batch(window)
                if write is None:
                    schema = settled(batch.schema)
                    write = opened.enter_context(vector_writer(file, self._format, schema, seekable=False))
                if self._format != "jsonl":
                    # The first rows decided on the columns, which Arrow and Parquet can't change.
                    where = window.rows[0].where
                    if joined_schema(schema, batch.schema, where) != schema:
                        raise UserError(
                            f"{where} and on: there are other columns, or types, than in the first rows; write jsonl, "
                            "write to a file, or name the columns to keep with --columns"
                        )
                    batch = fitted(batch, schema)
                write(batch)
                file.flush()
                counts.add_rows(window.rows, window.reasons)
                advance(len(window.rows))
        return counts

    def write(self) -> Counts:
        """Write a file; parts that a stopped run left are not encoded again."""
        parts = _Parts(Path(self._config.out))
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
                for window in self._windows(rows):
                    parts.add(self._batch(window), window.rows, window.reasons)
                    advance(len(window.rows))
            counts = parts.counts
            if counts.empty == counts.rows:
                parts.remove()
                reasons = f" ({counts.describe()})" if counts.rows else ""
                raise UserError(f"none of the {counts.rows:,} rows has text{reasons}; nothing was written")
            parts.join(self._format)
        return counts

    def _windows(self, rows: Iterator[Row]) -> Iterator[_Window]:
        """Yield windows; the next one is read and tokenized meanwhile."""
        stopped = False
        reader = ThreadPoolExecutor(1)
        try:
            coming = reader.submit(self._read, rows, WINDOW, lambda: stopped)
            while (window := coming.result()).rows:
                coming = reader.submit(self._read, rows, WINDOW, lambda: stopped)
                yield window
        finally:
            # Whoever stops a run does not want to wait for what is read ahead.
            stopped = True
            reader.shutdown(wait=True, cancel_futures=True)

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
        vectors = self._encoder.vectors(window.tokens)
        vectors[[bool(reason) for reason in window.reasons]] = 0
        return make_batch(window.rows, self._config.columns, vectors, self._config.dtype)


def _open_encoder(config: EncodeConfig) -> "OnnxStudent | TorchEncoder":
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

        def open_graph() -> OnnxStudent:
            # onnx takes a while to import, and an export does without.
            from sentence_distill.student.onnx_graph import int8_student

            return int8_student(folder, threads)

        if opened := open_onnx(config.backend, open_graph):
            progress.log(f"encoding by {student}: int8 in ONNX Runtime")
            return opened
    # PyTorch takes most of a second to import, which ONNX Runtime saves.
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


def _has_gpu() -> bool:
    # PyTorch is not imported if no driver of a GPU is there (NVIDIA's, WSL's, AMD's).
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def parts_folder(out: str | Path) -> Path:
    """Return the folder that keeps what is done until `out` is complete."""
    return Path(f"{out}.parts")


class _Done(msgspec.Struct):
    """What was done up to the end of a part, in the metadata of its schema; `last` is the position of its last row."""

    counts: Counts
    last: list[int]


class _Parts:
    """Finished parts of a file that is not complete yet, Arrow files of one batch each."""

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, parts_folder(out)
        self._number = 0
        self._schema: pa.Schema | None = None
        self.counts = Counts()
        self.last: Position | None = None
        """Where the last row of the last part begins."""

    @contextmanager
    def open(self, run: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Lock the folder and read its parts; when the block ends the folder is gone, or keeps them if it fails.

        `run` is what the parts depend on: those of another run are refused, or begun again with `overwrite`.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self._folder):
            try:
                self._check_run(run, overwrite)
                while self._part(self._number).exists():
                    batch = self._read(self._number)
                    self._schema = joined_schema(self._schema, batch.schema, self._part(self._number).name)
                    self._number += 1
                if self._number:
                    progress.log(f"resuming after {self.counts.rows:,} rows, which {self._folder} holds")
                yield
            except BaseException:
                if not self._part(0).exists():
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
        done = _Done(self.counts, [self.last.file, self.last.record, self.last.offset])
        batch = batch.replace_schema_metadata({"done": msgspec.json.encode(done)})
        with (
            replacing(self._part(self._number)) as file,
            vector_writer(file, "arrow", batch.schema, seekable=True) as write,
        ):
            write(batch)
        self._number += 1

    def join(self, format: str) -> None:
        """Write the file."""
        assert self._schema is not None
        schema = settled(self._schema)
        with replacing(self._out) as file, vector_writer(file, format, schema, seekable=True) as write:
            for number in range(self._number):
                write(fitted(self._read(number), schema))

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
        if file.exists() and self._part(0).exists():
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

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.arrow"

    def _read(self, number: int) -> pa.RecordBatch:
        """Map a part, and take over what was done up to its end."""
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(self._part(number)))).get_batch(0)
            done = msgspec.json.decode(batch.schema.metadata[b"done"], type=_Done)
        except (pa.ArrowException, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
            raise UserError(
                f"{self._part(number)} is damaged or gone ({error}); remove {self._folder} and begin again"
            ) from error
        self.counts, self.last = done.counts, Position(*done.last)
        return batch.replace_schema_metadata(None)


# Rows to predictions, chunk by chunk, so that memory does not grow with the file.


def predict_files(config: PredictConfig) -> Counts:
    """Write each row of the input with its prediction, in order.

    A row gets the columns `prediction` and `probability`, with `every_class` also a `probability_CLASS` of each; in a
    regression `prediction` alone, a number. A row without text gets the prediction of an empty one.
    """
    format = _output_format(config.out, config.format, ROW_FORMATS)
    given = text_columns(config.text_column) if config.text_column is not None else ()
    if config.out != STREAM and not Path(config.out).resolve().parent.is_dir():
        raise UserError(f"--out {config.out}: there is no folder {Path(config.out).parent}")
    corpus = None
    if STREAM not in config.inputs:
        # Before the student: a wrong path shows at once.
        corpus = _open_input(config.inputs, config.input_format, "text")
    _check_output(config.out, config.overwrite, corpus.sources if corpus else ())
    device = config.device
    if is_export(Path(config.folder)):
        device = "cpu" if device == "auto" else device
    else:
        # PyTorch takes most of a second to import, and an export does without.
        from sentence_distill.pipeline.hardware import pick_device

        device = str(pick_device(device))
    classifier = Classifier.load(config.folder, device)
    trained = classifier.task.columns
    if given and len(given) != len(trained):
        raise UserError(f"--text-column {config.text_column}: {config.folder} reads {len(trained)} column(s) of texts")
    if config.every_class and classifier.task.regression:
        raise UserError(f"--all: {config.folder} gives scores, not classes")
    columns = given or trained
    chosen = ",".join(columns)
    corpus = replace(corpus, text_column=chosen) if corpus else _open_input([STREAM], config.input_format, chosen)
    counts, rows = Counts(), corpus.rows()
    with (
        nullcontext(sys.stdout.buffer) if config.out == STREAM else replacing(Path(config.out)) as file,
        open_writer(file, format) as writer,
        progress.task("predict", None, "rows") as advance,
    ):
        while chunk := list(islice(rows, CHUNK_ROWS)):
            texts = [[row.text(column) for row in chunk] for column in columns]
            predictions = _predictions(classifier, texts, config.every_class)
            for row in chunk:
                if taken := predictions[0].keys() & row.cells.keys():
                    raise UserError(f"{row.where}: there is a column {min(taken)!r} already; rename it")
            writer.write(
                [replace(row, cells={**row.cells, **found}) for row, found in zip(chunk, predictions, strict=True)]
            )
            empty = [not any(text.strip() for text in sides) for sides in zip(*texts, strict=True)]
            counts.add_rows(chunk, ["empty" if each else "" for each in empty])
            advance(len(chunk))
        if not counts.rows:
            raise UserError(f"{'standard input' if STREAM in config.inputs else ', '.join(config.inputs)} holds no row")
    return counts


def _predictions(classifier: Classifier, texts: Sequence[Sequence[str]], every_class: bool) -> list[dict[str, Any]]:
    outputs = classifier.outputs(texts).astype(float)
    # A float32 has seven digits; those of its double would only fill the file.
    if classifier.task.regression:
        return [{"prediction": float(f"{value:.7g}")} for value in outputs[:, 0].tolist()]
    outputs, found = outputs.round(6), []
    for number, probabilities in zip(outputs.argmax(axis=1), outputs.tolist(), strict=True):
        row = {"prediction": classifier.classes[number], "probability": probabilities[number]}
        if every_class:
            row |= {f"probability_{name}": p for name, p in zip(classifier.classes, probabilities, strict=True)}
        found.append(row)
    return found
