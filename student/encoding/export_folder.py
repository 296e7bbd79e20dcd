"""The folder of an export: there whole or not at all, and never in the place of something else."""

import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import TEMPORARY

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
RECORD = "export.json"
DEFAULT = "onnx"
"""Name of an export's folder inside the student's."""
_FILES = {MODEL, TOKENIZER, RECORD}
_FIELDS = {"int8", "parameters", "student"}


def read_record(folder: Path) -> dict[str, Any]:
    """What the export in `folder` says of itself.

    Raises:
        UserError: there is none, or it is damaged.
    """
    again = f"make it: sd export STUDENT --onnx --out {folder}"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no export; {again}") from None
    except ValueError as error:
        raise UserError(f"{folder / RECORD} is damaged ({error}); {again}") from error
    if not isinstance(record, dict) or not record.keys() >= _FIELDS:
        raise UserError(f"{folder / RECORD} lacks some of {', '.join(sorted(_FIELDS))}; {again}")
    return record


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
        raise UserError(f"{folder} holds {other}, which sd export did not write; name another folder with --out")


@contextmanager
def replacing_export(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well.

    Raises:
        UserError: see `require_replaceable`.
    """
    require_replaceable(folder)
    folder = folder.resolve()
    made = [parent for parent in folder.parents if not parent.exists()]
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
        # Only now: of an export that was killed between the two lines above, the one before is still among them.
        _remove_leftovers(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        # Of an export that failed no empty folder stays.
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove what exports that were killed left beside `folder`; those at work keep theirs."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*{TEMPORARY}"):
        found = re.fullmatch(rf"\.(new|old)\.(\d+)-[0-9a-f]+{re.escape(TEMPORARY)}", path.name[len(folder.name) + 1 :])
        if found and not _is_other_process(int(found[2])):
            shutil.rmtree(path, ignore_errors=True)


def _is_other_process(pid: int) -> bool:
    """Whether another process has this number; in a container a new one often has that of the killed one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
