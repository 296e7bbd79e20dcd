"""The folder that `sd export` writes: checks that need no PyTorch, and its atomic replacement."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.pipeline.files import LOCK_NAME, TEMPORARY, lock_folder, made_folder
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.student.config import ExportConfig
from sentence_distill.student.figures import DISTILLATION, load_distillation
from sentence_distill.student.files import (
    CARD,
    EXPORT_FOLDER,
    EXPORT_RECORD,
    FIGURES,
    is_classifier,
    is_export,
    locate_student,
    student_files,
)
from sentence_distill.student.onnx_student import EXPORT_FILES


def check_export(config: ExportConfig) -> tuple[Path, Path | None]:
    """Check everything about an export that does not need PyTorch, which takes seconds to import.

    Returns the student's folder, and the folder to write, or None if dimensions are only compared.
    """
    folder = locate_student(config.student)
    if is_export(folder):
        raise UserError(f"{config.student} is itself an export; name the folder of the student it was made from")
    if not (folder / DISTILLATION).exists() and (folder / "config.json").exists():
        raise UserError(
            f"{config.student} is a transformer, not a student; distill it (sd embed, sd train-student), or export the "
            "transformer itself with Hugging Face's optimum"
        )
    load_distillation(folder)
    if config.dim and is_classifier(folder):
        # Its head reads the pooled LSTM states and not the vectors, so narrower vectors would change nothing.
        raise UserError(
            f"{config.student} is fine-tuned on a task, which does not use its vectors; reduce the student that it was "
            "fine-tuned from, then fine-tune that (sd finetune), or halve its size with --format folder --float16"
        )
    out = None if len(config.dim) > 1 else config.out or _default_out(config, folder)
    if out is not None and out.exists():
        if not out.is_dir():
            raise UserError(f"--out {out} is a file; name a folder")
        _require_replaceable(out, config)
    if config.shards:
        require_vectors(config.shards)
    if config.sentences:
        sentences_of_file(config.sentences, 1)
    return folder, out


def _default_out(config: ExportConfig, folder: Path) -> Path:
    """Return STUDENT/onnx; for a smaller student STUDENT-64, in the current folder if the student is on the hub."""
    name = config.student
    if config.format == "onnx":
        if folder != Path(name):
            raise UsageError(f"{name} is not a local folder; name a folder for its export: --out FOLDER")
        return folder / EXPORT_FOLDER
    if not Path(name).exists():
        name = name.partition("@")[0].rpartition("/")[2]
    return Path(f"{name.rstrip('/')}-{config.dim[0] if config.dim else 'float16'}")


@contextmanager
def replacing_export(folder: Path, config: ExportConfig) -> Iterator[Path]:
    """Yield a new folder to write to, which replaces `folder` if the block succeeds."""
    place = folder.resolve()
    with made_folder(place), lock_folder(place):
        _require_replaceable(folder, config)
        # Only the holder of the lock writes these, so existing ones are left from an export that was killed.
        new, old = (place.with_name(f".{place.name}.{name}{TEMPORARY}") for name in ("new", "old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            shutil.rmtree(old, ignore_errors=True)
            # There is no portable atomic swap of two folders. Between these two lines the export is missing, but it
            # is never incomplete.
            os.rename(place, old)
            os.rename(new, place)
            shutil.rmtree(old)
        except BaseException:
            if old.exists() and not place.exists():
                os.rename(old, place)
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _require_replaceable(folder: Path, config: ExportConfig) -> None:
    """Refuse a folder with files that an export of this format does not write."""
    names = {path.name for path in folder.iterdir()} - {LOCK_NAME}
    known: set[str] = set()
    if config.format == "onnx":
        known = EXPORT_FILES if EXPORT_RECORD in names else known
    elif DISTILLATION in names:
        record = load_distillation(folder)
        if record.get("weights") == "float16" or ("reduction" in record and not is_classifier(folder)):
            known = {CARD, DISTILLATION, *FIGURES, "glue", *(Path(file).parts[0] for file in student_files(folder))}
            known |= {EXPORT_FOLDER} if is_export(folder / EXPORT_FOLDER) else set()
    if other := names - known:
        raise UserError(f"{folder} holds {min(other)}, which sd export did not write; name another folder with --out")
    if names and config.format == "folder" and not config.overwrite:
        raise UserError(f"{folder} already exists; name another folder with --out, or replace it with --overwrite")
