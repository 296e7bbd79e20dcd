"""GLUE figures of known systems, as their authors published them.

Only figures whose metric and split the source names are here; a score that it gives without saying which metric
it is, or which of MNLI's dev sets, is left out.
"""

from dataclasses import dataclass, field

Score = tuple[str, str]
"""A column of GLUE: a task, MNLI's with its set (MNLI-m, MNLI-mm), and a metric of `data.glue.TASKS`."""


@dataclass(frozen=True, kw_only=True)
class PublishedSystem:
    """One system.

    Attributes:
        name: as its authors call it.
        source: where the figures stand.
        split: "test" (the leaderboard's, with hidden labels) or "dev".
        scores: in percent.
        note: what a reader must know besides.
    """

    name: str
    source: str
    split: str
    scores: dict[Score, float] = field(default_factory=dict)
    note: str = ""


PUBLISHED = (
    PublishedSystem(
        name="BERT-base",
        source="Devlin et al. 2019, table 1 (arXiv:1810.04805)",
        split="test",
        scores={
            ("CoLA", "matthews"): 52.1,
            ("SST-2", "accuracy"): 93.5,
            ("MRPC", "f1"): 88.9,
            ("STS-B", "spearman"): 85.8,
            ("QQP", "f1"): 71.2,
            ("MNLI-m", "accuracy"): 84.6,
            ("MNLI-mm", "accuracy"): 83.4,
            ("QNLI", "accuracy"): 90.5,
            ("RTE", "accuracy"): 66.4,
        },
    ),
    PublishedSystem(
        name="TinyBERT, 4 layers",
        source="Jiao et al. 2020, table 1 (arXiv:1909.10351)",
        split="test",
        scores={
            ("CoLA", "matthews"): 44.1,
            ("SST-2", "accuracy"): 92.6,
            ("MRPC", "f1"): 86.4,
            ("STS-B", "spearman"): 80.4,
            ("QQP", "f1"): 71.3,
            ("MNLI-m", "accuracy"): 82.5,
            ("MNLI-mm", "accuracy"): 81.8,
            ("QNLI", "accuracy"): 87.7,
            ("RTE", "accuracy"): 66.6,
        },
    ),
    PublishedSystem(
        name="DistilBERT",
        source="Sanh et al. 2019, table 1 (arXiv:1910.01108)",
        split="dev",
        scores={
            ("CoLA", "matthews"): 51.3,
            ("SST-2", "accuracy"): 91.3,
            ("QNLI", "accuracy"): 89.2,
            ("RTE", "accuracy"): 59.9,
            ("WNLI", "accuracy"): 56.3,
        },
        note="medians of five runs; the table does not name the metric of MRPC, QQP and STS-B, nor MNLI's set",
    ),
    PublishedSystem(
        name="BiLSTM + ELMo + attention, single task",
        source="Wang et al. 2018 (arXiv:1804.07461)",
        split="test",
        scores={
            ("CoLA", "matthews"): 35.0,
            ("SST-2", "accuracy"): 90.2,
            ("MRPC", "f1"): 80.2,
            ("QQP", "f1"): 66.1,
            ("MNLI-m", "accuracy"): 76.9,
            ("MNLI-mm", "accuracy"): 76.7,
        },
    ),
    PublishedSystem(
        name="BiLSTM distilled from BERT-large (SOFT)",
        source="Tang et al. 2019, table 1 (arXiv:1903.12136)",
        split="test",
        scores={
            ("SST-2", "accuracy"): 90.7,
            ("QQP", "f1"): 68.2,
            ("QQP", "accuracy"): 88.1,
            ("MNLI-m", "accuracy"): 73.0,
            ("MNLI-mm", "accuracy"): 72.6,
        },
        note="task-specific distillation, with augmented training data",
    ),
)
