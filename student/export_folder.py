"""The folder of an ONNX export."""

import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.pipeline.files import TEMPORARY, write_json
from sentence_distill.student.onnx_encoder import OUTPUT, inputs_of_column

MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
RECORD = "export.json"
LABELS = "labels.json"
"""Names of a classifier's classes, in the order of its outputs; a regression has none."""
README = "README.md"
DEFAULT = "onnx"
"""Name of an export's folder inside the student's."""
_FILES = {MODEL, TOKENIZER, RECORD, LABELS, README}
ENCODER, CLASSIFIER, REGRESSION = "encoder", "classifier", "regression"


@dataclass(frozen=True, kw_only=True)
class ExportedTask:
    """Task of an exported classifier; its classes are in labels.json."""

    name: str
    columns: tuple[str, ...]
    """The one or two columns of texts."""
    label: str
    """The column of labels."""
    metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of an export with its student in PyTorch."""

    texts: str
    """Origin of the sentences."""
    sentences: int
    largest_difference: float
    """Largest difference of two numbers of the output."""
    cosine: float | None = None
    """Vectors: the mean cosine."""
    lowest_cosine: float | None = None
    same_label: float | None = None
    """Classes: share of the sentences that get the same label."""
    range: tuple[float, float] | None = None
    """Scores: the lowest and the highest of the student's."""


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """The content of export.json. Defaults are for exports of version 0.1.0."""

    format: str = "onnx"
    kind: str = ENCODER
    """ENCODER gives vectors, CLASSIFIER probabilities of classes, REGRESSION scores."""
    inputs: tuple[str, ...] = inputs_of_column(0)
    outputs: tuple[str, ...] = (OUTPUT,)
    dim: int | None = None
    """Width of the vectors."""
    normalize: bool | None = None
    """True if the vectors have length 1."""
    max_tokens: int | None = None
    parameters: int
    int8: bool
    vocabulary: int | None = None
    task: ExportedTask | None = None
    student: dict[str, Any]
    """Name of the teacher, and hashes of the student's weights."""
    versions: dict[str, str] | None = None
    agreement: Agreement | None = None
    latency_ms: dict[str, dict[str, float]] | None = None

    @classmethod
    def read(cls, folder: Path) -> "ExportRecord":
        """Read the record of the export in a folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        again = f"make it: {_command(folder)}"
        try:
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            known = {field.name for field in fields(cls)}
            values = {name: value for name, value in content.items() if name in known}
            if task := values.get("task"):
                columns, metrics = tuple(task["columns"]), tuple(task["metrics"])
                values["task"] = ExportedTask(name=task["name"], columns=columns, label=task["label"], metrics=metrics)
            values |= {name: tuple(values[name]) for name in ("inputs", "outputs") if name in values}
            # Nobody reads it back, and that of older exports has other fields.
            values.pop("agreement", None)
            record = cls(**values)
            if record.kind not in (ENCODER, CLASSIFIER, REGRESSION) or (record.kind == ENCODER) != (
                record.task is None
            ):
                raise ValueError(f"kind {record.kind!r}")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{folder} holds no export; {again}") from None
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{folder / RECORD} is damaged ({first_line(error)}); {again}") from error
        return record

    def write(self, folder: Path) -> None:
        """Write export.json; what is None is left out."""
        content = asdict(self, dict_factory=lambda items: {name: value for name, value in items if value is not None})
        write_json(folder / RECORD, content)


def is_export(folder: Path) -> bool:
    """Return whether `sd export` made a folder."""
    return (folder / RECORD).exists()


def read_labels(folder: Path) -> tuple[str, ...]:
    """The names of a classifier's classes.

    Raises:
        UserError: there are none, or the file is damaged.
    """
    try:
        labels = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        if not labels or not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("it should be a list of names")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LABELS} is damaged ({error}); make it again: {_command(folder)}") from error
    return tuple(labels)


def _command(folder: Path) -> str:
    return f"sd export STUDENT --onnx --out {folder}"


def require_replaceable(folder: Path) -> None:
    """Refuse a folder that an export must not take the place of.

    Raises:
        UserError: it is a file, or holds something that no export left there.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    names = {path.name for path in folder.iterdir()}
    if names and (RECORD not in names or names - _FILES):
        other = min(names - _FILES, default=min(names))
        raise UserError(f"{folder} holds {other}, which sd export did not write; name another folder with --out")


@contextmanager
def replacing_export(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well.

    Raises:
        UserError: see `require_replaceable`.
    """
    require_replaceable(folder)
    folder = folder.resolve()
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    new, old = (folder.with_name(f".{folder.name}.{name}{suffix}") for name in ("new", "old"))
    new.mkdir()
    try:
        yield new
        # Two names can't be swapped in one step: between these two lines there is no export, never half of one.
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        # Only now: of an export that was killed between the two lines above, the one before is still among them.
        _remove_leftovers(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
    finally:
        for path in (new, old):
            shutil.rmtree(path, ignore_errors=True)
        # Of an export that failed no empty folder stays.
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove what exports that were killed left beside `folder`; those at work keep theirs."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*{TEMPORARY}"):
        found = re.fullmatch(rf"\.(new|old)\.(\d+)-[0-9a-f]+{re.escape(TEMPORARY)}", path.name[len(folder.name) + 1 :])
        if found and not _is_other_process(int(found[2])):
            shutil.rmtree(path, ignore_errors=True)


def _is_other_process(pid: int) -> bool:
    """Whether another process has this number; in a container a new one often has that of the killed one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
