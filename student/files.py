"""Files of a student's folder: its modules, its weights as arrays, its shards. Nothing here imports PyTorch."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.figures import (
    CHECKPOINTS,
    DISTILLATION,
    is_unfinished,
    load_distillation,
    read_distillation,
)

__all__ = [
    "CARD",
    "CHECKPOINTS",
    "DISTILLATION",
    "FIGURES",
    "HEAD",
    "MAX_TOKENS",
    "STUDENT_FILES",
    "TASK",
    "StudentFiles",
    "find_shards",
    "is_student",
    "is_unfinished",
    "load_distillation",
    "module_paths",
    "module_weights",
    "moved_record",
    "read_distillation",
    "shards_place",
]

CARD = "README.md"
TASK = "task.json"
FINETUNED_TEACHER = "finetuning.json"
"""Record in the folder of a teacher that `sd finetune` wrote."""
HEAD = "head.safetensors"
FIGURES = ("eval.json", "glue.json", "speed.json")
"""What sd eval measured of a student, in its folder."""
STUDENT_FILES = (
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "wordembedding_config.json",
    HEAD,
    TASK,
)
"""What loading reads of a student's own folder, beside those of its modules, where it is there."""
MAX_TOKENS = 512
"""Tokens of a sentence that a student reads; the rest is cut, as sentence-transformers does."""
_MODULES = ("WordEmbeddings", "LSTM", "Dense")


@dataclass(frozen=True)
class StudentFiles:
    """A student as it is read from its folder.

    Args:
        config: its shape; of its projections only the last belongs to the folder.
        weights: float32 arrays by their names in `StudentEncoder.state_dict`.
        tokenizer: of its vocabulary.
    """

    config: StudentConfig
    weights: dict[str, np.ndarray]
    tokenizer: TextTokenizer

    @classmethod
    def read(cls, folder: Path) -> "StudentFiles":
        """Read a folder.

        Raises:
            UserError: it holds no student.
        """
        try:
            shape = load_distillation(folder)["student"]
            config = StudentConfig(**{**shape, "target_dims": (shape["target_dims"][-1],)})
            paths = module_paths(folder)
            words, lstm, dense = (load_file(paths[kind] / "model.safetensors") for kind in _MODULES)
            weights = {
                "embedding.weight": words["emb_layer.weight"],
                **{f"lstm.{name.removeprefix('encoder.')}": value for name, value in lstm.items()},
                **{f"projections.0.{name.removeprefix('linear.')}": value for name, value in dense.items()},
            }
            if {name: value.shape for name, value in weights.items()} != _shapes(config):
                raise ValueError(f"its weights have another shape than {DISTILLATION} says")
            tokenizer = TextTokenizer((paths["WordEmbeddings"] / "tokenizer.json").read_text(encoding="utf-8"))
            return cls(config, {name: value.astype(np.float32) for name, value in weights.items()}, tokenizer)
        except UserError:
            raise
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise UserError(
                f"{folder} holds no student that can be read ({error}); train one: sd train-student"
            ) from error


def _shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a folder, by its name in `StudentEncoder.state_dict`."""
    dim, gates = config.target_dims[-1], 4 * config.hidden
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocabulary, config.embedding_dim)}
    for layer in range(config.layers):
        width = 2 * config.hidden if layer else config.embedding_dim
        for end in (f"_l{layer}", f"_l{layer}_reverse"):
            shapes |= {f"lstm.weight_ih{end}": (gates, width), f"lstm.weight_hh{end}": (gates, config.hidden)}
            shapes |= {f"lstm.bias_ih{end}": (gates,), f"lstm.bias_hh{end}": (gates,)}
    return shapes | {"projections.0.weight": (dim, config.pooled_dim), "projections.0.bias": (dim,)}


def is_student(model: str) -> bool:
    """Tell whether `model` is a folder that `sd train-student` made."""
    return (Path(model) / DISTILLATION).exists()


def shards_place(shards: Path, folder: Path) -> str:
    """Where shards lie, for a student's record: relative to the student's folder, so that it holds wherever `sd` runs.

    The record goes to hubs: of the user's machine it says no more than the way from one folder to the other.
    """
    place = os.path.relpath(shards.resolve(), folder.resolve())
    return place if place.startswith("..") else f"./{place}"


def find_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """The place of the shards that a student was trained on; they need not be there any more.

    Args:
        distillation: of the student.
        folder: of the student. Earlier records are relative to the working directory of the training, or absolute.
    """
    recorded = distillation["shards"]
    beside = folder / recorded
    shown = Path(os.path.normpath(beside))
    if beside.is_dir():
        # Behind a link the shorter path may be another folder.
        return shown if shown.is_dir() and shown.samefile(beside) else beside
    return shown if recorded.startswith(".") and not Path(recorded).is_dir() else Path(recorded)


def moved_record(distillation: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """A student's record as it stands in another folder: the way to the shards is another from there."""
    shards = find_shards(distillation, folder)
    if not (shards.is_dir() or distillation["shards"].startswith(".")):
        return distillation
    return {**distillation, "shards": shards_place(shards, target)}


def module_paths(folder: Path) -> dict[str, Path]:
    """The folder of each module of a student, by its kind."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}


def module_weights(folder: Path) -> list[Path]:
    """The files of a student's weights."""
    files = (path / "model.safetensors" for path in module_paths(folder).values())
    return sorted({file for file in files if file.exists()})


def is_classifier(folder: Path) -> bool:
    """Return whether the student in a folder was fine-tuned on a task."""
    return (folder / TASK).exists() or (folder / HEAD).exists()


def student_files(folder: Path) -> dict[str, Path]:
    """Return the files that loading a student reads, its head included, by their paths in its folder."""
    files = {name: folder / name for name in STUDENT_FILES if (folder / name).exists()}
    for module in set(module_paths(folder).values()) - {folder}:
        found = [file for pattern in ("*.json", "*.safetensors") for file in module.glob(pattern)]
        files |= {file.relative_to(folder).as_posix(): file for file in found}
    return files
