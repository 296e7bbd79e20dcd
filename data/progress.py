"""What long work says of itself. The command line shows it; used as a library, the package is silent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a task on."""

    def __call__(self, count: int, note: str = "") -> None:
        """Count more units as done; a note, a loss for one, is shown until the next one."""


class Display(Protocol):
    """Shows messages and the progress of tasks."""

    def log(self, message: str) -> None:
        """Show one line."""

    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """Open a task of `total` units (None: not known), of which an earlier run did `done`."""


class Silent:
    """A display that shows nothing."""

    def log(self, message: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda count, note="": None


_display: Display = Silent()


def show_on(display: Display) -> None:
    """Show what is said from now on in this process on `display`."""
    global _display
    _display = display


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show what is said inside on `display`."""
    before = _display
    show_on(display)
    try:
        yield
    finally:
        show_on(before)


def log(message: str) -> None:
    """Say one line."""
    _display.log(message)


def task(name: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
    """Open a task of `total` units (None: not known), of which an earlier run did `done`; the value moves it on."""
    return _display.task(name, total, unit, done)
