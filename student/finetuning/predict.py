"""A fine-tuned student as a user meets it: texts to labels, probabilities or scores.

Nothing here imports PyTorch, which an export does not need.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.task import Task
from sentence_distill.student.encoding.export_folder import is_export

if TYPE_CHECKING:
    import torch


class Predictor(Protocol):
    """Computes the outputs of a classifier: in PyTorch, or in ONNX Runtime."""

    @property
    def task(self) -> Task:
        """Its columns and classes."""

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""


class Classifier:
    """Predicts what a student was fine-tuned for.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.task = predictor.task

    @classmethod
    def load(cls, name: str | Path, device: "str | torch.device" = "cpu") -> "Classifier":
        """Read the folder that `sd finetune STUDENT` made, or an export of it, which runs in ONNX Runtime.

        Args:
            name: of the folder; or, as a string, `owner/name` on the hub, see `Student.load`.
            device: where to compute; an export runs on the CPU.

        Raises:
            UserError: there is none, or it is damaged.
        """
        from sentence_distill.student.hub import locate_student

        folder = locate_student(name)
        if is_export(folder):
            from sentence_distill.student.finetuning.onnx_classifier import OnnxClassifier

            if str(device) != "cpu":
                raise UserError(
                    f"{folder} is an export, which runs on the CPU and not on {device}; leave the device out"
                )
            return cls(OnnxClassifier.of_export(folder))
        from sentence_distill.student.finetuning.task_folder import load_classifier
        from sentence_distill.student.finetuning.torch_classifier import TorchClassifier

        model, task = load_classifier(folder)
        return cls(TorchClassifier(model.to(device), task))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `predict_proba`; none in a regression."""
        return self.task.labels

    def predict(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[str] | np.ndarray:
        """Predict.

        Args:
            texts: n texts; of a task of pairs n pairs.

        Returns:
            n names of classes; in a regression float32[n] scores.
        """
        outputs = self.outputs(self._columns(texts))
        if self.task.regression:
            return outputs[:, 0]
        return [self.classes[number] for number in outputs.argmax(axis=1)]

    def predict_proba(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities of the classes, float32[n, classes]: softmax of the logits, which nothing has calibrated.

        Args:
            texts: n texts; of a task of pairs n pairs.

        Raises:
            ValueError: the task is a regression.
        """
        if self.task.regression:
            raise ValueError(f"{self.task.name} is a regression; predict gives its scores")
        return self.outputs(self._columns(texts))

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""
        return self._predictor.outputs(columns)

    def _columns(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """The texts of each column.

        Raises:
            ValueError: they are no texts, or no pairs.
        """
        single = len(self.task.columns) == 1
        kind = str if single else (tuple, list)
        # A column of a table need not have places that count from 0.
        given = [] if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(each, kind) and (single or len(each) == 2) for each in given):
            raise ValueError(f"{self.task.name} takes a list of {'texts' if single else 'pairs of texts'}")
        return [[str(text) for text in given]] if single else [[pair[side] for pair in given] for side in range(2)]
