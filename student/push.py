"""`sd push`: upload a student to the Hugging Face hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub
from sentence_distill.student.card import model_card
from sentence_distill.student.figures import (
    DISTILLATION,
    GLUE,
    SPEED,
    GlueFigures,
    SpeedRecord,
    load_distillation,
    read_figures,
)
from sentence_distill.student.files import CARD, REFUSED, STUDENT_FILES, is_repository, student_files
from sentence_distill.student.model import load_student

T = TypeVar("T")

# Files that a repository may have before its first student.
_FRESH = {".gitattributes", ".gitignore", "LICENSE", CARD}
_LOG_IN = "log in with hf auth login, or set HF_TOKEN to a token with write access (settings/tokens on the hub)"


@dataclass(frozen=True)
class Upload:
    """Files to push to the repository OWNER/NAME."""

    repo: str
    files: dict[str, Path | bytes]
    """Local files, or the contents of files generated for the hub, by path in the repository."""

    def sizes(self) -> dict[str, int]:
        """Return the size of each file in bytes."""
        return {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in self.files.items()
        }


def prepare_upload(folder: Path, repo: str, *, licence: str | None = None, keep_card: bool = False) -> Upload:
    """Collect the files of a student for the hub, without using the network.

    The model card is generated from all figures in the folder and a license by the hub's identifier, or kept as it is.
    """
    if not is_repository(repo):
        raise UserError(f"{repo!r} is not a name on the hub; give OWNER/NAME, with letters, digits, '-', '_' and '.'")
    load_student(folder)
    # Without checkpoints, logs, and other files that the user keeps there.
    files: dict[str, Path | bytes] = {**student_files(folder)}
    record = load_distillation(folder)
    if keep_card:
        if not (folder / CARD).exists():
            raise UserError(f"{folder} has no {CARD} to keep; leave out --keep-card to generate one")
        files[CARD] = folder / CARD
    else:
        glue, speed = read_figures(folder / GLUE, GlueFigures), read_figures(folder / SPEED, SpeedRecord)
        files[CARD] = model_card(record, name=repo, licence=licence, glue=glue, speed=speed).encode()
    # Local paths are useless to others, and may reveal more than their owner wants.
    record["shards"] = Path(record["shards"]).name
    record.pop("command", None)
    if reduction := record.get("reduction"):
        reduction["sentences"] = ", ".join(Path(path).name for path in reduction["sentences"].split(", "))
    files[DISTILLATION] = (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()
    return Upload(repo, dict(sorted(files.items())))


def push(upload: Upload, *, message: str, private: bool = False, revision: str | None = None) -> str:
    """Push a student in one commit, creating the repository and branch if necessary; return the repository's page."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
    from huggingface_hub.errors import HTTPError

    if (token := get_token()) is None:
        raise UserError(f"no token for the hub; {_LOG_IN}")
    api, repo = HfApi(token=token), upload.repo
    page = str(_ask(lambda: api.create_repo(repo, private=private or None, exist_ok=True), repo))
    if private and not _ask(lambda: api.model_info(repo, timeout=5), repo).private:
        raise UserError(f"{repo} exists and is public; make it private in its settings, or leave out --private")
    if revision:
        _ask(lambda: api.create_branch(repo, branch=revision, exist_ok=True), repo)
    there = set(_ask(lambda: api.list_repo_files(repo, revision=revision), repo))
    if there - _FRESH and DISTILLATION not in there:
        raise UserError(f"{repo} holds something other than a student; push to another name")
    operations = [CommitOperationAdd(path, content) for path, content in upload.files.items()]
    # Files of an earlier student that this one lacks, such as its head.
    stale = there & set(STUDENT_FILES) - upload.files.keys()
    operations += [CommitOperationDelete(path) for path in sorted(stale)]
    try:
        api.create_commit(repo, operations, commit_message=message, revision=revision)
    except (OSError, HTTPError, RuntimeError) as error:
        raise _push_error(repo, HubUnreachable.of(error)) from error
    return f"{page}/tree/{revision}" if revision else page


def _ask(question: Callable[[], T], repo: str) -> T:
    try:
        return ask_hub(question)
    except HubUnreachable as error:
        raise _push_error(repo, error) from error


def _push_error(repo: str, error: HubUnreachable) -> UserError:
    owner = repo.split("/")[0]
    if error.status == 401:
        return UserError(f"the hub does not accept the token ({error}); {_LOG_IN}")
    if error.status in REFUSED:
        return UserError(
            f"this token has no write access to {owner} on the hub ({error}); check your user name with hf auth "
            "whoami, and give the token write access to that owner"
        )
    if error.status is not None:
        return UserError(f"the hub rejected {repo} ({error}); try again later")
    return UserError(
        f"the hub can't be reached ({error}); push again when online, or share the folder itself, which can be loaded "
        "as it is"
    )
