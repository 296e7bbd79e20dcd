"""GLUE and STS-B: the tasks, and their examples from the official TSV files or the hub."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested
from sentence_distill.data.progress import counted

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task over single texts or pairs, from GLUE or the user."""

    name: str
    columns: tuple[str, ...]
    """One or two columns of texts."""
    label: str
    """Column of labels."""
    labels: tuple[str, ...]
    """Classes in the order of their numbers; empty for a regression."""
    metrics: tuple[str, ...]
    """Metrics of `task_metrics`; their mean picks the best model."""

    @property
    def regression(self) -> bool:
        """True if labels are numbers, such as STS-B's 0 to 5, and not classes."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """Width of a model's last layer."""
        return max(1, len(self.labels))

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """Names of the text columns in a user's table."""
        return self.columns


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """A GLUE task; `columns` and `label` are those of the official files."""

    hub: str
    """Configuration name of the copy on the hub."""
    hub_columns: tuple[str, ...]
    dev: tuple[str, ...] = ("dev",)
    """Names of the dev splits; the first one picks the best model."""
    test: tuple[str, ...] = ("test",)
    test_columns: tuple[str, ...] = ()
    """Text columns in the test files, which have a header and no labels; empty if they are `columns`."""
    index: str = "index"
    """Column of row numbers in the test files."""

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """Column names of the hub's copy: the official files number CoLA's, and MRPC's contain blanks."""
        return self.hub_columns


_Names = tuple[str, ...]
GlueName = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
_SINGLE, _PAIR, _QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
_BINARY, _ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
_ACCURACY, _WITH_F1 = ("accuracy",), ("f1", "accuracy")


def _task(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    **others: str | tuple[str, ...],
) -> GlueTask:
    defaults = {"label": "label", "hub": name.lower().replace("-", ""), "hub_columns": columns}
    return GlueTask(name=name, columns=columns, labels=labels, metrics=metrics, **{**defaults, **others})  # type: ignore[arg-type]


TASKS = {
    task.name: task
    for task in (
        _task("CoLA", ("3",), _BINARY, ("matthews",), label="1", hub_columns=_SINGLE, test_columns=_SINGLE),
        _task("SST-2", _SINGLE, _BINARY, _ACCURACY),
        _task("MRPC", ("#1 String", "#2 String"), _BINARY, _WITH_F1, label="Quality", hub_columns=_PAIR),
        _task("STS-B", _PAIR, (), ("pearson", "spearman"), label="score"),
        _task("QQP", _QUESTIONS, _BINARY, _WITH_F1, label="is_duplicate", index="id"),
        _task(
            *("MNLI", _PAIR, _THREE, _ACCURACY),
            label="gold_label",
            hub_columns=("premise", "hypothesis"),
            dev=("dev_matched", "dev_mismatched"),
            test=("test_matched", "test_mismatched"),
        ),
        _task("QNLI", ("question", "sentence"), _ENTAILMENT, _ACCURACY),
        _task("RTE", _PAIR, _ENTAILMENT, _ACCURACY),
        _task("WNLI", _PAIR, _BINARY, _ACCURACY),
    )
}
DIAGNOSTIC = _task("AX", _PAIR, _THREE, ("matthews",), hub_columns=("premise", "hypothesis"), dev=())
"""Diagnostic set: a test split without labels, for the model that was fine-tuned on MNLI."""

_SUFFIX = {"": "", "matched": "-m", "mismatched": "-mm"}


def set_name(task: str, split: str) -> str:
    """Return GLUE's name of a dev or test set: MNLI-m for "dev_matched", RTE for "dev"."""
    return task + _SUFFIX[split.partition("_")[2]]


# GLUE's examples, from a folder of the official TSV files or from the hub.

HUB_NAME = "nyu-mll/glue"
# Places of the diagnostic set in downloads of the official files.
_DIAGNOSTIC_FILES = ("AX/AX.tsv", "diagnostic/diagnostic.tsv", "AX.tsv")


@dataclass(frozen=True)
class Examples:
    """A split with n examples."""

    texts: tuple[list[str], ...]
    """One or two columns of n sentences."""
    labels: list[float]
    """n class numbers, or scores for a regression; empty for a test split, whose labels are not public."""
    ids: list[int] = field(default_factory=list)
    """n row numbers of a test split, which a submission repeats; empty for other splits."""

    def __len__(self) -> int:
        return len(self.texts[0])


class TaskMissing(Exception):
    """Data of a task that is not on this machine; the message names the file."""


@dataclass(frozen=True)
class GlueFolder:
    """Tasks in the layout of the official download: FOLDER/TASK/train.tsv, dev.tsv, test.tsv."""

    folder: Path

    def load(self, task: GlueTask, split: str) -> Examples:
        """Read a split, such as "train" or "dev_matched"; raise `TaskMissing` if it is missing or empty."""
        path = self._find(f"{task.name}/{split}.tsv")
        return self._not_empty(examples_from_tsv(task, path), path)

    def load_test(self, task: GlueTask, split: str) -> Examples:
        """Read a split without labels, one of `task.test`."""
        path = self._find(*(_DIAGNOSTIC_FILES if task == DIAGNOSTIC else (f"{task.name}/{split}.tsv",)))
        # CoLA's test file has a header, unlike its other files.
        rows = _read_tsv(task, path, (task.index, *(task.test_columns or task.columns)))
        rows = [row for row in rows if row[0]]
        try:
            ids = [int(row[0] or "") for row in rows]
        except ValueError:
            raise UserError(f"{path}: column {task.index!r} should hold row numbers; is this {task.name}?") from None
        return self._not_empty(Examples(_texts_of([row[1:] for row in rows], len(task.columns)), [], ids), path)

    def _find(self, *names: str) -> Path:
        for path in map(self.folder.joinpath, names):
            if path.exists():
                return path
        raise TaskMissing(f"no {names[0]}")

    def _not_empty(self, examples: Examples, path: Path) -> Examples:
        if not len(examples):
            raise TaskMissing(f"{path.relative_to(self.folder)} holds no examples")
        return examples


class GlueHub:
    """Tasks from the copy on the hub, through `datasets` and its cache."""

    def load(self, task: GlueTask, split: str) -> Examples:
        """Fetch a split by its name in the official download."""
        rows = self._rows(task, split.replace("dev", "validation", 1))
        return Examples(self._texts(task, rows), [float(label) for label in rows["label"]])

    def load_test(self, task: GlueTask, split: str) -> Examples:
        """Fetch a split without labels; those of MRPC, which the hub's copy has, are dropped."""
        rows = self._rows(task, split)
        return Examples(self._texts(task, rows), [], [int(number) for number in rows["idx"]])

    def _rows(self, task: GlueTask, split: str) -> "Dataset":
        import datasets

        try:
            return datasets.load_dataset(HUB_NAME, task.hub, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise _no_hub(error) from error

    def _texts(self, task: GlueTask, rows: "Dataset") -> tuple[list[str], ...]:
        return tuple(list(rows[column]) for column in task.hub_columns)


GlueSource = GlueFolder | GlueHub


def open_glue(folder: Path | None) -> GlueSource:
    """Open GLUE in a folder, or on the hub if none is given; an unreachable hub is an error within 10 seconds."""
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--glue-dir {folder} does not exist; it should hold CoLA/train.tsv and the like")
        return GlueFolder(folder)
    hub = GlueHub()
    if offline_requested():
        # Offline, `datasets` reads its cache; loading the smallest task tells whether GLUE is in it.
        hub.load(TASKS["WNLI"], "dev")
        return hub
    from huggingface_hub import HfApi

    try:
        ask_hub(lambda: HfApi().dataset_info(HUB_NAME, timeout=5))
    except HubUnreachable as error:
        raise _no_hub(error) from error
    return hub


def _no_hub(error: Exception) -> UserError:
    return UserError(
        f"GLUE can't be loaded from the hub ({first_line(error)}); give a folder of the official TSV files with "
        "--glue-dir DIR, or set HF_HUB_OFFLINE=1 if it is in the cache"
    )


def examples_from_tsv(task: GlueTask, path: Path) -> Examples:
    """Read one file in the official layout."""
    kept, labels = [], []
    rows = _read_tsv(task, path, (task.label, *task.columns), header=task.name != "CoLA")
    for number, (label, *cells) in enumerate(rows, start=1):
        # Lines that end before the label are skipped: in official files a line break inside a text leaves such lines,
        # and so does an interrupted download.
        if label is None:
            continue
        kept.append(cells)
        labels.append(_label(task, label.strip(), f"{path}, row {number}"))
    return Examples(_texts_of(kept, len(task.columns)), labels)


def _label(task: GlueTask, text: str, place: str) -> float:
    if not text:
        raise UserError(f"{place}: column {task.label!r} is empty; remove that row, or label it")
    try:
        if task.regression and math.isfinite(score := float(text)):
            return score
        return float(task.labels.index(text))
    except ValueError:
        known = "finite numbers" if task.regression else ", ".join(task.labels)
        raise UserError(f"{place}: label {text!r}, but {task.name} has {known}") from None


def _read_tsv(task: GlueTask, path: Path, columns: tuple[str, ...], *, header: bool = True) -> list[list[str | None]]:
    """Return the cells of `columns` in each row; None for a cell that the row lacks."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it first") from error
    # The official files use no quotes, and some rows have more cells than the header.
    rows = [line.split("\t") for end in text.split("\n") if (line := end.removesuffix("\r"))]
    names = (rows.pop(0) if header else list(map(str, range(len(rows[0]))))) if rows else []
    if missing := [name for name in columns if name not in names]:
        raise UserError(f"{path} has no column {missing[0]!r}, only {', '.join(names)}; is this {task.name}?")
    places = [names.index(name) for name in columns]
    return [[row[place] if place < len(row) else None for place in places] for row in rows]


def _texts_of(rows: list[list[str | None]], columns: int) -> tuple[list[str], ...]:
    return tuple([row[column] or "" for row in rows] for column in range(columns))


# STS-B, or any table of sentence pairs with a similarity score.


def load_sts(path: Path) -> Examples:
    """Read a TSV with the columns sentence1, sentence2 and score, such as STS-B's dev.tsv."""
    if not path.is_file():
        raise UserError(f"--sts {path} does not exist; it should be a TSV with sentence1, sentence2 and score")
    examples = examples_from_tsv(TASKS["STS-B"], path)
    # A constant has no rank correlation.
    if len(set(examples.labels)) < 2:
        raise UserError(
            f"--sts {path} holds {counted(len(examples.labels), 'pair')}, but no two different scores; name pairs with "
            "different scores"
        )
    return examples
