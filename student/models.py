"""Models to measure: students, teachers, anything that sentence-transformers opens; and a student's shards."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Sequence
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
from sentence_distill.pipeline.load import LOADING_ERRORS, Located, locate_local, locate_teacher
from sentence_distill.pipeline.manifest import ShardFolder, require_manifest
from sentence_distill.pipeline.records import Fingerprint, as_dict, differing_fields
from sentence_distill.pipeline.teacher import READING, Teacher
from sentence_distill.student.figures import MADE_BY, is_unfinished, load_distillation
from sentence_distill.student.files import find_shards, is_student, locate_student, packaged_student
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


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or with a number if a user's model is called that, too."""
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def find_model(model: str) -> Located:
    """Find the folder of a student, a packaged one too, of a sentence-transformers model, or of either on the hub."""
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
    """Open what `find_model` found, as `name`."""
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
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        # From safetensors and without foreign code.
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except LOADING_ERRORS as error:
        raise UserError(f"{folder} holds no model that sentence-transformers can open ({first_line(error)})") from error
    precision = pick_precision("auto", _CPU, (*TEACHER, *STUDENT))

    def encode(dtype: torch.dtype, sentences: Sequence[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model.encode(list(sentences), show_progress_bar=False)  # type: ignore[no-any-return]

    # sentence-transformers puts mean pooling after a plain transformer; a static model has none to pool.
    config = folder / "config.json"
    plain = not (folder / "modules.json").exists()
    plain = plain and not (config.exists() and "model2vec" in config.read_text("utf-8"))
    return Model(
        name=f"{name} (mean pooling)" if plain else name,
        folder=folder,
        encode=partial(encode, torch.float32),
        timed=partial(encode, precision),
        timed_as=in_torch(precision),
    )


def in_torch(precision: torch.dtype) -> str:
    """Name what a model computes in."""
    return f"{str(precision).removeprefix('torch.')} in PyTorch"


def open_teacher(distillation: dict[str, Any], given: str | None, name: str) -> Model:
    """Open the teacher of a student, giving vectors of its last target layer, see `find_teacher`."""
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
        tokens = teacher.tokenize(sentences).cut(teacher.max_tokens)
        return teacher.embed(tokens, trained["token_budget"])[:, -teacher.layer_dim :]

    return Model(name, located.folder, encode, encode, in_torch(precision))


def find_teacher(distillation: dict[str, Any], given: str | None) -> Located:
    """Find the folder of a student's teacher: `given`, or the recorded one on this machine, without asking a hub."""
    recorded = distillation["teacher"]
    located = locate_teacher(given) if given else locate_local(recorded["teacher"])
    if located is None:
        raise UserError(f"{recorded['teacher']} is not on this machine; name its folder with --teacher DIR")
    if located.weights_hashes() != recorded["teacher_weights"]:
        raise UserError(f"{located.name} has other weights than the student's teacher; name that one with --teacher")
    return located


def parameters(folder: Path) -> int:
    """Count the weights in a model's folder; a loaded model may hold them rearranged, or in part."""
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
    """Add up the files that loading a model reads: neither checkpoints nor logs."""
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
    files += [file for file in folder.iterdir() if file.suffix in _LOADED and file.name not in MADE_BY]
    return [file for file in files if file.is_file()]


# The shards of a student, and those of its teacher.

# Layers are not among them: reading those that a student approximates says which are missing.
_SAME_TEACHER = ("teacher_weights", "tokenizer", "pooling", "normalize")
SENTENCES = 4096


def own_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """Find the shards that the student in `folder` was trained on.

    If it comes from another folder or machine, the recorded name may stand for anything here.
    """
    shards = find_shards(distillation, folder)
    if not shards.is_dir():
        raise UserError(f"no folder {shards}, where the student's shards were; name them with --shards")
    trained, found = distillation["corpus"]["fingerprint"], require_manifest(shards).fingerprint
    if differing := differing_fields(trained, found):
        raise UserError(
            f"{shards} is not what the student was trained on: {'; '.join(differing)}; name the folder with --shards"
        )
    return shards


def shards_of(models: Iterable[Path]) -> Path:
    """Find the shards that the first student among the folders of models was trained on."""
    for folder in models:
        if is_student(str(folder)):
            return own_shards(load_distillation(folder), folder)
    raise UserError("no student names its shards; name some with --shards, or for --speed sentences with --sentences")


def is_own(fingerprint: Fingerprint, distillation: dict[str, Any]) -> bool:
    """Tell whether shards are those that a student was trained on."""
    return not differing_fields(distillation["corpus"]["fingerprint"], fingerprint)


def require_teacher(shards: Path, fingerprint: Fingerprint, distillation: dict[str, Any]) -> None:
    """Refuse shards, made by the run of `fingerprint`, of another teacher than a student's."""
    trained = distillation["corpus"]["fingerprint"]
    fields = (*_SAME_TEACHER, *READING)
    old, new = ({field: of.get(field) for field in fields} for of in (trained, as_dict(fingerprint)))
    if differing := differing_fields(old, new):
        raise UserError(f"{shards} holds vectors of another teacher: {'; '.join(differing)}; name others with --shards")


def sentences_of_shards(shards: Path, count: int = SENTENCES) -> list[str]:
    """Read at most `count` sentences, spread evenly over the shards."""
    manifest = require_manifest(shards)
    if not manifest.fingerprint.keep_text:
        raise UserError(
            f"{shards} keeps no text (--no-text); sd eval --speed --sentences FILE takes a file of sentences"
        )
    own, entries = ShardFolder(shards, manifest), manifest.shards
    ends = np.cumsum([entry.rows for entry in entries])
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(np.int64))
    sentences: list[str] = []
    for number, (entry, end) in enumerate(zip(entries, ends, strict=True)):
        inside = rows[(rows >= end - entry.rows) & (rows < end)] - (end - entry.rows)
        sentences += own.texts(number, inside)
    return sentences
