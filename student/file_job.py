"""`sd encode` and `sd predict`: files of rows to files of vectors or predictions, in the order of the input."""

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
from sentence_distill.data.progress import counted
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
"""Name of standard input and standard output."""
# Maximum number of rows, and of characters, in a part of `sd encode`: a kill loses at most one part.
WINDOW = 1 << 15
WINDOW_CHARACTERS = 1 << 24
# Smaller windows for pipes, whose reader should not wait long.
_PIPE_WINDOW = 1 << 12
# Rows that are predicted together: enough to fill batches of similar lengths, and few enough to keep in memory with all
# their columns.
CHUNK_ROWS = 8192
_SUFFIXES = {"ndjson": "jsonl", "feather": "arrow", "ipc": "arrow"}


class Counts(msgspec.Struct):
    """Counts of a job: rows written, rows without text by reason, and the place of the first such row."""

    rows: int = 0
    without_text: dict[str, int] = msgspec.field(default_factory=dict)
    first_without: str = ""

    def add_rows(self, rows: Sequence[Row], reasons: Sequence[str]) -> None:
        """Count rows; the reason of a row with text is ""."""
        self.rows += len(rows)
        for row, reason in zip(rows, reasons, strict=True):
            if reason:
                self.without_text[reason] = self.without_text.get(reason, 0) + 1
                self.first_without = self.first_without or row.where

    @property
    def empty(self) -> int:
        """Number of rows without text."""
        return sum(self.without_text.values())

    def describe(self) -> str:
        """Describe the rows without text, by reason."""
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in self.without_text.items())
        return f"{reasons}; the first: {self.first_without}"


def _output_format(out: str, given: str | None, known: Sequence[str]) -> str:
    """Return the format of an output: as given, from the suffix of the file, or JSON lines for a pipe."""
    suffix = Path(out).suffix.lower().removeprefix(".")
    found = given or ("jsonl" if out == STREAM else _SUFFIXES.get(suffix, suffix))
    if found not in known:
        raise UserError(f"--out {out}: the name should end in .{', .'.join(known)}; or set --format")
    return found


def _open_input(inputs: Sequence[str], format: str | None, text_column: str, leave_out: Path | None = None) -> Corpus:
    """Open the rows of files or standard input; blank lines are rows, too."""
    if STANDARD_INPUT in inputs:
        return Corpus.of_standard_input(format, text_column, keep_blank=True)
    return Corpus.open(
        inputs, format=format, text_column=text_column, keep_blank=True, leave_out=leave_out, log=progress.log
    )


def _check_output(out: str, overwrite: bool, sources: Sequence[Source]) -> None:
    """Refuse to overwrite an input file, or an existing file without --overwrite."""
    path = Path(out)
    if out == STREAM:
        return
    if any(source.is_file(path) for source in sources):
        raise UserError(f"--out {out} is among the input; name another file")
    if path.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{out} already exists; name another file, or replace it with --overwrite")


# Rows to vectors.


@dataclass(frozen=True)
class Encoded:
    """Result of `encode_files`."""

    counts: Counts
    dim: int
    format: str


@dataclass
class _Window:
    """Rows that are encoded together, with the reasons of those without text, and their tokens."""

    rows: list[Row]
    reasons: list[str]
    tokens: Tokens


def encode_files(config: EncodeConfig) -> Encoded:
    """Write one vector per row of the input, in order; a row without text gets zeros.

    The output file appears when it is complete. A stopped run leaves its finished parts in a folder next to it, from
    which the same command resumes.
    """
    columns = text_columns(config.text_column)
    if len(columns) > 1:
        raise UsageError(f"--text-column {config.text_column}: name one column; encode the sides of pairs in two runs")
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
            # Without reading ahead, because a thread that is blocked on a pipe can't be stopped.
            while (window := self._read(rows, _PIPE_WINDOW)).rows:
                batch = self._batch(window)
                if write is None:
                    schema = settled(batch.schema)
                    write = opened.enter_context(vector_writer(file, self._format, schema, seekable=False))
                if self._format != "jsonl":
                    # Arrow and Parquet are committed to the columns of the first rows.
                    where = window.rows[0].where
                    if joined_schema(schema, batch.schema, where) != schema:
                        raise UserError(
                            f"{where} and after: columns or types differ from those of the first rows; write jsonl, "
                            "write to a file, or name the columns to keep with --columns"
                        )
                    batch = fitted(batch, schema)
                write(batch)
                file.flush()
                counts.add_rows(window.rows, window.reasons)
                advance(len(window.rows))
        return counts

    def write(self) -> Counts:
        """Write a file; parts from a stopped run are not encoded again."""
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
            # Resume after the last row of the finished parts.
            rows = islice(self._corpus.rows(parts.last or Position()), 1 if parts.last else 0, None)
            with progress.task("encode", None, "sentences", parts.counts.rows) as advance:
                for window in self._windows(rows):
                    parts.add(self._batch(window), window.rows, window.reasons)
                    advance(len(window.rows))
            counts = parts.counts
            if counts.empty == counts.rows:
                parts.remove()
                reasons = f" ({counts.describe()})" if counts.rows else ""
                raise UserError(f"no text in {counted(counts.rows, 'row')}{reasons}; nothing was written")
            parts.join(self._format)
        return counts

    def _windows(self, rows: Iterator[Row]) -> Iterator[_Window]:
        """Yield windows, while a thread reads and tokenizes the next one."""
        stopped = False
        reader = ThreadPoolExecutor(1)
        try:
            coming = reader.submit(self._read, rows, WINDOW, lambda: stopped)
            while (window := coming.result()).rows:
                coming = reader.submit(self._read, rows, WINDOW, lambda: stopped)
                yield window
        finally:
            # When the run is stopped, don't wait for the window that is read ahead.
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
    """Open the student, or its export, in the backend to use, and log which one that is."""
    if config.threads:
        # The tokenizers library reads it on its first use.
        os.environ["RAYON_NUM_THREADS"] = str(config.threads)
    student = config.student or DEFAULT_STUDENT
    if config.student is None and not Path(student).exists():
        progress.log(f"there is no folder {student} here: using the packaged student {SMALL}")
        student = SMALL
    of_torch, threads = config.option_of_torch, config.threads or 0
    if is_export(Path(student)):
        if of_torch:
            raise UsageError(f"{of_torch} is an option of PyTorch, but {student} is an export for ONNX Runtime")
        if config.backend == "torch":
            raise UsageError(f"{student} is an export for ONNX Runtime, not for PyTorch; name the student's folder")
        dtype = "int8" if ExportRecord.read(Path(student)).int8 else "float32"
        export = OnnxStudent.of_export(Path(student), threads)
        progress.log(f"encoding with {student}: {dtype} in ONNX Runtime")
        return export
    if config.backend == "onnx" or (config.backend == "auto" and not of_torch and not _has_gpu()):
        folder = locate_student(student)

        def open_graph() -> OnnxStudent:
            # Imported here, because onnx takes a while to import, and an export does not need it.
            from sentence_distill.student.onnx_graph import int8_student

            return int8_student(folder, threads)

        if opened := open_onnx(config.backend, open_graph):
            progress.log(f"encoding with {student}: int8 in ONNX Runtime")
            return opened
    # Imported here, because PyTorch takes most of a second to import, and ONNX Runtime does not need it.
    import torch

    from sentence_distill.pipeline.hardware import STUDENT, pick_device, pick_precision
    from sentence_distill.student.model import Student, TorchEncoder

    if config.threads:
        torch.set_num_threads(config.threads)
    device = pick_device(config.device or "auto")
    precision = pick_precision(config.precision or "auto", device, STUDENT)
    loaded = Student.load(student, backend="torch")
    loaded.encoder.to(device)
    progress.log(f"encoding with {student}: {str(precision).removeprefix('torch.')} in PyTorch on {device}")
    return TorchEncoder(loaded, precision)


def _has_gpu() -> bool:
    # Without a GPU driver (NVIDIA's, WSL's or AMD's), there is no need to import PyTorch.
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def parts_folder(out: str | Path) -> Path:
    """Return the folder for finished parts until `out` is complete."""
    return Path(f"{out}.parts")


class _Done(msgspec.Struct):
    """Progress at the end of a part, stored in the metadata of its schema; `last` is the position of its last row."""

    counts: Counts
    last: list[int]


class _Parts:
    """Finished parts of an incomplete file, as Arrow files of one batch each."""

    def __init__(self, out: Path) -> None:
        self._out, self._folder = out, parts_folder(out)
        self._number = 0
        self._schema: pa.Schema | None = None
        self.counts = Counts()
        self.last: Position | None = None
        """Position of the last row of the last part."""

    @contextmanager
    def open(self, run: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Lock the folder and read its parts; remove it when the block succeeds, and keep it when the block fails.

        `run` has everything that the parts depend on: parts of another run are refused, or removed with `overwrite`.
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
                    progress.log(f"resuming after {counted(self.counts.rows, 'row')} in {self._folder}")
                yield
            except BaseException:
                if not self._part(0).exists():
                    # There is nothing to resume.
                    self.remove()
                raise
            self.remove()

    def add(self, batch: pa.RecordBatch, rows: Sequence[Row], reasons: Sequence[str]) -> None:
        """Write the next part."""
        # Types that don't fit into one file are an error now, and not at the end.
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
        """Write the output file from the parts."""
        assert self._schema is not None
        schema = settled(self._schema)
        with replacing(self._out) as file, vector_writer(file, format, schema, seekable=True) as write:
            for number in range(self._number):
                write(fitted(self._read(number), schema))

    def remove(self) -> None:
        """Remove the folder atomically, so that a half-removed one is not taken for a run to resume."""
        over = self._folder.with_name(self._folder.name + TEMPORARY)
        shutil.rmtree(over, ignore_errors=True)
        if self._folder.exists():
            os.rename(self._folder, over)
            shutil.rmtree(over)

    def _check_run(self, run: dict[str, Any], overwrite: bool) -> None:
        file = self._folder / "run.json"
        # Converted to what JSON reads back, for the comparison.
        run = msgspec.json.decode(msgspec.json.encode(run))
        if file.exists() and self._part(0).exists():
            differing = differing_fields(msgspec.json.decode(file.read_bytes()), run)
            if not differing:
                return
            if not overwrite:
                raise UserError(
                    f"{self._folder} holds parts of another run: {'; '.join(differing)}; name another --out, or "
                    "discard them with --overwrite"
                )
        for orphan in self._folder.glob("part-*"):
            orphan.unlink()
        write_atomically(file, msgspec.json.encode(run))

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.arrow"

    def _read(self, number: int) -> pa.RecordBatch:
        """Map a part, and continue from its counts and position."""
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(self._part(number)))).get_batch(0)
            done = msgspec.json.decode(batch.schema.metadata[b"done"], type=_Done)
        except (pa.ArrowException, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
            raise UserError(
                f"{self._part(number)} is damaged or missing ({error}); remove {self._folder} and start over"
            ) from error
        self.counts, self.last = done.counts, Position(*done.last)
        return batch.replace_schema_metadata(None)


# Rows to predictions, in chunks, so that memory does not grow with the file.


def predict_files(config: PredictConfig) -> Counts:
    """Write each row of the input with its prediction, in order.

    A row gets the columns `prediction` and `probability`, and with `every_class` a `probability_CLASS` for each class;
    in a regression only `prediction`, a number. A row without text gets the prediction for an empty text.
    """
    format = _output_format(config.out, config.format, ROW_FORMATS)
    given = text_columns(config.text_column) if config.text_column is not None else ()
    if config.out != STREAM and not Path(config.out).resolve().parent.is_dir():
        raise UserError(f"--out {config.out}: there is no folder {Path(config.out).parent}")
    corpus = None
    if STREAM not in config.inputs:
        # Before loading the student, so that a wrong path is reported immediately.
        corpus = _open_input(config.inputs, config.input_format, "text")
    _check_output(config.out, config.overwrite, corpus.sources if corpus else ())
    device = config.device
    if is_export(Path(config.folder)):
        device = "cpu" if device == "auto" else device
    else:
        # Imported here, because PyTorch takes most of a second to import, and an export does not need it.
        from sentence_distill.pipeline.hardware import pick_device

        device = str(pick_device(device))
    classifier = Classifier.load(config.folder, device)
    trained = classifier.task.columns
    if given and len(given) != len(trained):
        texts_read = counted(len(trained), "column")
        raise UserError(f"--text-column {config.text_column}: {config.folder} reads {texts_read} of text")
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
                    raise UserError(f"{row.where} already has a column {min(taken)!r}; rename it")
            writer.write(
                [replace(row, cells={**row.cells, **found}) for row, found in zip(chunk, predictions, strict=True)]
            )
            empty = [not any(text.strip() for text in sides) for sides in zip(*texts, strict=True)]
            counts.add_rows(chunk, ["empty" if each else "" for each in empty])
            advance(len(chunk))
        if not counts.rows:
            place = "standard input" if STREAM in config.inputs else ", ".join(config.inputs)
            raise UserError(f"{place} holds no rows")
    return counts


def _predictions(classifier: Classifier, texts: Sequence[Sequence[str]], every_class: bool) -> list[dict[str, Any]]:
    outputs = classifier.outputs(texts).astype(float)
    # A float32 has seven significant digits; more would only make the file larger.
    if classifier.task.regression:
        return [{"prediction": float(f"{value:.7g}")} for value in outputs[:, 0].tolist()]
    outputs, found = outputs.round(6), []
    for number, probabilities in zip(outputs.argmax(axis=1), outputs.tolist(), strict=True):
        row = {"prediction": classifier.classes[number], "probability": probabilities[number]}
        if every_class:
            row |= {f"probability_{name}": p for name, p in zip(classifier.classes, probabilities, strict=True)}
        found.append(row)
    return found
