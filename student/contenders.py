"""Models to time."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.hardware import STUDENT, TEACHER, fast_in_bf16
from sentence_distill.pipeline.load import Located, locate_local
from sentence_distill.pipeline.teacher_folder import Normalize, TeacherFolder, read_folder
from sentence_distill.student.files import is_student, load_distillation
from sentence_distill.student.models import find_teacher, free_name, short_names, teacher_pooling

_MINILM = "all-MiniLM-L6-v2"
_STATIC_HINT = "pip install 'model2vec[distill]'"


@dataclass(frozen=True)
class Contender:
    """One model, run in one way.

    Args:
        model: whose vectors these are.
        runner: what computes them: "sd", "SentenceTransformer", "ONNX Runtime", "model2vec" or "scikit-learn".
        precision: "fp32", "bf16" or "int8".
        folder: of the model; of one that has to be made first, where that will be.
        teacher: pooling (None: all modules of its folder), layers and token budget, if it is a student's teacher; of
            several layers the last counts.
    """

    model: str
    runner: str
    precision: str
    folder: Path
    teacher: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """In tables and files."""
        return f"{self.model} ({self.runner}, {self.precision})"

    def spec(self) -> dict[str, Any]:
        """As JSON values, for the process that runs it."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass
class Field:
    """The contenders, what has to be made before they start, and who is missing.

    Args:
        contenders: in the order of tables, no two of one name.
        teacher: folder of the teacher, from which static and quantised models are made.
        skipped: who does not take part, with the reason.
    """

    contenders: list[Contender]
    teacher: Path | None
    skipped: dict[str, str]


def gather(models: Sequence[tuple[str, Located]], teacher: str | None, workdir: Path) -> Field:
    """Everybody who can run here.

    Args:
        models: as the user named them, and what `find_model` found.
        teacher: see `open_teacher`.
        workdir: where models that have to be made are put.
    """
    field = Field([], None, {})
    students = [located.folder for _, located in models if is_student(str(located.folder))]
    names = short_names([name for name, _ in models])
    if len(students) == 1:
        place = [located.folder for _, located in models].index(students[0])
        names[place] = free_name("student", names[:place] + names[place + 1 :])
    for name, (_, located) in zip(names, models, strict=True):
        if located.folder in students:
            # As sd encode runs it, then by PyTorch.
            field.contenders.append(Contender(name, "sd", "int8", located.folder))
            _add(field, name, located.folder, "sd", "SentenceTransformer")
        elif _is_static(located.folder):
            _add_if_installed(field, Contender(name, "model2vec", "fp32", located.folder), ("model2vec",), _STATIC_HINT)
        else:
            _add(field, name, located.folder, "SentenceTransformer")
    own = _teacher(field, free_name("teacher", names), students[0], teacher, workdir) if students else None
    _minilm(field, free_name(_MINILM, names))
    if own and not any(_is_static(located.folder) for _, located in models):
        name = free_name("model2vec of the teacher", names)
        static = Contender(name, "model2vec", "fp32", workdir / "static")
        _add_if_installed(field, static, ("model2vec", "skeletoken"), _STATIC_HINT)
    field.contenders.append(Contender(free_name("TF-IDF", names), "scikit-learn", "fp32", workdir / "tf-idf"))
    return field


def _add(field: Field, model: str, folder: Path, *runners: str, teacher: dict[str, Any] | None = None) -> None:
    can_bf16 = fast_in_bf16(torch.device("cpu"), (*TEACHER, *STUDENT))
    for runner in runners:
        for precision in ("fp32", "bf16"):
            contender = Contender(model, runner, precision, folder, teacher)
            if precision == "bf16" and not can_bf16:
                field.skipped[contender.name] = "this processor has no instructions for bfloat16"
            else:
                field.contenders.append(contender)


def _teacher(field: Field, name: str, student: Path, given: str | None, workdir: Path) -> Path | None:
    """Let a student's teacher take part as `name`; its folder."""
    distillation = load_distillation(student)
    recorded = distillation["teacher"]
    try:
        folder = find_teacher(distillation, given).folder
    except UserError as error:
        field.skipped[name] = str(error)
        return None
    recipe = {
        "pooling": teacher_pooling(distillation),
        "layers": recorded["layers"],
        "token_budget": distillation["corpus"]["fingerprint"]["token_budget"],
    }
    field.teacher = folder
    _add(field, name, folder, "sd", teacher=recipe)
    onnx = Contender(name, "ONNX Runtime", "int8", workdir / "onnx", recipe)
    try:
        asked = read_folder(folder)
    except UserError as error:
        field.skipped[f"{name} (SentenceTransformer)"] = field.skipped[onnx.name] = str(error)
        return folder
    if recipe["pooling"] is None:
        _add(field, name, folder, "SentenceTransformer", teacher=recipe)
        field.skipped[onnx.name] = "it does not apply the modules after the teacher's pooling"
        return folder
    if other := _other_states(asked, recipe):
        field.skipped[f"{name} (SentenceTransformer)"] = field.skipped[onnx.name] = other
        return folder
    if other := _other_modules(asked, recipe["pooling"]):
        field.skipped[f"{name} (SentenceTransformer)"] = other
    else:
        _add(field, name, folder, "SentenceTransformer", teacher=recipe)
    if asked.prompt or asked.lower_case:
        field.skipped[onnx.name] = "it does not put the teacher's prompt before text, or lowercase it"
    else:
        _add_if_installed(field, onnx, ("onnx", "onnxruntime"), "pip install onnx onnxruntime")
    return folder


def _other_states(asked: TeacherFolder, recipe: dict[str, Any]) -> str:
    """Why a library that pools the last layer does not give the vectors of the student's teacher; "" if it does."""
    from transformers import AutoConfig

    pooling, layer = recipe["pooling"], recipe["layers"][-1]
    if pooling not in ("cls", "mean", "max"):
        return f"it does not compute the student's target, pooling {pooling}"
    try:
        last = AutoConfig.from_pretrained(asked.transformer, local_files_only=True).num_hidden_layers
    except (OSError, ValueError, AttributeError):
        return "its config.json can't be read"
    return "" if layer == last else f"it computes layer {last}; the student's target is layer {layer}"


def _other_modules(asked: TeacherFolder, pooling: str) -> str:
    """Why a folder's modules.json makes other vectors of the last layer than `pooling` does; "" if it does not."""
    if not asked.pools:
        return ""
    if asked.refused or asked.truncate_dim or asked.after not in ((), (Normalize(),)):
        return f"its modules.json does something else than the student's target, pooling {pooling}"
    own = "+".join(asked.poolings)
    return "" if own == pooling else f"its modules.json pools by {own}; the student's target is pooling {pooling}"


def _add_if_installed(field: Field, contender: Contender, packages: Sequence[str], hint: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        field.skipped[contender.name] = f"{' and '.join(missing)} not installed; {hint}"
    else:
        field.contenders.append(contender)


def _minilm(field: Field, name: str) -> None:
    located = locate_local("minilm")
    there = [contender.folder for contender in field.contenders if contender.runner == "SentenceTransformer"]
    if located is None:
        field.skipped[f"{name} (SentenceTransformer)"] = "not on this machine"
    elif any(located.folder.resolve() == folder.resolve() for folder in there):
        field.skipped[f"{name} (SentenceTransformer)"] = "it takes part already, under another name"
    else:
        _add(field, name, located.folder, "SentenceTransformer")


def _is_static(folder: Path) -> bool:
    config = folder / "config.json"
    if not config.exists():
        return False
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type") == "model2vec"
    except (ValueError, AttributeError):
        return False
