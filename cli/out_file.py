"""Outputs of commands: what may be replaced."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    pass


def check_parent(out: Path, option: str = "--out") -> None:
    """Refuse a file in a folder that is not there.

    Raises:
        UserError: it is refused.
    """
    if not out.resolve().parent.is_dir():
        raise UserError(f"{option} {out}: there is no folder {out.parent}")


def check_free(
    out: Path, overwrite: bool, *, option: str = "--out", own: Callable[[Path], bool] = lambda out: False
) -> None:
    """Refuse a folder, and a file that is there already if it may not be replaced.

    Args:
        out: the file.
        overwrite: whether any file may be replaced.
        option: what names the file.
        own: tells an earlier output of the same command, which may be replaced.

    Raises:
        UserError: it is refused.
    """
    if out.is_dir():
        raise UserError(f"{option} {out} is a folder; name a file in it")
    if out.exists() and not overwrite and not own(out):
        raise UserError(f"{out} is there already; name another file, or --overwrite replaces it")


def holds_keys(path: Path, *kinds: Collection[str]) -> bool:
    """Whether a file is a JSON object with all keys of one of the kinds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and any(content.keys() >= set(kind) for kind in kinds)


def refuse_other(out: Path, names: Collection[str], command: str) -> None:
    """Refuse a folder because of what it holds.

    Args:
        out: the folder.
        names: what the command did not write; nothing is refused where there is none.
        command: as in "sd finetune".

    Raises:
        UserError: naming the first.
    """
    if names:
        raise UserError(f"{out} holds {min(names)}, which {command} did not write; name another folder with --out")


@contextmanager
def new_folder(
    out: Path, overwrite: bool = False, *, earlier: Callable[[Path], bool] = lambda out: False, command: str = ""
) -> Iterator[None]:
    """Hold a folder that is empty or not there, before the work for it: that it can be written shows now.

    Args:
        out: the folder.
        overwrite: let a folder in that holds an earlier output of the same command.
        earlier: tells that; it raises the UserError that names what is something else.
        command: as in "sd finetune", for messages.

    Raises:
        UserError: it holds something already, or another run is about to write it.
    """
    from sentence_distill.pipeline.files import LOCK_NAME, lock_folder, made_folder

    with made_folder(out), lock_folder(out):
        if names := {path.name for path in out.iterdir()} - {LOCK_NAME}:
            if not earlier(out):
                refuse_other(out, names, command or "this command")
            if not overwrite:
                raise UserError(f"{out} is there already; name another folder with --out, or --overwrite replaces it")
        yield


@contextmanager
def whole_or_none(folder: Path) -> Iterator[None]:
    """Write a folder anew: if that fails, it holds what it held before.

    Half of what was asked for is none of it, and the same command should find its folder as it was.
    """
    from sentence_distill.pipeline.files import LOCK_NAME, TEMPORARY

    before = [path for path in folder.iterdir() if path.name != LOCK_NAME] if folder.exists() else []
    aside = folder.with_name(f".{folder.name}.old.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    if before:
        aside.mkdir()
        for path in before:
            path.rename(aside / path.name)
    try:
        yield
    except BaseException:
        if before:
            for path in folder.iterdir():
                if path.name != LOCK_NAME:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in aside.iterdir():
                path.rename(folder / path.name)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# The folders that `sd finetune` writes: what may be there before, and what goes.


def is_finetuned(out: Path) -> bool:
    """Whether a folder holds a student or a teacher that `sd finetune` finished.

    Raises:
        UserError: it holds one, and something else.
    """
    from sentence_distill.student.files import FINETUNED_TEACHER

    if (out / FINETUNED_TEACHER).exists():
        record = _read(out / FINETUNED_TEACHER)
        refuse_other(out, _names(out) - {FINETUNED_TEACHER, *record.get("files", [])}, "sd finetune")
        return bool(record)
    record = _read(out / "distillation.json")
    # A copy in float16 is of sd export.
    if not (out / "task.json").exists() or record.get("weights") != "float32":
        return False
    _refuse_beside_student(out, "sd finetune")
    return True


def _refuse_beside_student(out: Path, command: str) -> None:
    """Refuse what neither belongs to a student nor was made of it."""
    from sentence_distill.student.files import (
        CARD,
        DISTILLATION,
        EXPORT_FOLDER,
        FIGURES,
        STUDENT_FILES,
        is_export,
        module_paths,
    )

    modules = {path.relative_to(out).parts[0] for path in module_paths(out).values() if path != out}
    known = {CARD, DISTILLATION, *STUDENT_FILES, *modules, *FIGURES, "glue"}
    known |= {EXPORT_FOLDER} if is_export(out / EXPORT_FOLDER) else set()
    refuse_other(out, _names(out) - known, command)


def _names(out: Path) -> set[str]:
    from sentence_distill.pipeline.files import LOCK_NAME

    return {path.name for path in out.iterdir()} - {LOCK_NAME}


def _read(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; nothing where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
