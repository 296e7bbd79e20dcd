"""Locating a student (packaged, in a folder, or on the hub) and reading its folder. Nothing here imports PyTorch."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.figures import DISTILLATION, EVAL, GLUE, SPEED, load_distillation

CARD = "README.md"
TASK = "task.json"
HEAD = "head.safetensors"
FINETUNED_TEACHER = "finetuning.json"
"""Record of a teacher that `sd finetune` wrote."""
FIGURES = (EVAL, GLUE, SPEED)
"""Files of figures that sd eval writes to a student's folder."""
EXPORT_FOLDER = "onnx"
"""Default name of the folder of an export, inside the student's folder."""
EXPORT_RECORD = "export.json"
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
"""Files that are read from a student's own folder, in addition to those of its modules."""
MAX_TOKENS = 512
"""Number of tokens that a student reads; longer sentences are truncated, as in sentence-transformers."""
SMALL = "minilm-small"
"""Name of the packaged student, distilled from all-MiniLM-L6-v2 on various kinds of text; see its model card."""
REFUSED = (401, 403, 404)
"""HTTP status codes of the hub for a repository or revision that does not exist, or not for this user."""
_PACKAGED = Path(__file__).parent / "pretrained"
# The last three are not read here, but offline, sentence-transformers loads only complete copies from the cache.
_FETCHED = ["*.json", "*.safetensors", "*.md", ".git*", "LICENSE*"]
_ELSEWHERE = ["onnx/*", "openvino/*"]


def read_student(folder: Path) -> tuple[StudentConfig, dict[str, np.ndarray], TextTokenizer]:
    """Read a student's shape, weights (float32 arrays by name as in `StudentEncoder.state_dict`) and tokenizer.

    A folder holds only the last of the projections.
    """
    try:
        shape = load_distillation(folder)["student"]
        config = StudentConfig(**{**shape, "target_dims": (shape["target_dims"][-1],)})
        paths = module_paths(folder)
        words, lstm, dense = (
            load_file(paths[kind] / "model.safetensors") for kind in ("WordEmbeddings", "LSTM", "Dense")
        )
        weights = {
            "embedding.weight": words["emb_layer.weight"],
            **{f"lstm.{name.removeprefix('encoder.')}": value for name, value in lstm.items()},
            **{f"projections.0.{name.removeprefix('linear.')}": value for name, value in dense.items()},
        }
        if {name: value.shape for name, value in weights.items()} != _shapes(config):
            raise ValueError(f"the shapes of its weights differ from {DISTILLATION}")
        tokenizer = TextTokenizer((paths["WordEmbeddings"] / "tokenizer.json").read_text(encoding="utf-8"))
        return config, {name: value.astype(np.float32) for name, value in weights.items()}, tokenizer
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable student ({error}); train one: sd train-student") from error


def _shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight in a folder, by name as in `StudentEncoder.state_dict`."""
    dim, gates = config.target_dims[-1], 4 * config.hidden
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocabulary, config.embedding_dim)}
    for layer in range(config.layers):
        width = 2 * config.hidden if layer else config.embedding_dim
        for end in (f"_l{layer}", f"_l{layer}_reverse"):
            shapes |= {f"lstm.weight_ih{end}": (gates, width), f"lstm.weight_hh{end}": (gates, config.hidden)}
            shapes |= {f"lstm.bias_ih{end}": (gates,), f"lstm.bias_hh{end}": (gates,)}
    return shapes | {"projections.0.weight": (dim, config.pooled_dim), "projections.0.bias": (dim,)}


def is_student(model: str) -> bool:
    """Return True if `model` is a folder that `sd train-student` wrote."""
    return (Path(model) / DISTILLATION).exists()


def is_classifier(folder: Path) -> bool:
    """Return True if the student in a folder was fine-tuned on a task."""
    return (folder / TASK).exists() or (folder / HEAD).exists()


def is_export(folder: Path) -> bool:
    """Return True if `sd export` wrote a folder."""
    return (folder / EXPORT_RECORD).exists()


def module_paths(folder: Path) -> dict[str, Path]:
    """Return the folder of each module of a student, by type."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}


def module_weights(folder: Path) -> list[Path]:
    """Return the weight files of a student."""
    files = (path / "model.safetensors" for path in module_paths(folder).values())
    return sorted({file for file in files if file.exists()})


def weights_hashes(folder: Path) -> list[str]:
    """Return the xxh3-128 of each weight file of a student, in the order of their names."""
    return [file_hash(file) for file in module_weights(folder)]


def student_files(folder: Path) -> dict[str, Path]:
    """Return the files that loading a student reads, including its head, by their paths in its folder."""
    files = {name: folder / name for name in STUDENT_FILES if (folder / name).exists()}
    for module in set(module_paths(folder).values()) - {folder}:
        found = [file for pattern in ("*.json", "*.safetensors") for file in module.glob(pattern)]
        files |= {file.relative_to(folder).as_posix(): file for file in found}
    return files


# The path to the shards that a student was trained on.


def shards_place(shards: Path, folder: Path) -> str:
    """Return the path of shards for a student's record, relative to its folder, wherever `sd` runs.

    Records are published on the hub: a relative path reveals no more of the user's machine than is necessary.
    """
    place = os.path.relpath(shards.resolve(), folder.resolve())
    return place if place.startswith("..") else f"./{place}"


def find_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """Return the recorded path of the shards of the student in `folder`; they may no longer exist."""
    recorded = distillation["shards"]
    if not recorded.startswith("."):
        # A record on the hub has only the name of the folder, which may exist in the current folder.
        return Path(recorded)
    place = folder / recorded
    shorter = Path(os.path.normpath(place))
    # If there is a symbolic link in the path, the normalized path may lead to another folder.
    return place if place.is_dir() and not (shorter.is_dir() and shorter.samefile(place)) else shorter


def moved_record(distillation: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """Return a student's record for another folder, from which the relative path to the shards differs."""
    if not distillation["shards"].startswith("."):
        return distillation
    return {**distillation, "shards": shards_place(find_shards(distillation, folder), target)}


# Students by name: a folder, a packaged student, or a repository on the hub.


def packaged_student(name: str) -> Path | None:
    """Return the folder of a packaged student; None if there is none, or if a local folder has its name."""
    return next((folder for folder in _PACKAGED.glob("*") if folder.name == name and not Path(name).exists()), None)


def require_own_folder(name: str | Path) -> None:
    """Refuse a packaged student, for commands that write to the student's folder."""
    if packaged_student(str(name)):
        raise UserError(
            f"{name} is part of the package; copy it to your own folder: sd export {name} --format folder --float16"
        )


def is_repository(name: str) -> bool:
    """Return True if `name` has the form OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def locate_student(name: str | Path) -> Path:
    """Return the folder of a student; download it from the hub if it is owner/name or owner/name@revision."""
    if isinstance(name, Path) or Path(name).exists():
        return Path(name)
    if packaged := packaged_student(name):
        return packaged
    return _fetch(name) if is_repository(name.partition("@")[0]) else Path(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # The class of its HTTP library, which differs between versions.
    from huggingface_hub.errors import HTTPError

    repo, _, rest = name.partition("@")
    revision = rest or None
    try:
        # The hub is asked first, even if the student is cached: a new version may have been pushed.
        siblings = ask_hub(lambda: HfApi().model_info(repo, revision=revision, timeout=5)).siblings or []
    except HubUnreachable as error:
        return _cached(name, repo, revision, error)
    if DISTILLATION not in {sibling.rfilename for sibling in siblings}:
        raise UserError(
            f"{repo} on the hub is not a student of sentence-distill (it has no {DISTILLATION}); load other models "
            "with SentenceTransformer"
        )
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FETCHED, ignore_patterns=_ELSEWHERE))
    except (OSError, HTTPError, RuntimeError) as error:
        reason = HubUnreachable.of(error)
        raise UserError(f"{name} could not be downloaded ({reason}); run the command again to resume") from error


def _cached(name: str, repo: str, revision: str | None, unreachable: HubUnreachable) -> Path:
    """Return the cached copy of a student, when the hub gave no answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if unreachable.status in REFUSED:
        raise UserError(
            f"{name} is not a folder, and the hub has no such student, or it is private ({unreachable}); check the "
            "name, or log in: hf auth login"
        ) from unreachable
    try:
        found = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=_FETCHED[:2], ignore_patterns=_ELSEWHERE
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is neither a folder nor in the cache, and the hub can't be reached ({unreachable}); give a "
            "student's folder, or load it once while online"
        ) from unreachable
    if not offline_requested():
        logging.getLogger(__name__).warning("%s: loading the cached copy (%s)", name, unreachable)
    return Path(found)
