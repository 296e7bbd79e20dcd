"""What encodes files: a student in PyTorch, or its export in ONNX Runtime."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TextEncoder(Protocol):
    """From sentences to vectors, in two steps, the first of which may be done ahead."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence."""

    def vectors(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """float32[n, dim] of n tokenised sentences."""

    def identity(self) -> dict[str, str]:
        """What the vectors depend on: hashes by name."""
