"""Classifiers: a student with a head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Task
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.finetune import ExampleTokens, Labelled, Padded, predict
from sentence_distill.student.model import Student, pool_tokens
from sentence_distill.student.start import SCALE

HEAD_UNITS = 512
HEAD_DROPOUT = 0.2


class StudentClassifier(nn.Module):
    """A student's encoder under a head with one hidden layer.

    The head reads the pooled LSTM states, u of a single sentence and [u, v, |u - v|, u * v] of a pair, whose sentences
    are encoded each alone.
    """

    def __init__(self, student: Student, columns: int, outputs: int) -> None:
        """Put a new head on a student, whose encoder is shared and not copied.

        Args:
            student: encoder and tokenizer.
            columns: 1, or 2 for pairs.
            outputs: classes, or 1 in a regression.
        """
        super().__init__()
        self.encoder = student.encoder
        self.tokenizer = student.tokenizer
        # A batch holds few of the words, and a dense pass over all of them takes as long as the LSTM.
        self.encoder.embedding.sparse = True
        self.columns = columns
        width = self.encoder.config.pooled_dim * (1 if columns == 1 else 4)
        self.head = nn.Sequential(
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, HEAD_UNITS),
            nn.ReLU(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_UNITS, outputs),
        )

    @property
    def student(self) -> Student:
        """The student under the head."""
        return Student(self.encoder, self.tokenizer)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenise one or two columns of texts."""
        return ExampleTokens(tuple(self.student.tokenize(column) for column in texts))

    def forward(self, batch: Padded) -> torch.Tensor:
        """Logits, float[b, outputs]."""
        return self.logits(self.encoder.pool_padded(batch.input_ids, batch.lengths).chunk(self.columns))

    def logits(self, pooled: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits, float[b, outputs], from pooled states, float[b, pooled_dim] of each column."""
        if self.columns == 1:
            return self.head(pooled[0])  # type: ignore[no-any-return]
        u, v = pooled
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=1))  # type: ignore[no-any-return]

    def head_arrays(self) -> dict[str, np.ndarray]:
        """The head's weights as float32 arrays, by their names in `head.state_dict`."""
        return {name: weight.float().cpu().numpy() for name, weight in self.head.state_dict().items()}

    def pretrained(self) -> list[nn.Parameter]:
        """The weights that came with the student, and not with the task."""
        return list(self.encoder.parameters())


def initial_student(student: Student, seed: int, *, words: torch.Tensor | None = None) -> Student:
    """A student of the same shape that learned nothing yet: the baseline from scratch.

    Args:
        student: gives shape and tokenizer.
        seed: of the weights.
        words: float32[vocabulary, embedding_dim] to take as word embeddings; None draws them at random.
    """
    torch.manual_seed(seed)
    scratch = StudentEncoder(student.encoder.config)
    with torch.no_grad():
        if words is None:
            nn.init.normal_(scratch.embedding.weight, std=SCALE)
        else:
            scratch.embedding.weight.copy_(words)
    return Student(scratch, student.tokenizer)


# The scale of a regression: learned at mean 0 and deviation 1, in whatever unit labels or a teacher's scores are.


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


# A fine-tuned student at work in PyTorch.


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
