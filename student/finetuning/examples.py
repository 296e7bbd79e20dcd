"""Tokenised labelled examples, cut into batches of similar length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from sentence_distill.student.batches import pad_tokens


@dataclass(frozen=True)
class Tokens:
    """Token ids of n examples.

    Args:
        columns: for each text of an example n lists of token ids; a model that reads pairs as one text has one column.
        first: int[n], how many tokens of the only column belong to the first text of a pair, or None.
    """

    columns: tuple[list[list[int]], ...]
    first: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order where `rng` is given."""
        lengths = np.array([[len(ids) for ids in column] for column in self.columns]).max(axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> "Padded":
        """The tokens of int[b] `rows`, column after column."""
        padded, lengths = pad_tokens([column[row] for column in self.columns for row in rows])
        first = None if self.first is None else torch.from_numpy(self.first[rows]).to(device)
        return Padded(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device), first)


@dataclass(frozen=True)
class Padded:
    """A batch of b examples in c columns.

    Args:
        input_ids: int64[c * b, longest], column after column; 0 stands behind a text's end.
        lengths: int64[c * b].
        first: int64[b], see `Tokens`, or None.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    first: torch.Tensor | None
