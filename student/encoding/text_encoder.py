"""What encodes files: a student in ONNX Runtime or in PyTorch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sentence_distill.data.tokenization import Tokens


class TextEncoder(Protocol):
    """From sentences to vectors, in two steps, the first of which may be done ahead."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences."""

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """float32[n, dim] of n tokenized sentences."""

    def identity(self) -> dict[str, str]:
        """What the vectors depend on: hashes by name."""
