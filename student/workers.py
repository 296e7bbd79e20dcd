"""Threads that compute side by side, one core each."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Lock
from typing import TypeVar

import torch

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")
_STARTING = Lock()

_process = os.getpid()


def map_on_cores(function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> list[_Result]:
    """`function` of each task, in order, on as many threads as PyTorch may use here, each computing with one.

    An LSTM's steps are too small to be split: two batches side by side are a third faster than one after the other on
    two cores. Few tasks are computed one after the other, each on all cores. The caller's own number of threads stays.
    """
    global _process
    if os.getpid() != _process:
        # OpenMP's threads do not live on in a forked process, where waiting for them would never end.
        _process = os.getpid()
        torch.set_num_threads(1)
    cores = torch.get_num_threads()
    if cores == 1 or len(tasks) < 2 * cores:
        return [function(task) for task in tasks]
    with ThreadPoolExecutor(cores, initializer=(started := _Start(cores))) as pool:
        try:
            with _STARTING:
                results = [pool.submit(function, task) for task in tasks]
                started.wait()
            return [result.result() for result in results]
        except BaseException:
            started.barrier.abort()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Start:
    """What each thread of a pool does first: compute with one thread from then on."""

    def __init__(self, cores: int) -> None:
        self.barrier = Barrier(cores + 1)
        self._cores = cores

    def __call__(self) -> None:
        # A thread takes PyTorch's number when it first asks for it, and would do so after it was given its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        # A pool whose threads fail at their start would leave others of them waiting for ever.
        with suppress(BrokenBarrierError):
            self.barrier.wait()

    def wait(self) -> None:
        """Return once all have done so."""
        try:
            self.barrier.wait()
        finally:
            # The number that a thread was given last is also the one that new threads take.
            torch.set_num_threads(self._cores)
