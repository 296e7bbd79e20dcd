"""Asking a model hub, with an answer in seconds whatever the network does."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from sentence_distill.data.errors import first_line

T = TypeVar("T")

# A name server that never answers is bounded by no HTTP time-out, so the whole question has a deadline.
DEADLINE_S = 6.0


class HubUnreachable(Exception):
    """The hub did not answer, or answered that it has no such thing; the message says which.

    Args:
        message: one line.
        status: of HTTP, where it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def of(cls, error: Exception) -> "HubUnreachable":
        """What an error of the hub's client says, in one line."""
        return cls(first_line(error), getattr(getattr(error, "response", None), "status_code", None))


def offline_requested() -> bool:
    """Whether the user has switched the hub off (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def ask_hub(question: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Return `question()`, or raise `HubUnreachable` once it failed or `deadline_s` seconds have passed.

    The question runs in a daemon thread: one that hangs does not keep the process alive.
    """
    if offline_requested():
        raise HubUnreachable("HF_HUB_OFFLINE is set")
    answers: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(question())
        except Exception as error:  # whatever the client raises is the reason given to the user
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if answers:
        return answers[0]
    if errors:
        raise HubUnreachable.of(errors[0])
    raise HubUnreachable(f"no answer in {deadline_s:.0f} seconds")
