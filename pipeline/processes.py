"""Child processes, and settings of the whole process: its memory and compiled kernels."""

import ctypes
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from sentence_distill.data.errors import UserError


def cores() -> int:
    """Return how many this process may use; a scheduler gives a job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes started inside never see Ctrl-C, which goes to all of a terminal; who started them ends them."""
    # multiprocessing starts this process of its own before the first child, and unblocks the signal behind it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive(connection: Connection) -> object:
    """Return the next message of a child, or None if it has ended, in the middle of one perhaps."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def sendable(error: Exception) -> Exception:
    """Return what a child sends of an error: user's mistakes as they are, a bug with the place where it happened."""
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError):
        return OSError(*error.args)
    return RuntimeError(f"in a process that works for this one:\n{traceback.format_exc()}")


# Settings of the whole process, for commands and their child processes: a program that uses this library has its own.

# Names and the largest value that glibc takes, from malloc.h and mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD, _NO_TRIM = 32 << 20, (1 << 31) - 1
# How many compiled kernels oneDNN, and ideep, PyTorch's layer over it, keep: by default 1,024 each.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_FEW = "16"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of up to 32 MiB a tensor instead of giving it back and faulting it in again.

    Activations of a layer or a step are freed before the next one's are allocated. New pages for each cost a tenth of
    the teacher's time and a sixth of the student's training. Other C libraries have no `mallopt`, and need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _NO_TRIM)


def keep_few_kernels() -> None:
    """Let oneDNN forget kernels that a teacher will hardly ask for again; a capacity that the user set stays.

    Takes effect before torch is imported. A kernel is compiled for each shape and takes up to a megabyte. A batch asks
    for a handful, in all layers and in the next batches of its length; the last batch of a length has shapes of its own
    in every slice. Keeping them all takes gigabytes over a corpus of millions and saves no time.
    """
    for capacity in _CACHES:
        os.environ.setdefault(capacity, _FEW)
