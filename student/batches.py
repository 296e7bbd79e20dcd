"""Batches of near-equal length, for texts of any length with the least computation, and threads that compute them."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Lock
from typing import TypeVar

import numpy as np

# What a call of the LSTM and each of its steps cost beside the sentences themselves, in steps of one sentence; measured
# on 300 units. A wrong value costs time and changes no vector.
_CALL_COST, _STEP_COST = 48, 3
_TILE_ROWS = 32
_STARTING = Lock()
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_process = os.getpid()


def near_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows of int[n] tokens into the batches, int64[b] row numbers, that cost least together, shortest rows first.

    A batch of b rows takes as many steps as its longest row has tokens. Few rows of a length share a batch with the
    next lengths, whose padding costs less than another call; many rows of a length stay among themselves. A batch has
    at most `token_budget` tokens, padding included; a longer row is a batch of its own.
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
    """Find the runs [start, stop) of neighbouring lengths whose summed cost is least, by dynamic programming.

    `distinct` are the lengths, ascending, `counts` the rows of each. Lengths share a batch only if all fit into one.
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


def map_on_cores(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """Return `function` of each task, computed in PyTorch by as many threads as it may use here, each on one core.

    An LSTM's steps are too small to be split: two batches side by side are a third faster than one after the other on
    two cores. Few tasks are computed one after the other, each on all cores. The caller's own number of threads stays.
    """
    # ONNX Runtime's batches are cut here too, and need no PyTorch.
    import torch

    global _process
    if os.getpid() != _process:
        # OpenMP's threads do not live on in a forked process, where waiting for them would never end.
        _process = os.getpid()
        torch.set_num_threads(1)
    cores = torch.get_num_threads()
    if cores == 1 or len(tasks) < 2 * cores:
        return [function(task) for task in tasks]
    started = Barrier(cores + 1)

    def start() -> None:
        # A thread takes PyTorch's number when it first asks for it, and would do so after it was given its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        # A pool whose threads fail at their start would leave others of them waiting for ever.
        with suppress(BrokenBarrierError):
            started.wait()

    with ThreadPoolExecutor(cores, initializer=start) as pool:
        try:
            with _STARTING:
                results = [pool.submit(function, task) for task in tasks]
                try:
                    started.wait()
                finally:
                    # The number that a thread was given last is also the one that new threads take.
                    torch.set_num_threads(cores)
            return [result.result() for result in results]
        except BaseException:
            started.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
