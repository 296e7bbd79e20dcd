"""Find a student, packaged, in a folder, or on the hub, and read its folder. Nothing here imports PyTorch."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.figures import DISTILLATION, EVAL, GLUE, SPEED, load_distillation

CARD = "README.md"
TASK = "task.json"
HEAD = "head.safetensors"
FINETUNED_TEACHER = "finetuning.json"
"""Record in the folder of a teacher that `sd finetune` wrote."""
FIGURES = (EVAL, GLUE, SPEED)
"""What sd eval measured of a student, in its folder."""
EXPORT_FOLDER = "onnx"
"""Default name of an export's folder inside the student's."""
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
"""Files of a student's own folder that loading reads, besides those of its modules."""
MAX_TOKENS = 512
"""Tokens of a sentence that a student reads; the rest is cut, as sentence-transformers does."""
SMALL = "minilm-small"
"""The packaged student, of all-MiniLM-L6-v2 on text of many kinds; its folder holds its card."""
REFUSED = (401, 403, 404)
"""What the hub answers if there is no such repository or revision, or none for this user."""
_PACKAGED = Path(__file__).parent / "pretrained"
# Nothing here reads the last three, but without a network sentence-transformers takes only whole copies from the cache.
_FETCHED = ["*.json", "*.safetensors", "*.md", ".git*", "LICENSE*"]
_ELSEWHERE = ["onnx/*", "openvino/*"]


def read_student(folder: Path) -> tuple[StudentConfig, dict[str, np.ndarray], TextTokenizer]:
    """Read a student's shape, weights (float32 arrays by their names in `StudentEncoder.state_dict`) and tokenizer.

    Of its projections only the last belongs to the folder.
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
            raise ValueError(f"its weights have another shape than {DISTILLATION} says")
        tokenizer = TextTokenizer((paths["WordEmbeddings"] / "tokenizer.json").read_text(encoding="utf-8"))
        return config, {name: value.astype(np.float32) for name, value in weights.items()}, tokenizer
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no student that can be read ({error}); train one: sd train-student") from error


def _shapes(config: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight in a folder, by its name in `StudentEncoder.state_dict`."""
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


def is_classifier(folder: Path) -> bool:
    """Tell whether the student in a folder was fine-tuned on a task."""
    return (folder / TASK).exists() or (folder / HEAD).exists()


def is_export(folder: Path) -> bool:
    """Tell whether `sd export` made a folder."""
    return (folder / EXPORT_RECORD).exists()


def module_paths(folder: Path) -> dict[str, Path]:
    """Return the folder of each module of a student, by its kind."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}


def module_weights(folder: Path) -> list[Path]:
    """Return the files of a student's weights."""
    files = (path / "model.safetensors" for path in module_paths(folder).values())
    return sorted({file for file in files if file.exists()})


def student_files(folder: Path) -> dict[str, Path]:
    """Return the files that loading a student reads, its head included, by their paths in its folder."""
    files = {name: folder / name for name in STUDENT_FILES if (folder / name).exists()}
    for module in set(module_paths(folder).values()) - {folder}:
        found = [file for pattern in ("*.json", "*.safetensors") for file in module.glob(pattern)]
        files |= {file.relative_to(folder).as_posix(): file for file in found}
    return files


# The way to the shards that a student was trained on.


def shards_place(shards: Path, folder: Path) -> str:
    """Return where shards lie, for a student's record: relative to its folder, so that it holds wherever `sd` runs.

    The record goes to hubs: of the user's machine it says no more than the way from one folder to the other.
    """
    place = os.path.relpath(shards.resolve(), folder.resolve())
    return place if place.startswith("..") else f"./{place}"


def find_shards(distillation: dict[str, Any], folder: Path) -> Path:
    """Return where the shards of the student in `folder` were; they need not be there any more."""
    recorded = distillation["shards"]
    if not recorded.startswith("."):
        # On the hub a record names the folder alone, which may lie where the command runs.
        return Path(recorded)
    place = folder / recorded
    shorter = Path(os.path.normpath(place))
    # After a link the shorter path may be another folder.
    return place if place.is_dir() and not (shorter.is_dir() and shorter.samefile(place)) else shorter


def moved_record(distillation: dict[str, Any], folder: Path, target: Path) -> dict[str, Any]:
    """Return a student's record as it stands in another folder: the way to the shards is another from there."""
    if not distillation["shards"].startswith("."):
        return distillation
    return {**distillation, "shards": shards_place(find_shards(distillation, folder), target)}


# A student by its name: a folder, one that comes with the package, or a repository on the hub.


def packaged_student(name: str) -> Path | None:
    """Return the folder of the packaged student of that name; None if there is none, or a folder here has the name."""
    return next((folder for folder in _PACKAGED.glob("*") if folder.name == name and not Path(name).exists()), None)


def require_own_folder(name: str | Path) -> None:
    """Refuse a packaged student if files are to be written next to it."""
    if packaged_student(str(name)):
        raise UserError(
            f"{name} lies inside the package; copy it to a folder of yours: sd export {name} --format folder --float16"
        )


def is_repository(name: str) -> bool:
    """Tell whether `name` has the form OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def locate_student(name: str | Path) -> Path:
    """Return the folder of a student; one on the hub, by owner/name or owner/name@revision, is fetched."""
    if isinstance(name, Path) or Path(name).exists():
        return Path(name)
    if packaged := packaged_student(name):
        return packaged
    return _fetch(name) if is_repository(name.partition("@")[0]) else Path(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    # Of its library for HTTP, which is not the same in all versions.
    from huggingface_hub.errors import HTTPError

    repo, _, rest = name.partition("@")
    revision = rest or None
    try:
        # The hub is asked though the cache may have it: an owner pushes a better one under the same name.
        siblings = ask_hub(lambda: HfApi().model_info(repo, revision=revision, timeout=5)).siblings or []
    except HubUnreachable as error:
        return _cached(name, repo, revision, error)
    if DISTILLATION not in {sibling.rfilename for sibling in siblings}:
        raise UserError(
            f"{repo} on the hub is no student of sentence-distill (it has no {DISTILLATION}); load other models with "
            "SentenceTransformer"
        )
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FETCHED, ignore_patterns=_ELSEWHERE))
    except (OSError, HTTPError, RuntimeError) as error:
        reason = HubUnreachable.of(error)
        raise UserError(f"{name} could not be fetched from the hub ({reason}); run it again to resume") from error


def _cached(name: str, repo: str, revision: str | None, unreachable: HubUnreachable) -> Path:
    """Return the copy in the cache of a student about which the hub gave no answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if unreachable.status in REFUSED:
        raise UserError(
            f"{name} is no folder, and the hub has no such student or hides it ({unreachable}); check the name, and "
            "for a private one log in: hf auth login"
        ) from unreachable
    try:
        found = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=_FETCHED[:2], ignore_patterns=_ELSEWHERE
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is no folder and not in the cache, and the hub can't be asked ({unreachable}); give a student's "
            "folder, or load it once where there is a network"
        ) from unreachable
    if not offline_requested():
        logging.getLogger(__name__).warning("%s: the copy in the cache is loaded (%s)", name, unreachable)
    return Path(found)
