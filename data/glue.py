"""The nine GLUE tasks: where their files are, what their columns mean, and their official metrics.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform" (ICLR 2019), table 1.
"""

from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import HubUnreachable, ask_hub, offline_requested

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """One task.

    `folder` and `columns` are of the official download; `hub` and `hub_columns` of its copy on the hub.
    `labels` lists the classes in the order of their numbers; without any the task is a regression.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    label: str
    hub: str
    hub_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev: tuple[str, ...] = ("dev",)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers (0 to 5 in STS-B) and not classes."""
        return not self.labels


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


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Args:
        texts: one or two columns of n sentences.
        labels: n class numbers, or scores in a regression.
    """

    texts: tuple[list[str], ...]
    labels: list[float]


class TaskMissing(Exception):
    """A task has no data here; the message says what is missing."""


@dataclass(frozen=True)
class GlueFolder:
    """Tasks in the layout of the official download: FOLDER/TASK/train.tsv, dev.tsv."""

    folder: Path

    def load(self, task: GlueTask, split: str) -> Examples:
        """Read a split ("train", "dev", "dev_matched" or "dev_mismatched").

        Raises:
            TaskMissing: the file is not there, or empty.
            UserError: the file lacks a column or holds a label that the task does not know.
        """
        path = self.folder / task.folder / f"{split}.tsv"
        if not path.exists():
            raise TaskMissing(f"no {task.folder}/{split}.tsv")
        examples = examples_from_tsv(task, path)
        if not examples.labels:
            raise TaskMissing(f"{task.folder}/{split}.tsv holds no example")
        return examples


@dataclass(frozen=True)
class GlueHub:
    """Tasks from the hub's copy, through `datasets` and its cache."""

    def load(self, task: GlueTask, split: str) -> Examples:
        """Fetch a split, named as in the official download.

        Raises:
            UserError: neither the hub nor the cache has it.
        """
        import datasets

        try:
            rows = datasets.load_dataset(HUB_NAME, task.hub, split=split.replace("dev", "validation", 1))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise _no_hub(error) from error
        return Examples(tuple(list(rows[column]) for column in task.hub_columns), [float(v) for v in rows["label"]])


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
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"GLUE can't be had from the hub ({reason}); give a folder of the official TSV files: "
        "sd eval --glue --glue-dir DIR, or set HF_HUB_OFFLINE=1 where it lies in the cache"
    )


def examples_from_tsv(task: GlueTask, path: Path) -> Examples:
    """Read one file of the official layout.

    Raises:
        UserError: it lacks a column, or holds a label that the task does not know.
    """
    table = _read_tsv(path, header=task.name != "CoLA")
    if missing := [name for name in (*task.columns, task.label) if name not in table]:
        raise UserError(f"{path} has no column {missing[0]!r} but {', '.join(table)}; is it {task.name}?")
    labels = table[task.label]
    # Cut lines at a file's end have no label; the official files end so in places.
    rows = [i for i, value in enumerate(labels) if value is not None]
    texts = tuple([table[name][i] or "" for i in rows] for name in task.columns)
    return Examples(texts, [_label(task, str(labels[i]).strip(), path, i) for i in rows])


def _read_tsv(path: Path, *, header: bool) -> dict[str, list[str | None]]:
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
        raise UserError(f"{path} is no table of tab-separated values: {str(error).splitlines()[0]}") from error
    if not header:
        frame.columns = [str(number) for number in range(frame.width)]
    return {name.removeprefix("\ufeff"): column.to_list() for name, column in frame.to_dict().items()}


def _label(task: GlueTask, text: str, path: Path, row: int) -> float:
    try:
        return float(text) if task.regression else float(task.labels.index(text))
    except ValueError:
        known = "a number" if task.regression else ", ".join(task.labels)
        raise UserError(f"{path}, row {row + 1}: label {text!r}, where {task.name} has {known}") from None
