"""Ctrl-C and a scheduler's SIGTERM, as one line that says what is kept."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sentence_distill.data.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(message: str | Callable[[], str]) -> Iterator[None]:
    """Let both signals interrupt the block, and end it with `message`; a second one ends the process at once.

    Args:
        message: one line, or what makes it when the block has ended.

    Raises:
        UserError: a signal came.
    """
    process = os.getpid()

    def stop(number: int, frame: object) -> None:
        end_at_once_next()
        if os.getpid() != process:
            # A forked child ends as it would without this handler.
            os.kill(os.getpid(), number)
            return
        # Said at once: what is under way, a batch or a library's call, may take seconds to end.
        os.write(2, b"stopping; another signal ends it at once\n")
        raise KeyboardInterrupt

    # One that is ignored, as a shell does for what it runs in the background, stays ignored.
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except KeyboardInterrupt:
        raise UserError(message if isinstance(message, str) else message()) from None
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop:
                signal.signal(number, handler)


def end_at_once_next() -> None:
    """Let the next signal end the process as the system does, without a word."""
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
