"""Child processes, and process-wide settings of memory and compiled kernels."""

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
    """Return the number of cores this process may use, which a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Shield processes that the block starts from Ctrl-C, which a terminal sends to all; their parent ends them."""
    # Before its first child, multiprocessing starts a resource tracker and then unblocks the signal: start it first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_child(work: Callable[..., None], *arguments: Any, daemon: bool) -> tuple[Connection, SpawnProcess]:
    """Start a process that runs `work(connection, *arguments)`; return the receiving end of the connection."""
    # Not by fork, which would copy the locks of PyTorch's and Arrow's threads in an arbitrary state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, theirs, *arguments), daemon=daemon)
    with deaf_to_ctrl_c():
        process.start()
    # With this end open only in the child, the stream ends when the child dies.
    theirs.close()
    return ours, process


def receive(connection: Connection) -> object:
    """Return the next message of a child; None if it has ended, possibly in the middle of a message."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _child(work: Callable[..., None], connection: Connection, *arguments: Any) -> None:
    """Do the work of a child; send an error that ends it as the last message, for the parent to raise."""
    try:
        work(connection, *arguments)
    except KeyboardInterrupt:
        sys.exit(1)
    except (BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    except UserError as error:
        connection.send(UserError(str(error)))
    except OSError as error:
        connection.send(OSError(*error.args))
    except Exception:
        # A bug: the traceback tells where.
        connection.send(RuntimeError(f"in a child process:\n{traceback.format_exc()}"))


# Process-wide settings. Commands and their child processes make them; a program that uses the library decides itself.


def keep_freed_memory() -> None:
    """Let glibc keep freed memory of tensors up to 32 MiB, instead of returning it to the system.

    The activations of each layer or step are freed before the next ones are allocated. Fresh pages for each of them
    cost 10% of the teacher's time and 17% of the student's training time. Other C libraries have no `mallopt`, and
    don't need it.
    """
    # Names, and the largest value that glibc accepts, from malloc.h and mallopt(3).
    m_trim_threshold, m_mmap_threshold, never = -1, -3, (1 << 31) - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, never)


def keep_few_kernels() -> None:
    """Limit oneDNN's cache of compiled kernels; a capacity that the user has set is kept.

    Call it before torch is imported. oneDNN compiles a kernel for each shape, of up to a megabyte. A batch uses a
    handful, shared by all layers and by the next batches of its length, but the last batch of each length has its own
    shapes in every slice. Keeping all kernels would take gigabytes over millions of sentences, and save no time.
    """
    # Of oneDNN, and of ideep, PyTorch's layer on top of it; both keep 1,024 kernels by default.
    for capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(capacity, "16")
