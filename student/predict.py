"""Predict classes and scores of texts with a student that was fine-tuned."""

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
    """Predicts what a student was fine-tuned for.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, predictor: "OnnxClassifier | TorchClassifier") -> None:
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
        folder = locate_student(name)
        if is_export(folder):
            if str(device) != "cpu":
                raise UserError(
                    f"{folder} is an export, which runs on the CPU and not on {device}; leave the device out"
                )
            return cls(OnnxClassifier.of_export(folder))
        from sentence_distill.student.classifier import TorchClassifier, load_classifier

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
        """Return probabilities of the classes, float32[n, classes]: softmax of the logits, not calibrated.

        Args:
            texts: n texts; of a task of pairs n pairs.

        Raises:
            ValueError: the task is a regression.
        """
        if self.task.regression:
            raise ValueError(f"{self.task.name} is a regression; predict gives its scores")
        return self.outputs(self._columns(texts))

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities, float32[n, classes], or scores, float32[n, 1], of columns of n texts."""
        return self._predictor.outputs(columns)

    def _columns(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the texts of each column."""
        single = len(self.task.columns) == 1
        kind = str if single else (tuple, list)
        # A column of a table need not have places that count from 0.
        given = [] if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(each, kind) and (single or len(each) == 2) for each in given):
            raise ValueError(f"{self.task.name} takes a list of {'texts' if single else 'pairs of texts'}")
        return [[str(text) for text in given]] if single else [[pair[side] for pair in given] for side in range(2)]
