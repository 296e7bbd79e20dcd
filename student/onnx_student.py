"""Students and classifiers in ONNX Runtime, and the folder that `sd export` writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
import numpy as np

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.glue import Task
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.files import write_json
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.files import MAX_TOKENS, StudentFiles
from sentence_distill.student.onnx_encoder import OUTPUT, OnnxEncoder

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
EXPORT_RECORD = "export.json"
LABELS = "labels.json"
"""Names of a classifier's classes, in the order of its outputs; a regression has none."""
EXPORT_README = "README.md"
EXPORT_FILES = {MODEL, TOKENIZER, EXPORT_RECORD, LABELS, EXPORT_README}
EXPORT_FOLDER = "onnx"
"""Default name of an export's folder inside the student's."""


class ExportedTask(msgspec.Struct, frozen=True, kw_only=True):
    """Task of an exported classifier; its classes are in labels.json."""

    name: str
    columns: tuple[str, ...]
    """The one or two columns of texts."""
    label: str
    """The column of labels."""
    metrics: tuple[str, ...]


class ExportedStudent(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of an export."""

    teacher: str
    weights: tuple[str, ...]
    """Hashes of the files of the student's weights."""


class Agreement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Agreement of an export with its student in PyTorch."""

    texts: str
    """Origin of the sentences."""
    sentences: int
    largest_difference: float
    """Largest difference of two numbers of the output."""
    cosine: float | None = None
    """Vectors: the mean cosine."""
    lowest_cosine: float | None = None
    same_label: float | None = None
    """Classes: share of the sentences that get the same label."""
    range: tuple[float, float] | None = None
    """Scores: the lowest and the highest of the student's."""


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds of a call: percentiles."""

    p50: float
    p99: float


class ExportRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of export.json."""

    format: Literal["onnx"]
    kind: Literal["encoder", "classifier", "regression"]
    """An encoder gives vectors, a classifier probabilities of classes, a regression scores."""
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
    """By backend, for one sentence on one thread."""

    def __post_init__(self) -> None:
        if (self.kind == "encoder") != (self.task is None):
            raise ValueError(f"kind {self.kind!r} {'with' if self.task else 'without'} a task")

    @classmethod
    def read(cls, folder: Path) -> "ExportRecord":
        """Read the record of the export in a folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        try:
            return msgspec.json.decode((folder / EXPORT_RECORD).read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder} holds no export; make it: {export_command(folder)}") from None
        except msgspec.DecodeError as error:
            raise UserError(
                f"{folder / EXPORT_RECORD} is damaged ({first_line(error)}); make it again: {export_command(folder)}"
            ) from error

    def write(self, folder: Path) -> None:
        """Write export.json; what is None is left out."""
        write_json(folder / EXPORT_RECORD, msgspec.to_builtins(self))


def is_export(folder: Path) -> bool:
    """Return whether `sd export` made a folder."""
    return (folder / EXPORT_RECORD).exists()


def export_command(folder: Path) -> str:
    """Return the command that makes an export again."""
    return f"sd export STUDENT --out {folder}"


def read_labels(folder: Path) -> tuple[str, ...]:
    """Read the names of a classifier's classes.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    try:
        labels = msgspec.json.decode((folder / LABELS).read_bytes(), type=tuple[str, ...])
        if not labels:
            raise ValueError("it is empty")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / LABELS} is damaged ({first_line(error)}; it should be a list of names); make it again: "
            f"{export_command(folder)}"
        ) from error
    return labels


class _OnnxTexts:
    """A graph and its tokenizer, which read texts."""

    def __init__(self, model: bytes, tokenizer: TextTokenizer, *, threads: int = 0) -> None:
        """Open a serialized graph; `threads` batches are computed in parallel, 0 is one per core.

        Raises:
            ValueError: ONNX Runtime can't run it.
        """
        self._encoder = OnnxEncoder(model)
        self._tokenizer = tokenizer
        self._threads = threads or cores()

    @classmethod
    def open(cls, folder: Path, *more: Any, threads: int = 0) -> Self:
        """Open the graph in an export's folder; `more` are the further arguments of the class.

        Raises:
            UserError: there is no export, or it is damaged.
        """
        if not (folder / MODEL).exists() or not (folder / TOKENIZER).exists():
            raise UserError(f"{folder} holds no export; make one: {export_command(folder)}")
        try:
            tokenizer = TextTokenizer((folder / TOKENIZER).read_text(encoding="utf-8"))
            return cls((folder / MODEL).read_bytes(), tokenizer, *more, threads=threads)
        except ValueError as error:
            raise UserError(
                f"the export in {folder} is damaged ({first_line(error)}); make it again: {export_command(folder)}"
            ) from error

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, each cut after `MAX_TOKENS`."""
        return self._tokenizer.tokenize(sentences).cut(MAX_TOKENS)


class OnnxStudent(_OnnxTexts):
    """A `TextEncoder`."""

    def __init__(self, model: bytes, tokenizer: TextTokenizer, *, threads: int = 0) -> None:
        super().__init__(model, tokenizer, threads=threads)
        self._hash = bytes_hash(model)

    @classmethod
    def of_student(cls, folder: Path, threads: int = 0) -> "OnnxStudent":
        """Build the int8 graph of the student in a folder.

        Raises:
            UserError: the folder holds no student.
        """
        # onnx takes a while to import, and an export does without.
        from sentence_distill.student.onnx_graph import build_graph

        files = StudentFiles.read(folder)
        graph = build_graph(files.config, files.weights, int8=True)
        return cls(graph.SerializeToString(), files.tokenizer, threads=threads)

    @classmethod
    def of_export(cls, folder: Path, threads: int = 0) -> "OnnxStudent":
        """Open what `sd export` wrote; nothing is taken from the student's folder.

        Raises:
            UserError: there is none, it is damaged, or it is that of a classifier.
        """
        student = cls.open(folder, threads=threads)
        if student._encoder.output != OUTPUT:
            raise UserError(
                f"{folder} is an export of a classifier, which gives no vectors; predict with it: sd predict {folder} "
                "--input FILE"
            )
        return student

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self._encoder.dim

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences: float32[n, dim], in the order given."""
        return self.vectors(self.tokenize(sentences))

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """Embed n tokenized sentences: float32[n, dim]."""
        return self._encoder.encode(tokens, self._threads)

    def identity(self) -> dict[str, str]:
        """Hashes of the graph and the tokenizer."""
        return {"model": self._hash, "tokenizer": bytes_hash(self._tokenizer.to_str().encode())}


class OnnxClassifier(_OnnxTexts):
    """A `Predictor`.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, model: bytes, tokenizer: TextTokenizer, task: Task, *, threads: int = 0) -> None:
        super().__init__(model, tokenizer, threads=threads)
        self.task = task

    @classmethod
    def of_export(cls, folder: Path, threads: int = 0) -> "OnnxClassifier":
        """Open what `sd export` wrote of a fine-tuned student.

        Raises:
            UserError: there is none, it is damaged, or it is that of a student without a task.
        """
        record = ExportRecord.read(folder)
        if record.task is None:
            raise UserError(
                f"{folder} is an export of a student without a task, which gives vectors; encode with it: sd encode "
                f"--student {folder} --input FILE"
            )
        labels = read_labels(folder) if record.kind == "classifier" else ()
        task = Task(**msgspec.structs.asdict(record.task), labels=labels)
        classifier = cls.open(folder, task, threads=threads)
        if classifier._encoder.dim != max(1, len(labels)):
            raise UserError(
                f"{folder / LABELS} names {len(labels)} classes, and the model has {classifier._encoder.dim}; make "
                f"them again: {export_command(folder)}"
            )
        return classifier

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""
        return self._encoder.run([self.tokenize(column) for column in columns], self._threads)
