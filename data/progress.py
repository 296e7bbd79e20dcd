"""Messages and progress of long-running work. The command line shows them; as a library, the package is silent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Callback that reports the progress of a task."""

    def __call__(self, count: int, note: str = "") -> None:
        """Add `count` to the units done; a note, such as the loss, is shown until the next one."""


class Silent:
    """Display that shows nothing; other displays override its methods."""

    def log(self, message: str) -> None:
        """Show one line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Open a task of `total` units (None if unknown), `done` of which an earlier run has finished."""
        yield lambda count, note="": None


_display = Silent()


def show_on(display: Silent) -> Silent:
    """Make `display` the display of this process, and return the previous one."""
    global _display
    before, _display = _display, display
    return before


@contextmanager
def shown_on(display: Silent) -> Iterator[None]:
    """Use `display` for the duration of the block."""
    before = show_on(display)
    try:
        yield
    finally:
        show_on(before)


def log(message: str) -> None:
    """Show one line."""
    _display.log(message)


def task(name: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
    """Open a task; see `Silent.task`."""
    return _display.task(name, total, unit, done)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write a number with its noun, for messages: 1 shard, 2,000 shards."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
