"""Models that `sd eval` measures: students, teachers and other sentence-transformers models; and students' shards."""

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
    """Function from sentences to float32[n, dim], computed in float32, for a teacher as in stage one."""
    timed: Encode
    """The same function in the fastest dtype and runtime, for timing."""
    timed_as: str
    """Dtype and runtime of `timed`, such as "int8 in ONNX Runtime"."""
    student: Student | None = None
    distillation: dict[str, Any] | None = None
    """Record of a student, distillation.json."""


def short_names(models: Sequence[str]) -> list[str]:
    """Name models by the last part of their paths, if these are distinct."""
    last = [(Path(model).resolve() if is_student(model) else Path(model)).name for model in models]
    return [short if short and last.count(short) == 1 else model for short, model in zip(last, models, strict=True)]


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, with a number appended if it is taken."""
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def find_model(model: str) -> Located:
    """Find the folder of a student or a sentence-transformers model: local, packaged, or on the hub."""
    if is_student(model) or is_unfinished(Path(model)):
        load_distillation(Path(model))
        return Located(Path(model), model)
    if packaged := packaged_student(model):
        return Located(packaged, model)
    try:
        located = locate_teacher(model)
    except UserError as error:
        raise UserError(
            f"{model} is not a model: it is neither the folder of a student (train one: sd train-student --out "
            f"{model}) nor of a sentence-transformers model, and it is neither on the hub nor in its cache"
        ) from error
    if located.folder != Path(model) and is_student(str(located.folder)):
        # Students are looked up on the hub even if they are cached, because a new version may have been pushed.
        return Located(locate_student(model), model)
    return located


def open_model(located: Located, name: str) -> Model:
    """Open a model that `find_model` found, under the name `name`."""
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
        # Only safetensors weights, and no code from the model's folder.
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except LOADING_ERRORS as error:
        raise UserError(f"sentence-transformers can't open a model in {folder} ({first_line(error)})") from error
    precision = pick_precision("auto", _CPU, (*TEACHER, *STUDENT))

    def encode(dtype: torch.dtype, sentences: Sequence[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return model.encode(list(sentences), show_progress_bar=False)  # type: ignore[no-any-return]

    # sentence-transformers adds mean pooling to a plain transformer. Static models have no pooling to mention.
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
    """Describe the dtype and runtime of a PyTorch model."""
    return f"{str(precision).removeprefix('torch.')} in PyTorch"


def open_teacher(distillation: dict[str, Any], given: str | None, name: str) -> Model:
    """Open the teacher of a student (see `find_teacher`), which gives vectors of the last target layer."""
    located = find_teacher(distillation, given)
    precision = pick_precision("auto", _CPU, TEACHER)
    trained, recorded = distillation["corpus"]["fingerprint"], distillation["teacher"]
    # If the teacher's folder has modules after pooling, they are applied only with the folder's own pooling.
    pooling = None if "modules" in trained else recorded["pooling"]
    teacher = Teacher(located, pooling=pooling, layers=recorded["layers"], device=_CPU, dtype=precision)
    now = {"special_tokens": [teacher.prefix, teacher.suffix], **teacher.reading()}
    fields = [field for field in READING if field in trained or field in now]
    fields += ["special_tokens"] if "special_tokens" in trained else []
    if differing := differing_fields(*({field: of.get(field) for field in fields} for of in (trained, now))):
        raise UserError(
            f"{teacher.name} has changed since the student was distilled: {'; '.join(differing)}; name the original "
            "folder with --teacher, or distil again"
        )

    def encode(sentences: Sequence[str]) -> np.ndarray:
        tokens = teacher.tokenize(sentences).cut(teacher.max_tokens)
        return teacher.embed(tokens, trained["token_budget"])[:, -teacher.layer_dim :]

    return Model(name, located.folder, encode, encode, in_torch(precision))


def find_teacher(distillation: dict[str, Any], given: str | None) -> Located:
    """Find the folder of a student's teacher: `given`, or the recorded one on this machine, without asking the hub."""
    recorded = distillation["teacher"]
    located = locate_teacher(given) if given else locate_local(recorded["teacher"])
    if located is None:
        raise UserError(f"{recorded['teacher']} is not on this machine; name its folder with --teacher DIR")
    if located.weights_hashes() != recorded["teacher_weights"]:
        raise UserError(f"the weights of {located.name} are not those of the student's teacher; name it with --teacher")
    return located


def parameters(folder: Path) -> int:
    """Count the weights in the files of a model: a loaded model may have rearranged or dropped some."""
    count = 0
    for file in _weight_files(folder):
        try:
            with safe_open(file, "np") as tensors:
                slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(
                f"{file} holds no weights ({error}); if it is a Git LFS pointer, fetch the file: git lfs pull"
            ) from error
        # Integers are positions or indices, which are not learned.
        count += sum(math.prod(one.get_shape()) for one in slices if one.get_dtype() not in ("I32", "I64"))
    return count


def weights_hashes(folder: Path) -> list[str]:
    """Return the hashes of the weight files that loading a model reads."""
    return [file_hash(file) for file in _weight_files(folder)]


def megabytes(folder: Path) -> float:
    """Return the size of the files that loading a model reads, without checkpoints and logs."""
    return sum(file.stat().st_size for file in _files(folder)) / 1e6


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in _files(folder) if file.suffix == ".safetensors")


def _files(folder: Path) -> list[Path]:
    file = folder / "modules.json"
    try:
        modules = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        # A module without weights may have no folder, and a module may be in the model's own folder.
        paths = {(folder / module["path"]).resolve() for module in modules} - {folder.resolve()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}); save or fetch the model again") from error
    files = [file for path in paths if path.is_dir() for file in path.iterdir()]
    files += [file for file in folder.iterdir() if file.suffix in _LOADED and file.name not in MADE_BY]
    return [file for file in files if file.is_file()]


# The shards of a student, and other shards of its teacher.

# Fields that must be equal. Layers are compared when those that a student approximates are read.
_SAME_TEACHER = ("teacher_weights", "tokenizer", "pooling", "normalize")
SENTENCES = 4096


def own_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """Find the shards that the student in `folder` was trained on.

    Their fingerprint is compared: if the student was copied, the recorded path may lead to other shards.
    """
    shards = find_shards(distillation, folder)
    if not shards.is_dir():
        raise UserError(f"the student's shards are no longer in {shards}; name their folder with --shards")
    trained, found = distillation["corpus"]["fingerprint"], require_manifest(shards).fingerprint
    if differing := differing_fields(trained, found):
        raise UserError(
            f"the student was not trained on {shards}: {'; '.join(differing)}; name its shards with --shards"
        )
    return shards


def shards_of(models: Iterable[Path]) -> Path:
    """Find the shards that the first student among the folders of models was trained on."""
    for folder in models:
        if is_student(str(folder)):
            return own_shards(load_distillation(folder), folder)
    raise UserError("no student to take the shards of; name some with --shards, or for --speed use --sentences")


def is_own(fingerprint: Fingerprint, distillation: dict[str, Any]) -> bool:
    """Return True if shards are those that a student was trained on."""
    return not differing_fields(distillation["corpus"]["fingerprint"], fingerprint)


def require_teacher(shards: Path, fingerprint: Fingerprint, distillation: dict[str, Any]) -> None:
    """Refuse shards, whose run has `fingerprint`, of another teacher than the student's."""
    trained = distillation["corpus"]["fingerprint"]
    fields = (*_SAME_TEACHER, *READING)
    old, new = ({field: of.get(field) for field in fields} for of in (trained, as_dict(fingerprint)))
    if differing := differing_fields(old, new):
        raise UserError(f"{shards} holds vectors of another teacher: {'; '.join(differing)}; name others with --shards")


def sentences_of_shards(shards: Path, count: int = SENTENCES) -> list[str]:
    """Read at most `count` sentences, spread evenly over the shards."""
    manifest = require_manifest(shards)
    if not manifest.fingerprint.keep_text:
        raise UserError(f"{shards} has no text (--no-text); sd eval --speed --sentences FILE takes a file of sentences")
    own, entries = ShardFolder(shards, manifest), manifest.shards
    ends = np.cumsum([entry.rows for entry in entries])
    rows = np.unique(np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(np.int64))
    sentences: list[str] = []
    for number, (entry, end) in enumerate(zip(entries, ends, strict=True)):
        inside = rows[(rows >= end - entry.rows) & (rows < end)] - (end - entry.rows)
        sentences += own.texts(number, inside)
    return sentences
