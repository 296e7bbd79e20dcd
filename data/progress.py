"""Messages and progress of long work. The command line shows them; used as a library, the package is silent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a task on."""

    def __call__(self, count: int, note: str = "") -> None:
        """Count more units as done; a note, a loss for one, is shown until the next one."""


class Silent:
    """Shows nothing; other displays override its methods."""

    def log(self, message: str) -> None:
        """Show one line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Open a task of `total` units (None: not known), of which an earlier run did `done`."""
        yield lambda count, note="": None


_display = Silent()


def show_on(display: Silent) -> Silent:
    """Show messages from now on in this process on `display`; return the one before."""
    global _display
    before, _display = _display, display
    return before


@contextmanager
def shown_on(display: Silent) -> Iterator[None]:
    """Show messages of the block on `display`."""
    before = show_on(display)
    try:
        yield
    finally:
        show_on(before)


def log(message: str) -> None:
    """Show one line."""
    _display.log(message)


def task(name: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
    """Open a task, see `Silent.task`; the value moves it on."""
    return _display.task(name, total, unit, done)
