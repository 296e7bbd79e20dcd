"""Ctrl-C and a scheduler's SIGTERM, as one line that says what is kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sentence_distill.data.errors import UserError


@contextmanager
def stopped_by_signals(message: str) -> Iterator[None]:
    """Let both signals interrupt the block, and end it with `message`."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)
