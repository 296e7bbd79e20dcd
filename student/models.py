"""Models to measure: students, teachers, and anything that sentence-transformers opens."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.hardware import STUDENT, TEACHER, pick_precision
from sentence_distill.pipeline.load import Located, locate_local, locate_teacher
from sentence_distill.pipeline.records import differing_fields
from sentence_distill.pipeline.teacher import READING, Teacher
from sentence_distill.student.files import FIGURES, is_student, is_unfinished, load_distillation
from sentence_distill.student.hub import locate_student, packaged_student
from sentence_distill.student.model import Student, load_student

Encode = Callable[[Sequence[str]], np.ndarray]
_CPU = torch.device("cpu")
_LOADED = (".json", ".safetensors", ".txt", ".model", ".onnx")


@dataclass(frozen=True)
class Model:
    """An opened model."""

    name: str
    folder: Path
    encode: Encode
    """Sentences to float32[n, dim] vectors, in float32; a teacher's as in stage one."""
    timed: Encode
    """The same as it is run for speed."""
    timed_as: str
    """What `timed` computes in, as "int8 in ONNX Runtime"."""
    student: Student | None = None
    distillation: dict[str, Any] | None = None
    """How the student was made."""


def short_names(models: Sequence[str]) -> list[str]:
    """Name models by the last part of each, if that tells them apart."""
    last = [(Path(model).resolve() if is_student(model) else Path(model)).name for model in models]
    return [short if short and last.count(short) == 1 else model for short, model in zip(last, models, strict=True)]


def find_model(model: str) -> Located:
    """Find the folder of a student, a packaged one too, of a sentence-transformers model, or of either on the hub.

    The hub's cache is asked first.

    Raises:
        UserError: there is none.
    """
    if is_student(model) or is_unfinished(Path(model)):
        load_distillation(Path(model))
        return Located(Path(model), model)
    if packaged := packaged_student(model):
        return Located(packaged, model)
    try:
        located = locate_teacher(model)
    except UserError as error:
        raise UserError(
            f"{model} is no model: neither a student's folder (train one: sd train-student --out {model}) nor a "
            "sentence-transformers one, and the hub and its cache gave none of that name"
        ) from error
    if located.folder != Path(model) and is_student(str(located.folder)):
        # The cache is not taken at its word here: an owner pushes a better one under the same name.
        return Located(locate_student(model), model)
    return located


def open_model(located: Located, name: str) -> Model:
    """Open what `find_model` found, as `name`.

    Raises:
        UserError: the folder holds nothing that can be opened.
    """
    folder = located.folder
    if is_student(str(folder)):
        student = load_student(folder, backend="auto")
        return Model(
            name=name,
            folder=folder,
            encode=partial(student.encode, precision=torch.float32),
            timed=student.encode,
            timed_as="int8 in ONNX Runtime" if student.backend == "onnx" else in_torch(torch.float32),
            student=student,
            distillation=load_distillation(folder),
        )
    model = _load_sentence_transformer(folder)
    precision = pick_precision("auto", _CPU, (*TEACHER, *STUDENT))

    def encode(dtype: torch.dtype, sentences: Sequence[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model.encode(list(sentences), show_progress_bar=False)  # type: ignore[no-any-return]

    return Model(
        # sentence-transformers puts mean pooling after a plain transformer.
        name=name if _has_modules(folder) else f"{name} (mean pooling)",
        folder=folder,
        encode=partial(encode, torch.float32),
        timed=partial(encode, precision),
        timed_as=in_torch(precision),
    )


def _has_modules(folder: Path) -> bool:
    """Tell whether a folder names its modules, or is a static model, which has no transformer to pool."""
    config = folder / "config.json"
    return (folder / "modules.json").exists() or (config.exists() and "model2vec" in config.read_text("utf-8"))


def in_torch(precision: torch.dtype) -> str:
    """Name what a model computes in."""
    return f"{str(precision).removeprefix('torch.')} in PyTorch"


def open_teacher(distillation: dict[str, Any], given: str | None, name: str) -> Model:
    """Open the teacher of a student, giving vectors of its last target layer.

    Raises:
        UserError: as `find_teacher`, or it can't be loaded, or would not give the vectors that the student learned.
    """
    located = find_teacher(distillation, given)
    precision = pick_precision("auto", _CPU, TEACHER)
    trained, recorded = distillation["corpus"]["fingerprint"], distillation["teacher"]
    # If modules follow the pooling in the teacher's folder, only the folder's own pooling applies them.
    pooling = None if "modules" in trained else recorded["pooling"]
    teacher = Teacher(located, pooling=pooling, layers=recorded["layers"], device=_CPU, dtype=precision)
    now = {"special_tokens": [teacher.prefix, teacher.suffix], **teacher.reading()}
    fields = [field for field in READING if field in trained or field in now]
    fields += ["special_tokens"] if "special_tokens" in trained else []
    if differing := differing_fields(*({field: of.get(field) for field in fields} for of in (trained, now))):
        raise UserError(
            f"{teacher.name} is read otherwise than when the student was distilled: {'; '.join(differing)}; name the "
            "folder as it was with --teacher, or distil again"
        )

    def encode(sentences: Sequence[str]) -> np.ndarray:
        tokens = teacher.tokenize(sentences).take(np.arange(len(sentences)), most=teacher.max_tokens)
        return teacher.embed(tokens, trained["token_budget"])[:, -teacher.layer_dim :]

    return Model(name, located.folder, encode, encode, in_torch(precision))


def find_teacher(distillation: dict[str, Any], given: str | None) -> Located:
    """Find the folder of a student's teacher: `given`, or the recorded one on this machine; no hub is asked for that.

    Raises:
        UserError: it is not here, or has other weights than the student's teacher.
    """
    recorded = distillation["teacher"]
    located = locate_teacher(given) if given else locate_local(recorded["teacher"])
    if located is None:
        raise UserError(f"{recorded['teacher']} is not on this machine; name its folder with --teacher DIR")
    if located.weights_hashes() != recorded["teacher_weights"]:
        raise UserError(f"{located.name} has other weights than the student's teacher; name that one with --teacher")
    return located


def _load_sentence_transformer(folder: Path) -> Any:
    """Load a folder on the CPU, from safetensors and without foreign code."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (
        *(OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError),
        SafetensorError,
    ) as error:
        raise UserError(f"{folder} holds no model that sentence-transformers can open ({first_line(error)})") from error


def parameters(folder: Path) -> int:
    """Count the weights in a model's folder; a loaded model may hold them rearranged, or in part.

    Raises:
        UserError: a file of the folder is damaged.
    """
    count = 0
    for file in _weight_files(folder):
        try:
            with safe_open(file, "np") as tensors:
                slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{file} holds no weights ({error}); if it is a pointer of Git LFS, fetch the file: git lfs pull"
            ) from error
        # Long integers are positions or places in tables; they were not learned.
        count += sum(math.prod(one.get_shape()) for one in slices if one.get_dtype() not in ("I32", "I64"))
    return count


def weights_hashes(folder: Path) -> list[str]:
    """Return the hashes of the weight files that loading a model reads."""
    return [file_hash(file) for file in _weight_files(folder)]


def megabytes(folder: Path) -> float:
    """Add up the files that loading a model reads: neither checkpoints nor logs.

    Raises:
        UserError: the folder's modules.json is damaged.
    """
    return sum(file.stat().st_size for file in _files(folder)) / 1e6


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in _files(folder) if file.suffix == ".safetensors")


def _files(folder: Path) -> list[Path]:
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        # A module without weights may have no folder, and one may lie in the model's own.
        paths = {(folder / module["path"]).resolve() for module in modules} - {folder.resolve()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); save or fetch the model again") from error
    files = [file for path in paths if path.is_dir() for file in path.iterdir()]
    files += [file for file in folder.iterdir() if file.suffix in _LOADED and file.name not in FIGURES]
    return [file for file in files if file.is_file()]
