"""A student with a head for one task."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.finetuning.examples import ExampleTokens, Padded
from sentence_distill.student.model import Student
from sentence_distill.student.training.init import SCALE

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
