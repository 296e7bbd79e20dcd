"""The nine GLUE tasks and the diagnostic set: where their files are, what their columns mean, and their metrics.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform" (ICLR 2019), table 1.
"""

from dataclasses import dataclass

from sentence_distill.data.task import Task


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
