"""A fine-tuned student at work in PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sentence_distill.data.task import Task
from sentence_distill.student.finetuning.classifier import StudentClassifier
from sentence_distill.student.model import pool_tokens


@dataclass(frozen=True)
class TorchClassifier:
    """A `Predictor`.

    Args:
        model: in evaluation mode, on the device that computes.
        task: its columns and classes.
    """

    model: StudentClassifier
    task: Task

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""
        device = next(self.model.parameters()).device
        pooled = [pool_tokens(self.model.encoder, tokens) for tokens in self.model.tokenize(columns).columns]
        with torch.inference_mode():
            logits = self.model.logits([part.to(device) for part in pooled])
            return (logits if self.task.regression else logits.softmax(dim=1)).cpu().numpy()
