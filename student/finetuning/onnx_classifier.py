"""An export of a fine-tuned student at work in ONNX Runtime; nothing here imports PyTorch."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.task import Task
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.encoding.export_folder import CLASSIFIER, LABELS, ExportRecord, read_labels
from sentence_distill.student.encoding.onnx_student import OnnxTexts, open_export


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
