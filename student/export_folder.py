"""The folder of an export: there whole or not at all, and never in the place of something else."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import TEMPORARY

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
RECORD = "export.json"
_FILES = {MODEL, TOKENIZER, RECORD}


def require_replaceable(folder: Path) -> None:
    """Refuse a folder that an export must not take the place of.

    Raises:
        UserError: it is a file, or holds something that no export left there.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    names = {path.name for path in folder.iterdir()}
    if names and (RECORD not in names or names - _FILES):
        other = min(names - _FILES, default=min(names))
        raise UserError(f"--out {folder} holds {other}, which is of no export; name another folder")


@contextmanager
def replacing_export(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well.

    Raises:
        UserError: see `require_replaceable`.
    """
    require_replaceable(folder)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    new, old = (folder.with_name(f".{folder.name}.{name}{suffix}") for name in ("new", "old"))
    new.mkdir()
    try:
        yield new
        # Two names can't be swapped in one step: between these two lines there is no export, never half of one.
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
