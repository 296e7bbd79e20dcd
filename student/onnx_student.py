"""Students and classifiers in ONNX Runtime, and the records of exports. Nothing here imports PyTorch."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self, TypeVar

import msgspec
import numpy as np

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.glue import Task
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.progress import counted
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.batches import near_length_batches
from sentence_distill.student.files import EXPORT_RECORD, MAX_TOKENS

BACKENDS = ("auto", "onnx", "torch")
OUTPUT = "sentence_embedding"
PROBABILITIES, SCORES = "probabilities", "scores"
"""Names of the outputs of classifiers and of regressions."""
UNITS = "units"
"""Key of the graph's metadata for the LSTM units in each direction."""
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
LABELS = "labels.json"
"""File with the names of a classifier's classes, in the order of its outputs; regressions have none."""
EXPORT_README = "README.md"
EXPORT_FILES = {MODEL, TOKENIZER, EXPORT_RECORD, LABELS, EXPORT_README}
# Tokens of a batch times units, limited by a core's cache: 1,536 tokens for 256 units. 4,096 tokens are 20% slower.
_STATES = 1536 * 256

_Opened = TypeVar("_Opened")


def name_in_column(name: str, column: int) -> str:
    """Return the name for a column of texts: unchanged for the first, with `_2` appended for the second."""
    return f"{name}_{column + 1}" if column else name


def inputs_of_column(column: int) -> tuple[str, ...]:
    """Return the names of the graph's inputs for a column of texts: ids and mask."""
    return tuple(name_in_column(name, column) for name in ("input_ids", "attention_mask"))


def open_onnx(backend: str, opener: Callable[[], _Opened]) -> _Opened | None:
    """Open a student in ONNX Runtime if the backend is "onnx" or "auto"; return None if PyTorch has to run it.

    "auto" is decided by trying: the opener raises an ImportError or a ValueError if the graph does not run here.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "torch":
        return None
    try:
        return opener()
    except (ImportError, ValueError) as error:
        if backend == "onnx":
            raise UserError(
                f"ONNX Runtime does not run this student here ({first_line(error)}); use the backend torch"
            ) from error
        logging.getLogger(__name__).warning("ONNX Runtime does not run here (%s): using PyTorch", first_line(error))
        return None


class OnnxEncoder:
    """Session of a graph from `onnx_graph.build_graph`; threads and forked processes may share it."""

    def __init__(self, model: bytes) -> None:
        """Open a serialized graph; raise a ValueError if ONNX Runtime can't run it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # The steps of an LSTM are too small to be split over cores; instead, each core runs its own batches.
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no class
            raise ValueError(f"ONNX Runtime can't run this graph: {first_line(error)}") from error
        output = self._session.get_outputs()[0]
        self.output, self.dim = str(output.name), int(output.shape[1])
        """Name of the output, one of `OUTPUT`, `PROBABILITIES` and `SCORES`, and its width."""
        units = self._session.get_modelmeta().custom_metadata_map.get(UNITS, "256")
        self._token_budget = _STATES // int(units)

    def run(self, columns: Sequence[Tokens], threads: int) -> np.ndarray:
        """Run the graph on n texts for each of its columns, `threads` batches in parallel; return float32[n, dim].

        No text may have more than `MAX_TOKENS` tokens.
        """
        if len(columns[0]) == 1:
            return self._run_batch(columns)
        out = np.empty((len(columns[0]), self.dim), dtype=np.float32)

        def run(rows: np.ndarray) -> None:
            out[rows] = self._run_batch([tokens.take(rows) for tokens in columns])

        # The cost of a pair is that of its longer text.
        lengths = np.max([tokens.lengths for tokens in columns], axis=0)
        # Longest batches first, so that no thread is still busy with one when the others have finished.
        batches = list(near_length_batches(lengths, self._token_budget))[::-1]
        if len(batches) == 1 or threads == 1:
            for rows in batches:
                run(rows)
            return out
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in [pool.submit(run, rows) for rows in batches]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return out

    def _run_batch(self, columns: Sequence[Tokens]) -> np.ndarray:
        inputs: dict[str, np.ndarray] = {}
        for column, tokens in enumerate(columns):
            input_ids, lengths = tokens.padded()
            attention_mask = (np.arange(input_ids.shape[1]) < lengths[:, None]).astype(np.int64)
            inputs |= zip(inputs_of_column(column), (input_ids, attention_mask), strict=True)
        return self._session.run(None, inputs)[0]  # type: ignore[no-any-return]


# export.json, the record of an export.


class ExportedTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task of an exported classifier, whose classes are in labels.json."""

    name: str
    columns: tuple[str, ...]
    """One or two columns of texts."""
    label: str
    """Column of labels."""
    metrics: tuple[str, ...]


class ExportedStudent(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of an export."""

    teacher: str
    weights: tuple[str, ...]
    """Hashes of the student's weight files."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Agreement of an export with its student in PyTorch."""

    texts: str
    """Origin of the sentences."""
    sentences: int
    largest_difference: float
    """Largest absolute difference between two numbers of the output."""
    cosine: float | None = None
    """Mean cosine of vectors."""
    lowest_cosine: float | None = None
    same_label: float | None = None
    """Share of sentences with the same label, for classes."""
    range: tuple[float, float] | None = None
    """Lowest and highest score of the student, for a regression."""


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of the latency of a call, in milliseconds."""

    p50: float
    p99: float


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of export.json."""

    format: Literal["onnx"]
    kind: Literal["encoder", "classifier", "regression"]
    """Kind of output: vectors, probabilities of classes, or scores."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dim: int | None = None
    """Width of an encoder's vectors."""
    normalize: bool | None = None
    """True if the vectors have length 1."""
    max_tokens: int
    parameters: int
    int8: bool
    vocabulary: int
    task: ExportedTask | None = None
    student: ExportedStudent
    versions: dict[str, str]
    agreement: Agreement | None = None
    latency_ms: dict[str, Latency] | None = None
    """Latency by backend, for one sentence on one thread."""

    def __post_init__(self) -> None:
        if (self.kind == "encoder") != (self.task is None):
            raise ValueError(f"kind {self.kind!r} {'with' if self.task else 'without'} a task")

    @classmethod
    def read(cls, folder: Path) -> "ExportRecord":
        """Read the record of the export in a folder."""
        try:
            return msgspec.json.decode((folder / EXPORT_RECORD).read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder} holds no export; make one: {_export_command(folder)}") from None
        except msgspec.DecodeError as error:
            raise _damaged(folder / EXPORT_RECORD, first_line(error)) from error


def _export_command(folder: Path) -> str:
    return f"sd export STUDENT --out {folder}"


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}); make it again: {_export_command(file.parent)}")


# Exports from files, and students whose graph is built when they are loaded.


class _OnnxTexts:
    """A graph and its tokenizer; `threads` batches run in parallel, 0 for one per core."""

    def __init__(self, model: bytes, tokenizer: TextTokenizer, threads: int = 0) -> None:
        self._encoder = OnnxEncoder(model)
        self._tokenizer = tokenizer
        self._threads = threads or cores()
        self._hash = bytes_hash(model)
        self.dim = self._encoder.dim

    @classmethod
    def open(cls, folder: Path, threads: int = 0) -> Self:
        """Open the graph in the folder of an export."""
        if not (folder / MODEL).exists() or not (folder / TOKENIZER).exists():
            raise UserError(f"{folder} holds no export; make one: {_export_command(folder)}")
        try:
            tokenizer = TextTokenizer((folder / TOKENIZER).read_text(encoding="utf-8"))
            return cls((folder / MODEL).read_bytes(), tokenizer, threads)
        except ValueError as error:
            raise UserError(
                f"the export in {folder} is damaged ({first_line(error)}); make it again: {_export_command(folder)}"
            ) from error

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, truncated to `MAX_TOKENS`."""
        return self._tokenizer.tokenize(sentences).cut(MAX_TOKENS)


class OnnxStudent(_OnnxTexts):
    """A student in ONNX Runtime, which encodes sentences to vectors."""

    @classmethod
    def of_export(cls, folder: Path, threads: int = 0) -> "OnnxStudent":
        """Open an export of `sd export`; the student's folder is not needed."""
        student = cls.open(folder, threads)
        if student._encoder.output != OUTPUT:
            raise UserError(
                f"{folder} is an export of a classifier, which gives no vectors; use sd predict {folder} --input FILE"
            )
        return student

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Encode n sentences to float32[n, dim]."""
        return self.vectors(self.tokenize(sentences))

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """Encode n tokenized sentences to float32[n, dim]."""
        return self._encoder.run([tokens], self._threads)

    def identity(self) -> dict[str, str]:
        """Return hashes of the graph and the tokenizer, for runs to compare."""
        return {"model": self._hash, "tokenizer": bytes_hash(self._tokenizer.to_str().encode())}


class OnnxClassifier(_OnnxTexts):
    """A fine-tuned student in ONNX Runtime."""

    task: Task
    """Task of the classifier, set by `of_export`."""

    @classmethod
    def of_export(cls, folder: Path) -> "OnnxClassifier":
        """Open an export of a fine-tuned student."""
        record = ExportRecord.read(folder)
        if record.task is None:
            raise UserError(
                f"{folder} is an export of a student without a task, which gives vectors; use sd encode --student "
                f"{folder} --input FILE"
            )
        labels: tuple[str, ...] = ()
        if record.kind == "classifier":
            try:
                labels = msgspec.json.decode((folder / LABELS).read_bytes(), type=tuple[str, ...])
            except (OSError, ValueError) as error:
                raise _damaged(folder / LABELS, f"{first_line(error)}; it should be a list of names") from error
        classifier = cls.open(folder)
        if classifier.dim != (len(labels) if record.kind == "classifier" else 1):
            named = counted(len(labels), "class", "classes")
            raise _damaged(folder / LABELS, f"it names {named}, but the model has {classifier.dim}")
        classifier.task = Task(**msgspec.structs.asdict(record.task), labels=labels)
        return classifier

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities, float32[n, classes], or scores, float32[n, 1], for one or two columns of n texts."""
        return self._encoder.run([self.tokenize(column) for column in columns], self._threads)
