"""Models that can be measured: students, teachers, sentence-transformers."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    """An opened model.

    Args:
        name: in tables and files of figures.
        encode: sentences to float32[n, dim] vectors, in float32; a teacher's as in stage one.
        timed: the same as it is run for speed.
        timed_as: what that computes, as "int8 in ONNX Runtime".
        parameters: number of its weights.
        megabytes: on disk, of what loading it needs.
        weights: hashes of its files of weights.
        folder: of the student, where it is one.
        student: the student.
        distillation: how that was made.
    """

    name: str
    encode: Encode
    timed: Encode
    timed_as: str
    parameters: int
    megabytes: float
    weights: list[str]
    folder: Path | None = None
    student: Student | None = None
    distillation: dict[str, Any] | None = None


def short_names(models: Sequence[str]) -> list[str]:
    """Names of models for tables: the last part of each, where that tells them apart."""
    last = [Path(model).name for model in models]
    return [short if short and last.count(short) == 1 else model for short, model in zip(last, models, strict=True)]


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, with a number behind it where that is taken: a user's model may be called "teacher" too."""
    numbered = (f"{name} {number}" for number in count(2))
    return name if name not in taken else next(free for free in numbered if free not in taken)


def find_model(model: str) -> Located:
    """The folder of a student, a packaged one too, of a sentence-transformers model, or of either on the hub.

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
    if is_student(str(located.folder)):
        return open_student(located.folder, name)
    model = load_sentence_transformer(located)
    plain = not (located.folder / "modules.json").exists()
    precision = pick_precision("auto", _CPU, (*TEACHER, *STUDENT))
    return Model(
        # sentence-transformers puts mean pooling behind a plain transformer.
        name=f"{name} (mean pooling)" if plain else name,
        encode=partial(_encode, model, torch.float32),
        timed=partial(_encode, model, precision),
        timed_as=_in_torch(precision),
        parameters=parameters(located.folder),
        megabytes=megabytes(located.folder),
        weights=weights_hashes(located.folder),
    )


def open_student(folder: Path, name: str) -> Model:
    """Open a student.

    Raises:
        UserError: the folder holds no student.
    """
    student = load_student(folder, backend="auto")
    return Model(
        name=name,
        encode=partial(student.encode, precision=torch.float32),
        timed=student.encode,
        timed_as="int8 in ONNX Runtime" if student.backend == "onnx" else _in_torch(torch.float32),
        parameters=parameters(folder),
        megabytes=megabytes(folder),
        weights=weights_hashes(folder),
        folder=folder,
        student=student,
        distillation=load_distillation(folder),
    )


def open_teacher(distillation: dict[str, Any], given: str | None, name: str) -> Model:
    """The teacher of a student, giving vectors of its last target layer.

    Args:
        distillation: of the student.
        given: see `find_teacher`.
        name: of the model that is returned.

    Raises:
        UserError: as `find_teacher`, or it can't be loaded.
    """
    located = find_teacher(distillation, given)
    precision = pick_precision("auto", _CPU, TEACHER)
    teacher = Teacher.load(
        located,
        pooling=teacher_pooling(distillation),
        layers=distillation["teacher"]["layers"],
        device=_CPU,
        dtype=precision,
    )
    require_same_reading(teacher, distillation)
    encode = teacher_encode(teacher, distillation["corpus"]["fingerprint"]["token_budget"])
    return Model(
        name=name,
        encode=encode,
        timed=encode,
        timed_as=_in_torch(precision),
        parameters=parameters(located.folder),
        megabytes=megabytes(located.folder),
        weights=weights_hashes(located.folder),
    )


def _in_torch(precision: torch.dtype) -> str:
    return f"{str(precision).removeprefix('torch.')} in PyTorch"


def find_teacher(distillation: dict[str, Any], given: str | None) -> Located:
    """The folder of a student's teacher.

    Args:
        distillation: of the student.
        given: where the teacher is; None looks for the recorded one on this machine, and asks no hub.

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


def teacher_pooling(distillation: dict[str, Any]) -> str | None:
    """What `Teacher.load` has to be given as pooling to make a student's targets again.

    None, its folder's own, if modules follow the pooling there that no other pooling would apply.
    """
    return None if "modules" in distillation["corpus"]["fingerprint"] else str(distillation["teacher"]["pooling"])


def require_same_reading(teacher: Teacher, distillation: dict[str, Any]) -> None:
    """Refuse a teacher whose folder asks for another prompt or other modules than when the student was distilled.

    Raises:
        UserError: naming what differs.
    """
    trained = distillation["corpus"]["fingerprint"]
    now = {"special_tokens": [teacher.prefix, teacher.suffix], **teacher.reading()}
    fields = [field for field in READING if field in trained or field in now]
    fields += ["special_tokens"] if "special_tokens" in trained else []
    if differing := differing_fields(*({field: of.get(field) for field in fields} for of in (trained, now))):
        raise UserError(
            f"{teacher.name} is read otherwise than when the student was distilled: {'; '.join(differing)}; name the "
            "folder as it was with --teacher, or distil again"
        )


def teacher_encode(teacher: Teacher, token_budget: int) -> Encode:
    """A teacher as a function from sentences to the vectors of its last target layer."""

    def encode(sentences: Sequence[str]) -> np.ndarray:
        tokens = teacher.tokenize(sentences).take(np.arange(len(sentences)), most=teacher.max_tokens)
        return teacher.embed(tokens, token_budget)[:, -teacher.layer_dim :]

    return encode


def load_sentence_transformer(located: Located) -> Any:
    """`SentenceTransformer` of a folder on the CPU, from safetensors and without code of others.

    Raises:
        UserError: it holds no model.
    """
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return SentenceTransformer(
            str(located.folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{located.folder} holds no model that sentence-transformers can open ({first_line(error)})"
        ) from error


def _encode(model: Any, precision: torch.dtype, sentences: Sequence[str]) -> np.ndarray:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        return model.encode(list(sentences), show_progress_bar=False)  # type: ignore[no-any-return]


def parameters(folder: Path) -> int:
    """Number of weights in a model's folder; a loaded model may hold them rearranged, or in part.

    Raises:
        UserError: a file of the folder is damaged.
    """
    return sum(_weights(file) for file in _files(folder) if file.suffix == ".safetensors")


def _weights(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as tensors:
            slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
            # Long integers are positions or places in tables; they were not learned.
            return sum(math.prod(part.get_shape()) for part in slices if part.get_dtype() not in ("I32", "I64"))
    except SafetensorError as error:
        raise UserError(
            f"{file} holds no weights ({error}); if it is a pointer of Git LFS, fetch the file: git lfs pull"
        ) from error


def weights_hashes(folder: Path) -> list[str]:
    """Hashes of the files of weights that loading a model's folder reads."""
    return [file_hash(file) for file in sorted(_files(folder)) if file.suffix == ".safetensors"]


def megabytes(folder: Path) -> float:
    """Size of what loading a model's folder needs: neither checkpoints nor logs are.

    Raises:
        UserError: the folder's modules.json is damaged.
    """
    return sum(file.stat().st_size for file in _files(folder)) / 1e6


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
