"""A student in PyTorch, as it encodes files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.model import Student, encode_tokens


@dataclass(frozen=True)
class TorchEncoder:
    """A `TextEncoder`.

    Args:
        student: on the device that computes.
        precision: of the LSTM's arithmetic, see `Student.encode`.
    """

    student: Student
    precision: torch.dtype

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.student.dim

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences."""
        return self.student.tokenize(sentences)

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """float32[n, dim] of n tokenized sentences."""
        return encode_tokens(self.student.encoder, tokens, self.precision).numpy()

    def identity(self) -> dict[str, str]:
        """Hashes of weights, shape and tokenizer, and the precision."""
        encoder = self.student.encoder
        weights = b"".join(weight.cpu().numpy().tobytes() for weight in encoder.state_dict().values())
        return {
            "student": bytes_hash(weights),
            "shape": str(encoder.config),
            "tokenizer": bytes_hash(self.student.tokenizer.to_str().encode()),
            "precision": str(self.precision),
        }
