"""Child processes, and settings of the whole process: its memory and compiled kernels."""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

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


def start_child(work: Callable[..., None], *arguments: Any, daemon: bool) -> tuple[Connection, SpawnProcess]:
    """Start a process that calls `work` with a connection to send messages to and `arguments`; return its other end."""
    # A fork would copy the threads' locks of PyTorch and Arrow in whatever state they are.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, theirs, *arguments), daemon=daemon)
    with deaf_to_ctrl_c():
        process.start()
    # Only the child holds this end, so that its death shows as the end of the stream.
    theirs.close()
    return ours, process


def receive(connection: Connection) -> object:
    """Return the next message of a child, or None if it has ended, in the middle of one perhaps."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _child(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Do a child's work; an error that ends it is its last message, and raised again where the run is."""
    try:
        work(connection, *arguments)
    except KeyboardInterrupt:
        sys.exit(1)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is left to work for
    except UserError as error:
        connection.send(UserError(str(error)))
    except OSError as error:
        connection.send(OSError(*error.args))
    except Exception:
        # A bug, with the place where it happened.
        connection.send(RuntimeError(f"in a process that works for this one:\n{traceback.format_exc()}"))


# Settings of the whole process, for commands and their child processes: a program that uses this library has its own.


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of up to 32 MiB a tensor instead of giving it back and faulting it in again.

    Activations of a layer or a step are freed before the next one's are allocated. New pages for each cost a tenth of
    the teacher's time and a sixth of the student's training. Other C libraries have no `mallopt`, and need none.
    """
    # Names, and the largest value that glibc takes, from malloc.h and mallopt(3).
    m_trim_threshold, m_mmap_threshold, never = -1, -3, (1 << 31) - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, never)


def keep_few_kernels() -> None:
    """Let oneDNN forget kernels that a teacher will hardly ask for again; a capacity that the user set stays.

    Takes effect before torch is imported. A kernel is compiled for each shape and takes up to a megabyte. A batch asks
    for a handful, in all layers and in the next batches of its length; the last batch of a length has shapes of its own
    in every slice. Keeping them all takes gigabytes over a corpus of millions and saves no time.
    """
    # Of oneDNN, and of ideep, PyTorch's layer over it; both keep 1,024 by default.
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(capacity, "16")
