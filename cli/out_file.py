"""Checks of a command's output: which files and folders it may replace."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import LOCK_NAME, TEMPORARY, lock_folder, made_folder


def check_file(
    out: Path, overwrite: bool, *, option: str = "--out", own: Callable[[Path], bool] = lambda out: False
) -> None:
    """Refuse a file whose folder is missing, or that exists and is not to be replaced.

    A file may be replaced with `overwrite`, or if `own` recognizes it as an earlier output of the same command.
    """
    if not out.resolve().parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; name a file in it")
    if out.exists() and not overwrite and not own(out):
        raise UserError(f"{out} already exists; name another file, or replace it with --overwrite")


def refuse_other(out: Path, known: set[str], command: str) -> None:
    """Refuse a folder with a file that the command did not write."""
    if other := {path.name for path in out.iterdir()} - {LOCK_NAME, *known} if out.exists() else ():
        raise UserError(f"{out} holds {min(other)}, which {command} did not write; name another folder with --out")


def read_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; {} if the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# The folder that `sd finetune` writes.


@contextmanager
def finetuned_folder(out: Path, overwrite: bool) -> Iterator[None]:
    """Lock the output folder for the block; refuse one that is neither empty nor an earlier result to replace."""
    with made_folder(out), lock_folder(out):
        if any(path.name != LOCK_NAME for path in out.iterdir()):
            refuse_other(out, _finetuned_files(out), "sd finetune")
            if not overwrite:
                raise UserError(f"{out} already exists; name another folder with --out, or replace it with --overwrite")
        yield


def _finetuned_files(out: Path) -> set[str]:
    """Return the names that may be in a folder that `sd finetune` completed; the empty set for other folders."""
    from sentence_distill.student.figures import DISTILLATION
    from sentence_distill.student.files import (
        CARD,
        EXPORT_FOLDER,
        EXPORT_RECORD,
        FIGURES,
        FINETUNED_TEACHER,
        STUDENT_FILES,
        TASK,
        module_paths,
    )

    if teacher := read_object(out / FINETUNED_TEACHER):
        return {FINETUNED_TEACHER, *teacher.get("files", [])}
    # sd export writes copies in float16.
    if not (out / TASK).exists() or read_object(out / DISTILLATION).get("weights") != "float32":
        return set()
    modules = {path.relative_to(out).parts[0] for path in module_paths(out).values() if path != out}
    export = {EXPORT_FOLDER} if (out / EXPORT_FOLDER / EXPORT_RECORD).exists() else set()
    return {CARD, DISTILLATION, *STUDENT_FILES, *modules, *FIGURES, "glue", *export}


@contextmanager
def whole_or_none(folder: Path) -> Iterator[None]:
    """Replace the content of a folder; if the block fails, the previous content is restored."""

    def content() -> list[Path]:
        return [path for path in folder.iterdir() if path.name != LOCK_NAME]

    aside = folder.with_name(f".{folder.name}.old.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY}")
    aside.mkdir()
    for path in content():
        path.rename(aside / path.name)
    try:
        yield
    except BaseException:
        for path in content():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in aside.iterdir():
            path.rename(folder / path.name)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
