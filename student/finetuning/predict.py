"""A fine-tuned student as a user meets it: texts to labels, probabilities or scores."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sentence_distill.data.task import Task
from sentence_distill.student.finetuning.classifier import StudentClassifier
from sentence_distill.student.model import pool_tokens


class Classifier:
    """Predicts what a student was fine-tuned for.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, model: StudentClassifier, task: Task) -> None:
        self._model = model.eval()
        self._device = next(model.parameters()).device
        self.task = task

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> "Classifier":
        """Read the folder that `sd finetune STUDENT` made.

        Args:
            name: of the folder; or, as a string, `owner/name` on the hub, see `Student.load`.
            device: where to compute.

        Raises:
            UserError: there is none, or it is damaged.
        """
        from sentence_distill.student.finetuning.task_folder import load_classifier
        from sentence_distill.student.hub import locate_student

        model, task = load_classifier(locate_student(name))
        return cls(model.to(device), task)

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
        pooled = [pool_tokens(self._model.encoder, tokens) for tokens in self._model.tokenize(columns).columns]
        with torch.inference_mode():
            logits = self._model.logits([part.to(self._device) for part in pooled])
            return (logits if self.task.regression else logits.softmax(dim=1)).cpu().numpy()

    def _columns(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """The texts of each column.

        Raises:
            ValueError: they are no texts, or no pairs.
        """
        single = len(self.task.columns) == 1
        kind = str if single else (tuple, list)
        if isinstance(texts, str) or not all(isinstance(text, kind) and (single or len(text) == 2) for text in texts):
            raise ValueError(f"{self.task.name} takes a list of {'texts' if single else 'pairs of texts'}")
        return [[str(text) for text in texts]] if single else [[pair[side] for pair in texts] for side in range(2)]
