"""The file or folder that `--out` names, before anything is done for it, and where that fails."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.data.sources import Source


def check_out_file(out: Path, sources: "Sequence[Source]", overwrite: bool) -> None:
    """Refuse a file that can't be written, is read, or is there already.

    Args:
        out: the file.
        sources: what the command reads.
        overwrite: whether it may take the place of one that is there.

    Raises:
        UserError: it is refused.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if any(source.is_file(out) for source in sources):
        raise UserError(f"--out {out} is the input itself; name another file")
    check_free(out, overwrite)


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse a folder, and a file that is there already if it may not be replaced.

    Raises:
        UserError: it is refused.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file in it")
    if out.exists() and not overwrite:
        raise UserError(f"{out} is there already; name another file, or replace it with --overwrite")


@contextmanager
def new_folder(out: Path) -> Iterator[None]:
    """Hold a folder that is empty or not there, before the work for it: that it can be written shows now.

    Raises:
        UserError: it holds something already, or another run is about to write it.
    """
    from sentence_distill.pipeline.lock import LOCK_NAME, lock_folder

    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(out):
            if any(path.name != LOCK_NAME for path in out.iterdir()):
                raise UserError(f"{out} is not empty; name another folder with --out")
            yield
    finally:
        # Of what failed nothing is left; a folder with something in it stays.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


@contextmanager
def whole_or_none(folder: Path) -> Iterator[None]:
    """Remove a folder that was empty or not there where writing it fails.

    Half of what was asked for is none of it, and the same command should find its folder free.
    """
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
