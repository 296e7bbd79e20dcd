"""Tokenised labelled examples, cut into batches of similar length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from sentence_distill.data.tokenization import Tokens


@dataclass(frozen=True)
class ExampleTokens:
    """Tokens of n examples.

    Args:
        columns: the tokens of n texts for each text of an example; a model that reads pairs as one has one column.
        first: int[n], how many tokens of the only column belong to the first text of a pair, or None.
    """

    columns: tuple[Tokens, ...]
    first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order where `rng` is given."""
        lengths = np.max([column.lengths for column in self.columns], axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> "Padded":
        """The tokens of int[b] `rows`, column after column."""
        padded, lengths = Tokens.concatenated([column.take(rows) for column in self.columns]).padded()
        first = None if self.first is None else torch.from_numpy(self.first[rows]).to(device)
        return Padded(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device), first)


@dataclass(frozen=True)
class Padded:
    """A batch of b examples in c columns.

    Args:
        input_ids: int64[c * b, longest], column after column; 0 stands behind a text's end.
        lengths: int64[c * b].
        first: int64[b], see `ExampleTokens`, or None.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    first: torch.Tensor | None
