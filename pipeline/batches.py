"""Exact-length batches: every batch holds sentences of one token length, so nothing is padded or masked."""

from collections.abc import Iterator

import numpy as np


def exact_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of one length each, as many rows as fit into `token_budget` tokens.

    Args:
        lengths: int[n], tokens of each row.
        token_budget: tokens of a batch; a longer row is a batch of its own.

    Yields:
        int64[b], row numbers; shortest rows first, ties in their given order.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    for group in np.split(order, np.flatnonzero(np.diff(ordered)) + 1):
        size = max(1, token_budget // max(1, int(lengths[group[0]]))) if len(group) else 1
        for first in range(0, len(group), size):
            yield group[first : first + size]
