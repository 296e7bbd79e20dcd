"""Threads that compute side by side, one core each."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def map_on_cores(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """`function` of each task, in order, on as many threads as PyTorch may use here, each computing with one.

    An LSTM's steps are too small to be split: two batches side by side are a third faster than one after the other on
    two cores. Few tasks are computed one after the other, each on all cores. The caller's own number of threads stays.
    """
    cores = torch.get_num_threads()
    if cores == 1 or len(tasks) < 2 * cores:
        return [function(task) for task in tasks]
    started = Barrier(cores + 1)

    def start() -> None:
        # A thread takes PyTorch's number when it first asks for it, and would do so after it was given its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        started.wait()

    with ThreadPoolExecutor(cores, initializer=start) as pool:
        try:
            results = [pool.submit(function, task) for task in tasks]
            started.wait()
            # The number that a thread was given last is also the one that new threads take.
            torch.set_num_threads(cores)
            return [result.result() for result in results]
        except BaseException:
            started.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
