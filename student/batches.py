"""Batches of near-equal length, for encoding texts of any length with the least computation."""

from collections.abc import Iterator

import numpy as np

# What a call of the LSTM and each of its steps cost beside the sentences themselves, in steps of one sentence; measured
# on 300 units. A wrong value costs time and changes no vector.
_CALL_COST, _STEP_COST = 48, 3
_TILE_ROWS = 32


def near_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows, ordered by length, into the batches that cost least together.

    A batch of b rows takes as many steps as its longest row has tokens. Few rows of a length share a batch with the
    next lengths, whose padding costs less than another call; many rows of a length stay among themselves.

    Args:
        lengths: int[n], tokens of each row.
        token_budget: tokens of a batch, padding included; a longer row is a batch of its own.

    Yields:
        int64[b], row numbers; shortest rows first, ties in their given order.
    """
    order = np.argsort(lengths, kind="stable")
    distinct, first = np.unique(lengths[order], return_index=True)
    ends = np.append(first, len(order))[1:]
    for start, stop in _cheapest_groups(distinct, ends - first, token_budget):
        group = order[first[start] : ends[stop - 1]]
        size = max(1, token_budget // max(1, int(distinct[stop - 1])))
        # Matrix kernels work on tiles of up to 32 rows: a part of one costs as much as a whole.
        size -= size % _TILE_ROWS if size > _TILE_ROWS else 0
        for place in range(0, len(group), size):
            yield group[place : place + size]


def _cheapest_groups(distinct: np.ndarray, counts: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Runs [start, stop) of neighbouring lengths whose summed cost is least, by dynamic programming.

    Args:
        distinct: int[m], ascending lengths.
        counts: int[m], rows of each.
        token_budget: see `near_length_batches`; lengths share a batch only where all of them fit into one.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.zeros(len(distinct) + 1)
    begin = np.zeros(len(distinct) + 1, dtype=np.int64)
    for stop in range(1, len(distinct) + 1):
        length, starts = int(distinct[stop - 1]), np.arange(stop)
        rows = before[stop] - before[:stop]
        calls = np.where(starts == stop - 1, -(-rows * length // token_budget), 1)
        whole = cost[:stop] + calls * _CALL_COST + length * (calls * _STEP_COST + rows)
        whole[(starts < stop - 1) & (rows * length > token_budget)] = np.inf
        # What has no tokens needs no call, and pads to nothing.
        begin[stop] = stop - 1 if length == 0 else int(whole.argmin())
        cost[stop] = 0 if length == 0 else whole[begin[stop]]
    groups: list[tuple[int, int]] = []
    stop = len(distinct)
    while stop:
        groups.append((int(begin[stop]), stop))
        stop = groups[-1][0]
    return groups[::-1]
