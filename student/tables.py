"""Tables of figures, for a student's report and its card, and the templates that lay them out."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jinja2
import msgspec

from sentence_distill.data.glue import TASKS, set_name
from sentence_distill.student.config import ROWS
from sentence_distill.student.figures import (
    OWN_TEXT,
    GlueFigures,
    GlueScores,
    HeldOut,
    ModelFigures,
    Range,
    Rates,
    SpeedRecord,
    Timed,
    too_few,
)

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("sentence_distill.student"),
    # What stands in a page is escaped, charts excepted.
    autoescape=jinja2.select_autoescape(["html.j2"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **context: Any) -> str:
    """Fill in a template of the package; those named *.html.j2 escape what they are given."""
    return _TEMPLATES.get_template(template).render(context)


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


@dataclass(frozen=True)
class Column:
    """Head of a column, with a second line."""

    title: str
    unit: str = ""
    numeric: bool = True


Rows = Sequence[Sequence[Cell]]
"""The first cell of each row is its name."""


@dataclass(frozen=True)
class Table:
    """A table; the rows of a group, by its title, stay together however the table is sorted."""

    caption: str
    columns: Sequence[Column]
    groups: Mapping[str, Rows]
    note: str = ""
    """A sentence below the table."""


def number(value: float | None, form: str = ",.0f") -> Cell:
    """Return a cell for a number; an empty one for None."""
    return Cell("") if value is None else Cell(format(value, form), value)


# Quality.

_SCORES = {
    "cosine": "cosine to the teacher",
    "mean_vector_cosine": "baseline: one constant vector",
    "rank_agreement": "rank agreement of similarities",
    "recall_at_10": "recall@10 of the teacher's nearest neighbors",
    "recall_at_10_among_100": "recall@10 within the top 100",
    "mse": "mean squared error",
}
_HELD_OUT = (
    "Training never saw the held-out sentences. Vectors are compared with the teacher's, so the teacher itself would "
    "score 1, with an error of 0."
)


def quality_table(models: Mapping[str, ModelFigures]) -> Table:
    """Tabulate STS-B and agreement with the teacher, a column per model; there are no rows if nothing is known."""

    def score(key: str, held_out: HeldOut) -> Cell:
        # Recall over too few sentences may stand in a record of an earlier training all the same.
        if key.startswith("recall") and too_few(held_out.rows):
            return Cell("")
        return number(getattr(held_out, key), ".3g" if key == "mse" else ".4f")

    held_out = [model.held_out or HeldOut() for model in models.values()]
    lines = {title: [score(key, scores) for scores in held_out] for key, title in _SCORES.items()}
    lines["held-out sentences"] = [number(scores.rows) for scores in held_out]
    note = _HELD_OUT if any(cell.text for cells in lines.values() for cell in cells) else ""
    sts = {"STS-B, Spearman, no fine-tuning": [number(model.sts_spearman, ".4f") for model in models.values()]}
    return _by_model("STS-B, and agreement with the teacher", models, sts | lines, note)


def size_table(models: Mapping[str, ModelFigures]) -> Table:
    """Tabulate speed and size, a column per model; there are no rows if nothing is known."""
    figures = models.values()
    lines = {
        "sentences per second": [number(model.sentences_per_second) for model in figures],
        "parameters": [number(model.size.parameters if model.size else None) for model in figures],
        "size on disk, MB": [number(model.size.megabytes if model.size else None, ",.1f") for model in figures],
    }
    timed: dict[str, list[str]] = {}
    for name, model in models.items():
        if model.sentences_per_second and model.timed_as:
            timed.setdefault(model.timed_on or "", []).append(f"{model.timed_as} ({name})")
    notes = [
        f"Speed measured{f' on {machine}' if machine else ''}: {', '.join(ways)}." for machine, ways in timed.items()
    ]
    return _by_model("Speed and size", models, lines, " ".join(notes))


def _by_model(
    caption: str, models: Mapping[str, ModelFigures], lines: Mapping[str, Sequence[Cell]], note: str
) -> Table:
    rows = [[Cell(title), *cells] for title, cells in lines.items() if any(cell.text for cell in cells)]
    return Table(caption, [Column("measure", numeric=False), *map(Column, models)], {"": rows}, note)


def corpora_table(models: Mapping[str, ModelFigures]) -> Table:
    """Tabulate the cosine on the held-out sentences of each corpus; there are no rows if there was only one."""
    held_out = {name: model.held_out for name, model in models.items() if model.held_out and model.held_out.by_corpus}
    found = {name: {each.name: each for each in scores.by_corpus} for name, scores in held_out.items()}
    rows = []
    for corpus, title in plain_names(corpus for one in found.values() for corpus in one).items():
        values = [one.get(corpus) for one in found.values()]
        sentences = next(value.rows for value in values if value)
        rows.append(
            [Cell(title), number(sentences), *(number(value.cosine if value else None, ".3f") for value in values)]
        )
    heads = [Column("cosine to the teacher", name if len(found) > 1 else "") for name in found]
    return Table(
        "Held-out sentences by corpus", [Column("corpus", numeric=False), Column("sentences"), *heads], {"": rows}
    )


def probe_tables(models: Mapping[str, ModelFigures]) -> list[Table]:
    """Tabulate agreement on other text, word order, and SentEval's tasks, as far as they were measured."""
    found = []

    def add(caption: str, first: str, measures: Sequence[str], cells: Mapping[str, Sequence[Cell]]) -> None:
        """Add a table, without the columns that no model has anything in: a teacher does not agree with itself."""
        if cells:
            columns = [(name, measure) for name in models for measure in measures]
            kept = [place for place in range(len(columns)) if any(line[place].text for line in cells.values())]
            several = len({columns[place][0] for place in kept}) > 1
            heads = [Column(*columns[place]) if several else Column(columns[place][1]) for place in kept]
            rows = [[Cell(title), *(line[place] for place in kept)] for title, line in cells.items()]
            found.append(Table(caption, [Column(first, numeric=False), *heads], {"": rows}))

    def lines(of: Callable[[ModelFigures], Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Gather what the models have under each title, None where a model has nothing."""
        titles = dict.fromkeys(title for model in models.values() for title in of(model))
        return {title: [of(model).get(title) for model in models.values()] for title in titles}

    def numbers(values: Sequence[Any], names: Sequence[str]) -> list[Cell]:
        return [number(value and getattr(value, name), ".3f") for value in values for name in names]

    texts = {title: values for title, values in lines(lambda model: model.texts).items() if title != OWN_TEXT}
    titles = plain_names(texts)
    names = ("cosine", "recall_at_10", "recall_at_10_in_teachers_index")
    heads = ["cosine to the teacher", "recall@10", "recall@10 in the teacher's index"]
    add("Other text", "text", heads, {titles[name]: numbers(values, names) for name, values in texts.items()})
    orders = lines(lambda model: model.word_order)
    heads = ["cosine of the two", "rank correlation with the teacher's cosines"]
    cells = {title: numbers(values, ("cosine", "agreement")) for title, values in orders.items()}
    add("A sentence and a copy with one change", "change", heads, cells)
    tasks = lines(
        lambda model: {f"{task}, {name}": x for task, scores in model.transfer.items() for name, x in scores.items()}
    )
    cells = {title: [number(value, ".3f") for value in values] for title, values in tasks.items()}
    add("SentEval tasks, frozen vectors", "task, metric", ["score"], cells)
    return found


def range_tables(held_out: HeldOut) -> list[Table]:
    """Tabulate the held-out cosine by length, and by how often training saw the rarest token."""
    return [
        Table(
            caption,
            [Column(first, numeric=False), *(Column(range_name(part)) for part in parts)],
            {"": [[Cell("cosine to the teacher"), *(number(part.cosine, ".3f") for part in parts)]]},
        )
        for caption, first, parts in (
            ("Cosine by sentence length", "tokens", held_out.by_length),
            ("Cosine by the sentence's rarest token", "times seen in training", held_out.by_frequency),
        )
        if parts
    ]


def range_name(part: Range) -> str:
    """Name a range of counts, as "9–16", "49+" or "896–879k"."""

    def short(count: int) -> str:
        for unit, letter in ((1_000_000, "M"), (1_000, "k")):
            if count >= 10 * unit:
                return f"{count / unit:.0f}{letter}"
        return str(count)

    if part.most is None:
        return f"{short(part.least)}+"
    return short(part.least) if part.least == part.most else f"{short(part.least)}–{short(part.most)}"


_FORMATS = (
    *(".txt", ".text", ".md", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"),
    *(".gz", ".bz2", ".xz", ".zst", ".lz4"),
)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return corpora and texts without folders and file formats, by their full names; those that clash keep theirs."""

    def plain(name: str) -> str:
        path = PurePosixPath(name)
        while path.suffix.lower() in _FORMATS:
            path = path.with_suffix("")
        return path.name or name

    found = {name: plain(name) for name in names}
    uses = Counter(found.values())
    return {name: short if uses[short] == 1 else name for name, short in found.items()}


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


_COLUMNS = [
    GlueColumn(task.name, split, metric) for task in TASKS.values() for split in task.dev for metric in task.metrics
]
FIRST_COLUMNS = [GlueColumn(task.name, task.dev[0], task.metrics[0]) for task in TASKS.values()]
"""One column per task: its first dev set and metric."""


class PublishedSystem(msgspec.Struct, kw_only=True):
    """Figures on GLUE as a system's authors published them: only those whose metric and split the source names."""

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


def glue_table(glue: GlueFigures, notes: Mapping[str, int]) -> Table | None:
    """Tabulate the rows of glue.json with all training examples, and published systems; None if no row has a result.

    `notes` has the number of the footnote of each task that has one.
    """
    measured = {
        row: {column: values for column in _COLUMNS if (values := column.percent(glue.rows[row].get(column.task, [])))}
        for row in ROWS
        if row in glue.rows
    }
    columns = [column for column in _COLUMNS if any(column in found for found in measured.values())]
    if not columns:
        return None

    ours = [measured[row] for row in _STUDENTS if row in measured]

    def cell(row: str, column: GlueColumn) -> Cell:
        if not (values := measured[row].get(column)):
            return Cell("")
        # As they are shown; the best of a single row is no news.
        students = [round(statistics.fmean(found[column]), 1) for found in ours if column in found]
        mean = statistics.fmean(values)
        best = row in _STUDENTS and len(students) > 1 and round(mean, 1) == max(students)
        marks = (notes[column.task],) if column.task in notes else ()
        return Cell(f"{mean:.1f}", mean, best, marks, f"± {statistics.stdev(values):.1f}" if len(values) > 1 else "")

    rows = [[Cell(ROWS[row]), *(cell(row, column) for column in columns)] for row in measured if measured[row]]
    theirs = []
    for system in published():
        scores = (system.scores.get(f"{column.name} {column.metric}") for column in columns)
        name = Cell(f"{system.name}, {system.split}", detail=system.source)
        theirs.append([name, *(number(score, ".1f") for score in scores)])
    heads = [Column("system", numeric=False), *(Column(column.name, METRICS[column.metric]) for column in columns)]
    return Table("GLUE scores in percent", heads, {"Measured here, on dev": rows, "Published": theirs})


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

    def cells(costs: Timed) -> Iterator[Cell]:
        rates = costs.threads.get(threads, Rates())
        latency = rates.latency_ms
        yield number(costs.sts_spearman, ".3f")
        yield number(rates.by_batch.get(ONE))
        yield number(rates.by_batch.get(MANY))
        yield number(latency.p50 if latency else None, ",.2f")
        yield number(latency.p99 if latency else None, ",.2f")
        yield number(costs.startup_seconds, ",.1f")
        yield number(costs.peak_megabytes)
        yield number(costs.megabytes, ",.1f")
        yield number(costs.parameters and costs.parameters / 1e6, ",.1f")

    heads = [
        Column("model", "dtype and backend", numeric=False),
        Column("STS-B", "Spearman"),
        Column("sentences/s", f"{ONE} per call"),
        Column("sentences/s", f"{MANY} per call"),
        Column("latency", "median, ms"),
        Column("latency", "p99, ms"),
        Column("start-up", "s"),
        Column("memory", "peak, MB"),
        Column("on disk", "MB"),
        Column("parameters", "M"),
    ]
    rows = [[Cell(name), *cells(costs)] for name, costs in by_quality(speed)]
    return Table(f"Models on {threads} thread{'s' if threads != 1 else ''}", heads, {"": rows}, _measured_on(speed))


def _measured_on(speed: SpeedRecord) -> str:
    """Name the machine, the day and the text that speed was measured on."""
    here = speed.environment
    where = [f"on {here.machine}"] if here and here.machine else []
    where += [f"with {', '.join(here.instructions)}"] if here and here.instructions else []
    where += [f"on {speed.sentences:,} sentences"] if speed.sentences else []
    where += [f"median of {speed.rounds} rounds"] if speed.rounds > 1 else []
    where += [here.date] if here and here.date else []
    return f"Measured {', '.join(where)}." if where else ""


def rates_table(speed: SpeedRecord) -> Table:
    """Tabulate sentences per second by threads, by sentences per call, and by tokens per sentence."""
    settings = [
        (name, threads, costs.threads.get(threads, Rates()))
        for name, costs in by_quality(speed)
        for threads in speed.threads
    ]
    batches = sorted({size for _, _, rates in settings for size in rates.by_batch})
    lengths = sorted({length for _, _, rates in settings for length in rates.by_length})
    rows = [
        [
            *(Cell(name), number(threads)),
            *(number(rates.by_batch.get(size)) for size in batches),
            *(number(rates.by_length.get(length)) for length in lengths),
        ]
        for name, threads, rates in settings
    ]
    heads = [
        Column("model", "dtype and backend", numeric=False),
        Column("threads"),
        *(Column(str(size), "per call") for size in batches),
    ]
    heads += [Column(str(length), "tokens") for length in lengths]
    return Table("Sentences per second", heads, {"": rows})
