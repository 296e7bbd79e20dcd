"""The folder that `sd export` writes: checks that need no PyTorch, and how it takes the place of an older one."""

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
    """Check all of an export that takes no PyTorch, which takes seconds to import.

    Return the student's folder, and the folder to write; None if dimensions are only compared.
    """
    folder = locate_student(config.student)
    if is_export(folder):
        raise UserError(f"{config.student} is an export already; name the folder of the student that it was made of")
    if not (folder / DISTILLATION).exists() and (folder / "config.json").exists():
        raise UserError(
            f"{config.student} is a transformer, and sd export takes students; distill it (sd embed, sd "
            "train-student), or export the transformer itself with Hugging Face's optimum"
        )
    load_distillation(folder)
    if config.dim and is_classifier(folder):
        # Its head reads other states than these vectors, and its record's scores are of that head.
        raise UserError(
            f"{config.student} is fine-tuned on a task, for which its vectors are not used; reduce the student that "
            "it was made of, then fine-tune that (sd finetune), or halve its bytes: --format folder --float16"
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
    """Return STUDENT/onnx; or STUDENT-64 next to a student's folder, and for one on the hub in the current folder."""
    name = config.student
    if config.format == "onnx":
        if folder != Path(name):
            raise UsageError(f"{name} is no folder of yours; name one for its export: --out FOLDER")
        return folder / EXPORT_FOLDER
    if not Path(name).exists():
        name = name.partition("@")[0].rpartition("/")[2]
    return Path(f"{name.rstrip('/')}-{config.dim[0] if config.dim else 'float16'}")


@contextmanager
def replacing_export(folder: Path, config: ExportConfig) -> Iterator[Path]:
    """Yield a new folder to write into, which takes the place of `folder` when the block ends well."""
    place = folder.resolve()
    with made_folder(place), lock_folder(place):
        _require_replaceable(folder, config)
        # Only the holder of the lock writes these, so whatever is there is of an export that was killed.
        new, old = (place.with_name(f".{place.name}.{name}{TEMPORARY}") for name in ("new", "old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            shutil.rmtree(old, ignore_errors=True)
            # Two names can't be swapped in one step: between these two lines there is no export, never half of one.
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
    """Refuse a folder that holds something that no such export wrote."""
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
        raise UserError(f"{folder} is there already; name another folder with --out, or --overwrite replaces it")
