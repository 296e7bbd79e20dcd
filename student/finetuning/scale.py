"""The scale of a regression: learned at mean 0 and deviation 1, in whatever unit labels or a teacher's scores are."""

import numpy as np
import torch
from torch import nn

from sentence_distill.data.errors import UserError
from sentence_distill.student.finetuning.classifier import StudentClassifier
from sentence_distill.student.finetuning.finetune import Labelled, predict


def rescale(model: StudentClassifier, factor: float, shift: float) -> None:
    """Let a model give `factor` times its scores, and `shift` more."""
    last = model.head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor).add_(shift)


def standardised(teacher: Labelled) -> Labelled:
    """A teacher's scores brought to mean 0 and deviation 1, so that a learning rate serves all units.

    Raises:
        UserError: they do not differ.
    """
    deviation = teacher.targets.std()
    if not np.isfinite(deviation) or deviation == 0:
        raise UserError(
            "--logits: the teacher's scores do not differ, or are too large; nothing can be learned of them"
        )
    return Labelled(teacher.texts, (teacher.targets - teacher.targets.mean()) / deviation)


def match_labels(model: StudentClassifier, labelled: Labelled, device: torch.device, precision: torch.dtype) -> None:
    """Bring the scores of a model that learned a teacher's to the labels' unit: least squares over labelled examples.

    Neither the teacher's unit nor the text that it scored needs to be known for that: one was fine-tuned here on
    standardised labels, another comes from the hub.

    Raises:
        UserError: the model's scores do not rise with the labels.
    """
    found = predict(model, model.tokenize(labelled.texts), 0, device, precision)
    slope = _slope(found, labelled.targets)
    if not slope > 0:
        raise UserError(
            "--logits: the scores that the student learned from do not rise with the labels of the training examples; "
            "embed the task's text with a teacher that was fine-tuned on it"
        )
    rescale(model, slope, float(labelled.targets.mean() - slope * found.mean()))


def _slope(found: np.ndarray, labels: np.ndarray) -> float:
    """Of the line through labels over scores; 0 where the scores do not differ."""
    centred = found - found.mean()
    spread = float(centred @ centred)
    return float(centred @ labels) / spread if spread else 0.0
