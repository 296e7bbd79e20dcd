"""Exports that encode and classify without PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.glue import Task
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.export_folder import CLASSIFIER, LABELS, MODEL, TOKENIZER, ExportRecord, read_labels
from sentence_distill.student.files import MAX_TOKENS, StudentFiles
from sentence_distill.student.onnx_encoder import OUTPUT, OnnxEncoder

_Opened = TypeVar("_Opened")


def open_export(folder: Path, opener: Callable[[bytes, TextTokenizer], _Opened]) -> _Opened:
    """Open an export.

    Args:
        folder: of the export.
        opener: takes the serialized graph and the tokenizer; raises a ValueError if ONNX Runtime can't run the graph.

    Raises:
        UserError: there is no export, or it is damaged.
    """
    command = f"sd export STUDENT --onnx --out {folder}"
    if not (folder / MODEL).exists() or not (folder / TOKENIZER).exists():
        raise UserError(f"{folder} holds no export; make one: {command}")
    try:
        tokenizer = TextTokenizer((folder / TOKENIZER).read_text(encoding="utf-8"))
        return opener((folder / MODEL).read_bytes(), tokenizer)
    except ValueError as error:
        raise UserError(f"the export in {folder} is damaged ({first_line(error)}); make it again: {command}") from error


class OnnxTexts:
    """A graph and its tokenizer, which read texts."""

    def __init__(self, model: bytes, tokenizer: TextTokenizer, threads: int = 0) -> None:
        """Open a graph.

        Args:
            model: the serialized graph of `onnx_graph.build_graph`.
            tokenizer: of its vocabulary.
            threads: how many batches are computed side by side, each by one thread; 0 is one a core.

        Raises:
            ValueError: ONNX Runtime can't run it.
        """
        self._encoder = OnnxEncoder(model)
        self._tokenizer = tokenizer
        self._threads = threads or cores()

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, each cut behind `MAX_TOKENS`."""
        return self._tokenizer.tokenize(sentences).cut(MAX_TOKENS)


class OnnxStudent(OnnxTexts):
    """A `TextEncoder`."""

    def __init__(self, model: bytes, tokenizer: TextTokenizer, threads: int = 0) -> None:
        """Open a graph; see `OnnxTexts`."""
        super().__init__(model, tokenizer, threads)
        self._hash = bytes_hash(model)

    @classmethod
    def of_student(cls, folder: Path, threads: int = 0) -> "OnnxStudent":
        """Build the int8 graph of the student in a folder.

        Raises:
            UserError: the folder holds no student.
        """
        from sentence_distill.student.onnx_graph import build_graph

        files = StudentFiles.read(folder)
        graph = build_graph(files.config, files.weights, int8=True)
        return cls(graph.SerializeToString(), files.tokenizer, threads)

    @classmethod
    def of_export(cls, folder: Path, threads: int = 0) -> "OnnxStudent":
        """Open what `sd export --onnx` wrote; nothing is taken from the student's folder.

        Raises:
            UserError: there is none, it is damaged, or it is that of a classifier.
        """
        student = open_export(folder, lambda model, tokenizer: cls(model, tokenizer, threads))
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
        """float32[n, dim] of n tokenized sentences."""
        return self._encoder.encode(tokens, self._threads)

    def identity(self) -> dict[str, str]:
        """Hashes of the graph and the tokenizer."""
        return {"model": self._hash, "tokenizer": bytes_hash(self._tokenizer.to_str().encode())}


# An export of a fine-tuned student at work in ONNX Runtime; nothing here imports PyTorch.


class OnnxClassifier(OnnxTexts):
    """A `Predictor`.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, model: bytes, tokenizer: TextTokenizer, task: Task, threads: int = 0) -> None:
        """Open a graph with a head, of a task; see `OnnxTexts`."""
        super().__init__(model, tokenizer, threads)
        self.task = task

    @classmethod
    def of_export(cls, folder: Path, threads: int = 0) -> "OnnxClassifier":
        """Open what `sd export --onnx` wrote of a fine-tuned student.

        Raises:
            UserError: there is none, it is damaged, or it is that of a student without a task.
        """
        record = ExportRecord.read(folder)
        if record.task is None:
            raise UserError(
                f"{folder} is an export of a student without a task, which gives vectors; encode with it: sd encode "
                f"--student {folder} --input FILE"
            )
        labels = read_labels(folder) if record.kind == CLASSIFIER else ()
        task = Task(**asdict(record.task), labels=labels)
        classifier = open_export(folder, lambda model, tokenizer: cls(model, tokenizer, task, threads))
        if classifier._encoder.dim != max(1, len(labels)):
            raise UserError(
                f"{folder / LABELS} names {len(labels)} classes, and the model has {classifier._encoder.dim}; make "
                f"them again: sd export STUDENT --onnx --out {folder}"
            )
        return classifier

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""
        return self._encoder.run([self.tokenize(column) for column in columns], self._threads)
