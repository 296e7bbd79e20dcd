"""`Classifier`: predict classes or scores of texts with a fine-tuned student."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.student.files import is_export, locate_student
from sentence_distill.student.onnx_student import OnnxClassifier

if TYPE_CHECKING:
    import torch

    from sentence_distill.student.classifier import TorchClassifier


class Classifier:
    """A fine-tuned student that predicts classes or scores.

    Attributes:
        task: the task, with its columns and classes.
    """

    def __init__(self, predictor: "OnnxClassifier | TorchClassifier") -> None:
        self._predictor = predictor
        self.task = predictor.task

    @classmethod
    def load(cls, name: str | Path, device: "str | torch.device" = "cpu") -> "Classifier":
        """Load a student that `sd finetune` wrote, or its export, which runs in ONNX Runtime.

        Args:
            name: the folder; or, as a string, `owner/name` on the hub; see `Student.load`.
            device: the device to compute on; an export runs on the CPU.

        Raises:
            UserError: the student does not exist, or is damaged.
        """
        folder = locate_student(name)
        if is_export(folder):
            if str(device) != "cpu":
                raise UserError(f"{folder} is an export, which runs on the CPU, not on {device}; leave out the device")
            return cls(OnnxClassifier.of_export(folder))
        from sentence_distill.student.classifier import TorchClassifier, load_classifier

        model, task = load_classifier(folder)
        return cls(TorchClassifier(model.to(device), task))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `predict_proba`; empty for a regression."""
        return self.task.labels

    def predict(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[str] | np.ndarray:
        """Predict the class or score of each text.

        Args:
            texts: n texts, or n pairs for a task over pairs.

        Returns:
            n names of classes; for a regression, float32[n] scores.
        """
        outputs = self.outputs(self._columns(texts))
        if self.task.regression:
            return outputs[:, 0]
        return [self.classes[number] for number in outputs.argmax(axis=1)]

    def predict_proba(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Return the probabilities of the classes, float32[n, classes]: the softmax of the logits, not calibrated.

        Args:
            texts: n texts, or n pairs for a task over pairs.

        Raises:
            ValueError: the task is a regression.
        """
        if self.task.regression:
            raise ValueError(f"{self.task.name} is a regression; predict gives its scores")
        return self.outputs(self._columns(texts))

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities, float32[n, classes], or scores, float32[n, 1], for one or two columns of n texts."""
        return self._predictor.outputs(columns)

    def _columns(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """Split texts or pairs into one or two columns."""
        single = len(self.task.columns) == 1
        kind = str if single else (tuple, list)
        # A column of a data frame may have an index that does not start at 0.
        given = [] if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(each, kind) and (single or len(each) == 2) for each in given):
            raise ValueError(f"{self.task.name} takes a list of {'texts' if single else 'pairs of texts'}")
        return [[str(text) for text in given]] if single else [[pair[side] for pair in given] for side in range(2)]
