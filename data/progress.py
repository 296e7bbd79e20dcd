"""What long work reports to whoever started it; the command line shows it, a library user may ignore it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives messages and the progress of tasks."""

    def log(self, message: str) -> None:
        """Show one line."""

    def task(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Open a task of `total` units (None: not known); the value called with n advances it by n."""


class Silent:
    """A `Progress` that shows nothing."""

    def log(self, message: str) -> None:
        """Drop the line."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        """Yield a function that does nothing."""
        yield lambda n: None
