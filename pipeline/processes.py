"""Child processes: how many, and how to talk with them."""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from sentence_distill.data.errors import UserError


def cores() -> int:
    """How many this process may use; a scheduler gives a job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which goes to all of a terminal; who started them ends them."""
    # multiprocessing starts this process of its own before the first child, and unblocks the signal behind it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive(connection: Connection) -> object:
    """The next message of a child, or None where it has ended, in the middle of one perhaps."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def sendable(error: Exception) -> Exception:
    """What a child sends of an error: the user's mistakes as they are, a bug with the place where it happened."""
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError):
        return OSError(*error.args)
    return RuntimeError(f"in a process that works for this one:\n{traceback.format_exc()}")
