"""Find a student: packaged, a folder, or on the hub."""

import logging
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested
from sentence_distill.student.files import DISTILLATION

_FOLDER = Path(__file__).parent / "pretrained"
SMALL = "wiki-small"
"""all-MiniLM-L6-v2 on English Wikipedia; its folder holds its card."""


def packaged_student(name: str) -> Path | None:
    """The folder of the packaged student of that name; None where there is none, or a folder here has the name."""
    return next((folder for folder in _FOLDER.glob("*") if folder.name == name and not Path(name).exists()), None)


def require_own_folder(name: str | Path) -> None:
    """Refuse a packaged student where files are written beside it.

    Raises:
        UserError: it says how to get a copy.
    """
    if packaged_student(str(name)):
        raise UserError(
            f"{name} lies inside the package; copy it to a folder of yours: sd export {name} --format folder --float16"
        )


# A student by its name: a folder, one that comes with the package, or a repository on the hub.

_FILES = ["*.json", "*.safetensors"]
# Nothing here reads them, but without a network sentence-transformers takes only whole copies from the cache.
_BESIDE = ["*.md", ".git*", "LICENSE*"]
_ELSEWHERE = ["onnx/*", "openvino/*"]
# What the hub answers where there is no such repository or revision, or none for this user.
REFUSED = (401, 403, 404)


def is_repository(name: str) -> bool:
    """Whether `name` has the form OWNER/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def locate_student(name: str | Path) -> Path:
    """The folder of a student, which is fetched from the hub where no folder has that name.

    Args:
        name: a folder; or, as a string, a packaged student, or owner/name or owner/name@revision on the hub.

    Raises:
        UserError: the hub has no such student, or can't be asked and the cache has none.
    """
    if isinstance(name, Path) or Path(name).exists():
        return Path(name)
    if packaged := packaged_student(name):
        return packaged
    return _fetch(name) if is_repository(name.partition("@")[0]) else Path(name)


def _fetch(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

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
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=[*_FILES, *_BESIDE], ignore_patterns=_ELSEWHERE)
        )
    except Exception as error:  # whatever the client raises is the reason given to the user
        reason = HubUnreachable.of(error)
        raise UserError(f"{name} could not be fetched from the hub ({reason}); try again to go on with it") from error


def _cached(name: str, repo: str, revision: str | None, unreachable: HubUnreachable) -> Path:
    """The copy in the cache of a student about which the hub gave no answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if unreachable.status in REFUSED:
        raise UserError(
            f"{name} is no folder, and the hub has no such student or hides it ({unreachable}); check the name, and "
            "for a private one log in: hf auth login"
        ) from unreachable
    try:
        found = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name} is no folder and not in the cache, and the hub can't be asked ({unreachable}); give a student's "
            "folder, or load it once where there is a network"
        ) from unreachable
    if not offline_requested():
        logging.getLogger(__name__).warning("%s: the copy in the cache is loaded (%s)", name, unreachable)
    return Path(found)
