"""Tables of figures: fidelity, GLUE next to published systems, and speed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from sentence_distill.data.glue import TASKS, set_name
from sentence_distill.student.config import ROWS
from sentence_distill.student.figures import GlueFigures, GlueScores, HeldOut, ModelFigures, Rates, SpeedRecord, Timed
from sentence_distill.student.metrics import too_few


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    value: float | None = None
    """By which the column is sorted; None is always last."""
    best: bool = False
    notes: tuple[int, ...] = ()
    """Numbers of footnotes."""
    detail: str = ""
    """In small letters below the text."""


EMPTY = Cell("")


@dataclass(frozen=True)
class Column:
    """Head of a column, with a second line."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Rows:
    """Rows that stay together however the table is sorted; the first cell of each is its name."""

    title: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table with groups of rows."""

    caption: str
    columns: Sequence[Column]
    groups: Sequence[Rows]


def number(value: float | None, form: str = ",.0f") -> Cell:
    """Return a cell for a number; an empty one for None."""
    return EMPTY if value is None else Cell(format(value, form), value)


# Fidelity.

_SCORES = (
    ("cosine", "cosine to the teacher, held out"),
    ("mean_vector_cosine", "the same of one constant vector"),
    ("rank_agreement", "rank agreement of similarities, held out"),
    ("recall_at_10", "recall of the teacher's 10 nearest neighbors, held out"),
    ("recall_at_10_among_100", "the same among the model's 100 nearest"),
    ("mse", "mean squared error, held out"),
)


def fidelity_table(models: Mapping[str, ModelFigures]) -> Table:
    """Tabulate all single figures, a column per model."""
    held_out = [model.held_out or HeldOut() for model in models.values()]
    lines: list[tuple[str, list[Cell]]] = []
    for key, title in _SCORES:
        cells = [number(getattr(scores, key), ".4g") for scores in held_out]
        if key.startswith("recall"):
            # In a record of an earlier training it may stand all the same.
            few = [too_few(scores.rows) for scores in held_out]
            why = few if key == "recall_at_10" else [""] * len(few)
            cells = [Cell(why[place]) if few[place] else cell for place, cell in enumerate(cells)]
        lines.append((title, cells))
    figures = list(models.values())
    lines += [
        ("held-out sentences", [number(scores.rows) for scores in held_out]),
        ("STS-B, Spearman, no fine-tuning", [number(model.sts_spearman, ".4f") for model in figures]),
        ("sentences per second", [number(model.sentences_per_second) for model in figures]),
        ("parameters", [number(model.size.parameters if model.size else None) for model in figures]),
        ("size on disk, MB", [number(model.size.megabytes if model.size else None, ",.1f") for model in figures]),
    ]
    rows = [[Cell(title), *cells] for title, cells in lines if any(cell.text for cell in cells)]
    heads = [Column("measure", numeric=False), *(Column(name) for name in models)]
    return Table("Fidelity, speed and size", heads, [Rows("", rows)])


# GLUE.

METRICS = {"matthews": "Matthews", "accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}
_STUDENTS = [row for row in ROWS if row not in ("majority", "teacher-frozen", "teacher")]


class GlueColumn(NamedTuple):
    """A dev set of a task and a metric."""

    task: str
    split: str
    metric: str

    @property
    def name(self) -> str:
        """Name of the set: MNLI has two."""
        return set_name(self.task, self.split)

    def percent(self, results: Sequence[GlueScores], fraction: float = 1.0) -> list[float]:
        """Return the scores of models trained on a fraction of the examples, one per seed."""
        found = [one.scores.get(self.split, {}).get(self.metric) for one in results if one.fraction == fraction]
        return [100 * value for value in found if value is not None]


GLUE_COLUMNS = [
    GlueColumn(task.name, split, metric) for task in TASKS.values() for split in task.dev for metric in task.metrics
]
FIRST_COLUMNS = [GlueColumn(task.name, task.dev[0], task.metrics[0]) for task in TASKS.values()]
"""One column per task: its first dev set and metric."""


class PublishedSystem(msgspec.Struct, kw_only=True):
    """Figures on GLUE as a system's authors published them.

    Only figures whose metric and split the source names are here.
    """

    name: str
    source: str
    split: str
    """"test" (the leaderboard's, with hidden labels) or "dev"."""
    scores: dict[str, float]
    """In percent, by set and metric."""
    note: str = ""


@cache
def published() -> list[PublishedSystem]:
    """Read the published systems."""
    content = (Path(__file__).parent / "templates" / "published.json").read_bytes()
    return msgspec.json.decode(content, type=list[PublishedSystem])


def glue_rows(glue: GlueFigures) -> dict[str, dict[str, list[GlueScores]]]:
    """Return the rows of glue.json that are known, in the order of the table."""
    return {row: glue.rows[row] for row in ROWS if row in glue.rows}


def glue_table(glue: GlueFigures, notes: Mapping[str, int]) -> Table | None:
    """Tabulate the rows of glue.json with all training examples, and published systems; None if no row has a result.

    Args:
        glue: content of glue.json.
        notes: number of the footnote of each task that has one.
    """
    measured = {
        row: {column: values for column in GLUE_COLUMNS if (values := column.percent(tasks.get(column.task, [])))}
        for row, tasks in glue_rows(glue).items()
    }
    columns = [column for column in GLUE_COLUMNS if any(column in found for found in measured.values())]
    if not columns:
        return None
    ours = [measured[row] for row in _STUDENTS if row in measured]
    # As they are shown; the best of a single row is no news.
    students = {
        column: [round(statistics.fmean(found[column]), 1) for found in ours if column in found] for column in columns
    }

    def cell(row: str, column: GlueColumn) -> Cell:
        if not (values := measured[row].get(column)):
            return EMPTY
        mean = statistics.fmean(values)
        others = students[column]
        best = row in _STUDENTS and len(others) > 1 and round(mean, 1) == max(others)
        marks = (notes[column.task],) if column.task in notes else ()
        detail = f"± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return Cell(f"{mean:.1f}", mean, best, marks, detail)

    rows = [[Cell(ROWS[row]), *(cell(row, column) for column in columns)] for row in measured if measured[row]]
    theirs = []
    for system in published():
        scores = (system.scores.get(f"{column.name} {column.metric}") for column in columns)
        name = Cell(f"{system.name}, {system.split}", detail=system.source)
        theirs.append([name, *(number(score, ".1f") for score in scores)])
    heads = [Column("system", numeric=False), *(Column(column.name, METRICS[column.metric]) for column in columns)]
    return Table("GLUE scores in percent", heads, [Rows("Measured here, on dev", rows), Rows("Published", theirs)])


# Speed.

ONE, MANY = 1, 128
"""Sentences of a call that a service makes, and of one of a batch job."""


def by_quality(speed: SpeedRecord) -> list[tuple[str, Timed]]:
    """Return contenders by falling quality, numbered; in their order in the file if none is known."""
    ordered = sorted(speed.contenders.items(), key=lambda item: -(item[1].sts_spearman or 0.0))
    return [(f"{place}. {name}", costs) for place, (name, costs) in enumerate(ordered, start=1)]


def speed_table(speed: SpeedRecord) -> Table:
    """Tabulate all contenders with the most threads, best quality first, numbered as in the charts."""
    threads = max(speed.threads)
    rows = []
    for name, costs in by_quality(speed):
        rates = costs.threads.get(threads, Rates())
        latency = rates.latency_ms
        cells = (
            number(costs.sts_spearman, ".3f"),
            number(rates.by_batch.get(ONE)),
            number(rates.by_batch.get(MANY)),
            number(latency.p50 if latency else None, ",.2f"),
            number(latency.p99 if latency else None, ",.2f"),
            number(costs.startup_seconds, ",.1f"),
            number(costs.peak_megabytes),
            number(costs.megabytes, ",.1f"),
            number(costs.parameters and costs.parameters / 1e6, ",.1f"),
        )
        rows.append([Cell(name), *cells])
    heads = [
        Column("model", numeric=False),
        Column("STS-B", "Spearman"),
        Column("one per call", "sentences/s"),
        Column(f"{MANY} per call", "sentences/s"),
        Column("latency", "median, ms"),
        Column("latency", "p99, ms"),
        Column("start", "s"),
        Column("memory", "peak, MB"),
        Column("on disk", "MB"),
        Column("weights", "M"),
    ]
    return Table(f"Models, with {threads} thread{'s' if threads != 1 else ''}", heads, [Rows("", rows)])


def rates_table(speed: SpeedRecord) -> Table:
    """Tabulate sentences per second by threads, by sentences per call, and by tokens per sentence."""
    settings = [
        (name, threads, costs.threads.get(threads, Rates()))
        for name, costs in by_quality(speed)
        for threads in speed.threads
    ]
    batches = sorted({size for _, _, rates in settings for size in rates.by_batch})
    lengths = sorted({length for _, _, rates in settings for length in rates.by_length})
    rows = []
    for name, threads, rates in settings:
        cells = [number(rates.by_batch.get(size)) for size in batches]
        cells += [number(rates.by_length.get(length)) for length in lengths]
        rows.append([Cell(name), number(threads, "d"), *cells])
    heads = [Column("model", numeric=False), Column("threads"), *(Column(f"{size}", "per call") for size in batches)]
    heads += [Column(f"{length}", "tokens") for length in lengths]
    return Table("Sentences per second", heads, [Rows("", rows)])
