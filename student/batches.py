"""Inference batches of similar lengths, chosen to minimize computation, and threads that compute them.

Training uses batches of a single length (see `dataset`), which need no padding at all. A call of `encode` has too few
sentences for that: batches of one length would be tiny, and each call of the LSTM has a fixed cost. Batches here mix
neighboring lengths whenever the padding costs less than another call.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Lock
from typing import TypeVar

import numpy as np

# Fixed costs of an LSTM call and of each of its time steps, in units of one sentence's step; measured with 300 units.
# Wrong values only cost time: no vector depends on them.
_CALL_COST, _STEP_COST = 48, 3
_TILE_ROWS = 32
_STARTING = Lock()
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_process = os.getpid()


def near_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Group rows with int[n] token counts into the cheapest batches, int64[b] row numbers, shortest rows first.

    The number of steps of a batch is that of its longest row. Lengths with few rows share a batch with the next
    lengths, because padding costs less than another call; lengths with many rows have batches of their own. A batch
    has at most `token_budget` tokens, padding included; a longer row is a batch by itself.
    """
    order = np.argsort(lengths, kind="stable")
    distinct, first = np.unique(lengths[order], return_index=True)
    ends = np.append(first, len(order))[1:]
    for start, stop in _cheapest_groups(distinct, ends - first, token_budget):
        group = order[first[start] : ends[stop - 1]]
        size = max(1, token_budget // max(1, int(distinct[stop - 1])))
        # Matrix kernels work on tiles of up to 32 rows: a partial tile costs as much as a full one.
        size -= size % _TILE_ROWS if size > _TILE_ROWS else 0
        for place in range(0, len(group), size):
            yield group[place : place + size]


def _cheapest_groups(distinct: np.ndarray, counts: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Find the runs [start, stop) of neighboring lengths with the lowest total cost, by dynamic programming.

    `distinct` are the lengths in ascending order, and `counts` the number of rows of each. Lengths share a batch only
    if all their rows fit into one, so a run is either one length in any number of batches, or several lengths in one.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[stop] is the lowest cost of the lengths before `stop`, and begin[stop] the start of their last run.
    cost = np.zeros(len(distinct) + 1)
    begin = np.zeros(len(distinct) + 1, dtype=np.int64)
    for stop in range(1, len(distinct) + 1):
        length, starts = int(distinct[stop - 1]), np.arange(stop)
        rows = before[stop] - before[:stop]
        calls = np.where(starts == stop - 1, -(-rows * length // token_budget), 1)
        whole = cost[:stop] + calls * _CALL_COST + length * (calls * _STEP_COST + rows)
        whole[(starts < stop - 1) & (rows * length > token_budget)] = np.inf
        # Rows without tokens need no call, and stay apart, since others would pad them.
        begin[stop] = stop - 1 if length == 0 else int(whole.argmin())
        cost[stop] = 0 if length == 0 else whole[begin[stop]]
    groups: list[tuple[int, int]] = []
    stop = len(distinct)
    while stop:
        groups.append((int(begin[stop]), stop))
        stop = groups[-1][0]
    return groups[::-1]


def map_on_cores(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """Apply `function`, which computes in PyTorch, to all tasks in parallel, with one thread per core.

    The steps of an LSTM are too small to be split over cores: on two cores, two batches in parallel are a third faster
    than one after the other. Few tasks are computed one after the other, each on all cores. The caller's
    `torch.get_num_threads()` is unchanged afterwards.
    """
    # Imported here, because ONNX Runtime's batches also come from this module, and need no PyTorch.
    import torch

    global _process
    if os.getpid() != _process:
        # OpenMP's threads do not survive a fork, and the child would wait for them forever.
        _process = os.getpid()
        torch.set_num_threads(1)
    cores = torch.get_num_threads()
    if cores == 1 or len(tasks) < 2 * cores:
        return [function(task) for task in tasks]
    started = Barrier(cores + 1)

    def start() -> None:
        # The first query in a thread initializes its number of threads, and would overwrite a number set before.
        torch.get_num_threads()
        torch.set_num_threads(1)
        # The barrier is broken if starting a thread fails, so that the others don't wait forever.
        with suppress(BrokenBarrierError):
            started.wait()

    with ThreadPoolExecutor(cores, initializer=start) as pool:
        try:
            with _STARTING:
                results = [pool.submit(function, task) for task in tasks]
                try:
                    started.wait()
                finally:
                    # `set_num_threads` also sets the number for future threads, so the pool's 1 must be undone. The
                    # barrier ensures that all threads of the pool have set it before, and the lock that no other call
                    # of this function starts threads in between.
                    torch.set_num_threads(cores)
            return [result.result() for result in results]
        except BaseException:
            started.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
