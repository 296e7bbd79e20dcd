"""Students that come inside this package."""

from pathlib import Path

from sentence_distill.data.errors import UserError

_FOLDER = Path(__file__).parent / "pretrained"
SMALL = "wiki-small"
"""all-MiniLM-L6-v2 on English Wikipedia; its folder holds its card."""


def packaged_student(name: str) -> Path | None:
    """The folder of the packaged student of that name; None where there is none, or a folder here has the name."""
    return next((folder for folder in _FOLDER.glob("*") if folder.name == name and not Path(name).exists()), None)


def require_own_folder(name: str | Path) -> None:
    """Refuse a packaged student where files are written beside it.

    Raises:
        UserError: it says how to get a copy.
    """
    if packaged_student(str(name)):
        raise UserError(f"{name} lies inside the package; copy it to a folder of yours: sd reduce {name} --float16")
