"""Students that come inside this package."""

from pathlib import Path

_FOLDER = Path(__file__).parent / "pretrained"
SMALL = "wiki-small"
"""all-MiniLM-L6-v2 on English Wikipedia; its folder holds its card."""


def packaged_student(name: str) -> Path | None:
    """The folder of the packaged student of that name, or None where there is none."""
    return next((folder for folder in _FOLDER.glob("*") if folder.name == name), None)
