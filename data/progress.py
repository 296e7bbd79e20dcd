"""What long work reports to whoever started it; the command line shows it, a library user may ignore it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a task on."""

    def __call__(self, count: int, note: str = "") -> None:
        """Count more units as done; a note, a loss for one, is shown until the next one."""


class Progress(Protocol):
    """Receives messages and the progress of tasks."""

    def log(self, message: str) -> None:
        """Show one line."""

    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """Open a task of `total` units (None: not known), of which an earlier run did `done`; the value moves it on."""


class Silent:
    """A `Progress` that shows nothing."""

    def log(self, message: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
        """Yield a function that does nothing."""
        yield lambda count, note="": None
