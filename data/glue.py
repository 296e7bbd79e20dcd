"""GLUE and STS-B: the tasks, and their examples from the official TSV files or the hub."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, of single texts or of pairs.

    `columns` are the one or two columns of texts. `labels` lists the classes in the order of their numbers; without
    any the task is a regression. `metrics` are names that `task_metrics` knows; their mean picks the best model.
    """

    name: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether labels are numbers, as the 0 to 5 of STS-B, and not classes."""
        return not self.labels

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """Names of the columns of texts where a table of one's own is read."""
        return self.columns


# The nine GLUE tasks and the diagnostic set: where their files are, what their columns mean, and their metrics.


@dataclass(frozen=True, kw_only=True)
class GlueTask(Task):
    """One task.

    `folder`, `columns` and `label` are of the official download; `hub` and `hub_columns` of its copy on the hub.
    `dev` and `test` are names of splits. A file of a test split has a header and no labels: its texts are in
    `test_columns`, `columns` where that is empty, and its rows' numbers in `index`.
    """

    folder: str
    hub: str
    hub_columns: tuple[str, ...]
    dev: tuple[str, ...] = ("dev",)
    test: tuple[str, ...] = ("test",)
    test_columns: tuple[str, ...] = ()
    index: str = "index"

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """As the hub names them: in the official files CoLA's are numbered and MRPC's have blanks."""
        return self.hub_columns


_PAIR = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            name="CoLA",
            folder="CoLA",
            columns=("3",),
            label="1",
            hub="cola",
            hub_columns=("sentence",),
            labels=_BINARY,
            metrics=("matthews",),
            test_columns=("sentence",),
        ),
        GlueTask(
            name="SST-2",
            folder="SST-2",
            columns=("sentence",),
            label="label",
            hub="sst2",
            hub_columns=("sentence",),
            labels=_BINARY,
            metrics=("accuracy",),
        ),
        GlueTask(
            name="MRPC",
            folder="MRPC",
            columns=("#1 String", "#2 String"),
            label="Quality",
            hub="mrpc",
            hub_columns=_PAIR,
            labels=_BINARY,
            metrics=("f1", "accuracy"),
        ),
        GlueTask(
            name="STS-B",
            folder="STS-B",
            columns=_PAIR,
            label="score",
            hub="stsb",
            hub_columns=_PAIR,
            labels=(),
            metrics=("pearson", "spearman"),
        ),
        GlueTask(
            name="QQP",
            folder="QQP",
            columns=("question1", "question2"),
            label="is_duplicate",
            hub="qqp",
            hub_columns=("question1", "question2"),
            labels=_BINARY,
            metrics=("f1", "accuracy"),
            index="id",
        ),
        GlueTask(
            name="MNLI",
            folder="MNLI",
            columns=_PAIR,
            label="gold_label",
            hub="mnli",
            hub_columns=("premise", "hypothesis"),
            labels=("entailment", "neutral", "contradiction"),
            metrics=("accuracy",),
            dev=("dev_matched", "dev_mismatched"),
            test=("test_matched", "test_mismatched"),
        ),
        GlueTask(
            name="QNLI",
            folder="QNLI",
            columns=("question", "sentence"),
            label="label",
            hub="qnli",
            hub_columns=("question", "sentence"),
            labels=_ENTAILMENT,
            metrics=("accuracy",),
        ),
        GlueTask(
            name="RTE",
            folder="RTE",
            columns=_PAIR,
            label="label",
            hub="rte",
            hub_columns=_PAIR,
            labels=_ENTAILMENT,
            metrics=("accuracy",),
        ),
        GlueTask(
            name="WNLI",
            folder="WNLI",
            columns=_PAIR,
            label="label",
            hub="wnli",
            hub_columns=_PAIR,
            labels=_BINARY,
            metrics=("accuracy",),
        ),
    )
}

DIAGNOSTIC = GlueTask(
    name="AX",
    folder="AX",
    columns=_PAIR,
    label="label",
    hub="ax",
    hub_columns=("premise", "hypothesis"),
    labels=TASKS["MNLI"].labels,
    metrics=("matthews",),
    dev=(),
)
"""The diagnostic set: a test split without labels, for the model that was fine-tuned on MNLI."""

_SUFFIX = {"": "", "matched": "-m", "mismatched": "-mm"}


def set_name(task: str, split: str) -> str:
    """A task with one of its dev or test sets, as GLUE names them: MNLI-m for "dev_matched", RTE for "dev"."""
    return task + _SUFFIX[split.partition("_")[2]]


# GLUE's examples, from a folder of the official TSV files or from the hub.

__all__ = [
    "DIAGNOSTIC",
    "TASKS",
    "Examples",
    "GlueFolder",
    "GlueHub",
    "GlueTask",
    "TaskMissing",
    "examples_from_tsv",
    "open_glue",
]

_Table = dict[str, list[str | None]]
HUB_NAME = "nyu-mll/glue"
# Where downloads of the official files put the diagnostic set.
DIAGNOSTIC_FILES = ("AX/AX.tsv", "diagnostic/diagnostic.tsv", "AX.tsv")


@dataclass(frozen=True)
class Examples:
    """Examples of a split.

    Args:
        texts: one or two columns of n sentences.
        labels: n class numbers, or scores in a regression; empty for a test split, whose labels are not public.
        ids: the n rows' numbers in a test split, which a submission repeats; empty for the others.
    """

    texts: tuple[list[str], ...]
    labels: list[float]
    ids: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts[0])


class TaskMissing(Exception):
    """A task has no data here; the message says what is missing."""


@dataclass(frozen=True)
class GlueFolder:
    """Tasks in the layout of the official download: FOLDER/TASK/train.tsv, dev.tsv, test.tsv."""

    folder: Path

    def load(self, task: GlueTask, split: str) -> Examples:
        """Read a split ("train", "dev", "dev_matched" or "dev_mismatched").

        Raises:
            TaskMissing: the file is not there, or empty.
            UserError: the file lacks a column or holds a label that the task does not know.
        """
        path = self._find(f"{task.folder}/{split}.tsv")
        return self._not_empty(examples_from_tsv(task, path), path)

    def load_test(self, task: GlueTask, split: str) -> Examples:
        """Read a split without labels, one of `task.test`.

        Raises:
            TaskMissing: the file is not there, or empty.
            UserError: the file lacks a column, or a row's number is none.
        """
        names = DIAGNOSTIC_FILES if task.name == DIAGNOSTIC.name else (f"{task.folder}/{split}.tsv",)
        path = self._find(*names)
        return self._not_empty(_test_from_tsv(task, path), path)

    def _find(self, *names: str) -> Path:
        for path in map(self.folder.joinpath, names):
            if path.exists():
                return path
        raise TaskMissing(f"no {names[0]}")

    def _not_empty(self, examples: Examples, path: Path) -> Examples:
        if not len(examples):
            raise TaskMissing(f"{path.relative_to(self.folder)} holds no example")
        return examples


@dataclass(frozen=True)
class GlueHub:
    """Tasks from the hub's copy, through `datasets` and its cache."""

    def load(self, task: GlueTask, split: str) -> Examples:
        """Fetch a split, named as in the official download.

        Raises:
            UserError: neither the hub nor the cache has it.
        """
        rows = self._rows(task, split.replace("dev", "validation", 1))
        return Examples(_texts(task, rows), [float(label) for label in rows["label"]])

    def load_test(self, task: GlueTask, split: str) -> Examples:
        """Fetch a split without labels, one of `task.test`; MRPC's labels, which the hub's copy has, stay out.

        Raises:
            UserError: neither the hub nor the cache has it.
        """
        rows = self._rows(task, split)
        return Examples(_texts(task, rows), [], [int(number) for number in rows["idx"]])

    def _rows(self, task: GlueTask, split: str) -> "Dataset":
        import datasets

        try:
            return datasets.load_dataset(HUB_NAME, task.hub, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise _no_hub(error) from error


def _texts(task: GlueTask, rows: "Dataset") -> tuple[list[str], ...]:
    return tuple(list(rows[column]) for column in task.hub_columns)


def open_glue(folder: Path | None) -> GlueFolder | GlueHub:
    """Where GLUE comes from: a folder, or the hub where none is given.

    Raises:
        UserError: neither can be had; answered within 10 seconds.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--glue-dir {folder} is not there; it should hold CoLA/train.tsv and the like")
        return GlueFolder(folder)
    hub = GlueHub()
    if offline_requested():
        # Then the cache is all there is, and `datasets` answers from it at once; the smallest task shows.
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
        f"GLUE can't be had from the hub ({first_line(error)}); give a folder of the official TSV files with "
        "--glue-dir DIR, or set HF_HUB_OFFLINE=1 where it lies in the cache"
    )


def examples_from_tsv(task: GlueTask, path: Path) -> Examples:
    """Read one file of the official layout.

    Raises:
        UserError: it lacks a column, or holds a label that the task does not know.
    """
    table = _read_tsv(path, header=task.name != "CoLA")
    _check_columns(task, path, table, (*task.columns, task.label))
    labels = table[task.label]
    rows = [i for i, value in enumerate(labels) if value is not None]
    if len(rows) < len(labels):
        _check_cut(task, path, table)
    return Examples(_pick(table, task.columns, rows), [_label(task, str(labels[i]).strip(), path, i) for i in rows])


def _check_cut(task: GlueTask, path: Path, table: _Table) -> None:
    """Refuse a row whose label is empty.

    One that lacks the label's cell is a cut line, and left out: official files have such where a text held a line end,
    and others where a download ended.
    """
    lines = path.read_bytes().split(b"\n")[task.name != "CoLA" :]
    column = list(table).index(task.label)
    for row, label in enumerate(table[task.label]):
        if label is None and lines[row].count(b"\t") >= column:
            raise UserError(f"{path}, row {row + 1}: its column {task.label!r} is empty; remove that row, or label it")


def _test_from_tsv(task: GlueTask, path: Path) -> Examples:
    # Of CoLA's files this one has a header.
    table = _read_tsv(path, header=True)
    columns = task.test_columns or task.columns
    _check_columns(task, path, table, (task.index, *columns))
    numbers = table[task.index]
    rows = [i for i, value in enumerate(numbers) if value is not None]
    try:
        ids = [int(str(numbers[i])) for i in rows]
    except ValueError:
        raise UserError(f"{path}: its column {task.index!r} should hold rows' numbers; is it {task.name}?") from None
    return Examples(_pick(table, columns, rows), [], ids)


def _check_columns(task: GlueTask, path: Path, table: _Table, names: tuple[str, ...]) -> None:
    if missing := [name for name in names if name not in table]:
        raise UserError(f"{path} has no column {missing[0]!r} but {', '.join(table)}; is it {task.name}?")


def _pick(table: _Table, columns: tuple[str, ...], rows: list[int]) -> tuple[list[str], ...]:
    return tuple([table[name][i] or "" for i in rows] for name in columns)


def _read_tsv(path: Path, *, header: bool) -> _Table:
    import polars as pl

    try:
        # The official files quote nothing, and some rows of them carry more cells than the header names.
        frame = pl.read_csv(
            path,
            separator="\t",
            quote_char=None,
            has_header=header,
            infer_schema=False,
            truncate_ragged_lines=True,
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} is no table of tab-separated values: {first_line(error)}") from error
    if not header:
        frame.columns = [str(number) for number in range(frame.width)]
    return {name.removeprefix("\ufeff"): column.to_list() for name, column in frame.to_dict().items()}


def _label(task: GlueTask, text: str, path: Path, row: int) -> float:
    try:
        if task.regression and math.isfinite(score := float(text)):
            return score
        return float(task.labels.index(text))
    except ValueError:
        known = "finite numbers" if task.regression else ", ".join(task.labels)
        raise UserError(f"{path}, row {row + 1}: label {text!r}, where {task.name} has {known}") from None


# STS-B, or any table of sentence pairs with a similarity score.


def load_sts(path: Path) -> Examples:
    """Read a TSV with the columns sentence1, sentence2 and score, such as STS-B's dev.tsv.

    Raises:
        UserError: the file is not there, lacks a column, or holds no two scores that differ: nothing correlates with
            those.
    """
    if not path.is_file():
        raise UserError(f"--sts {path} is not there; it should be a TSV with sentence1, sentence2 and score")
    examples = examples_from_tsv(TASKS["STS-B"], path)
    if len(set(examples.labels)) < 2:
        raise UserError(
            f"--sts {path} holds {len(examples.labels):,} pair(s), and no two scores that differ; name pairs of which "
            "some are closer than others"
        )
    return examples
