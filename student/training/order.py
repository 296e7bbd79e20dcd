"""The order of training batches: a pure function of seed, epoch, shards and batch size.

A batch holds sentences of one token length. How many processes share the work has no part in it: each takes its
share of every batch.
"""

from collections.abc import Sequence

import numpy as np


def shard_windows(rows: Sequence[int], window_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the shards and group them into windows of at least `window_rows` rows; the last may be smaller.

    Args:
        rows: rows of each shard.
        window_rows: rows over which sentences are shuffled.
        seed: of the run.
        epoch: counted from 0; each has its own order.

    Returns:
        Lists of shard numbers.
    """
    windows: list[list[int]] = [[]]
    filled = 0
    for shard in np.random.default_rng([seed, epoch]).permutation(len(rows)):
        if filled >= window_rows:
            windows.append([])
            filled = 0
        windows[-1].append(int(shard))
        filled += rows[shard]
    return windows


def window_batches(lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Cut a window's rows into batches of one length each, in random order.

    Args:
        lengths: int[n], tokens of each row.
        batch_size: rows of a batch; the last of each length may be smaller.
        rng: random numbers of this window.

    Returns:
        For each batch int64[b], row numbers in the window; each row is in exactly one.
    """
    shuffled = rng.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    cuts = np.flatnonzero(np.diff(lengths[order])) + 1
    batches = [
        group[first : first + batch_size]
        for group in np.split(order, cuts)
        for first in range(0, len(group), batch_size)
    ]
    return [batches[number] for number in rng.permutation(len(batches))]


def count_batches(rows_of_length: np.ndarray, batch_size: int) -> int:
    """Number of batches that `window_batches` makes of a window.

    Args:
        rows_of_length: int[longest + 1], how many rows have each length.
        batch_size: rows of a batch.
    """
    return int((-(-rows_of_length // batch_size)).sum())
