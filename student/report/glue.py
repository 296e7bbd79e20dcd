"""GLUE in a report: the rows of glue.json beside published systems, and scores by number of training examples."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sentence_distill.data.glue import TASKS, set_name
from sentence_distill.data.published import PUBLISHED, Score
from sentence_distill.student.config import ROWS
from sentence_distill.student.report.charts import EMPTY, Cell, Chart, Column, Rows, Series, Table, draw, swatch

_STUDENTS = [row for row in ROWS if row not in ("majority", "teacher-frozen", "teacher")]
_METRICS = {"matthews": "Matthews", "accuracy": "accuracy", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}


@dataclass(frozen=True)
class Measured:
    """Scores of one row in one column, in percent, one for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def glue_table(glue: dict[str, Any], notes: Mapping[str, int]) -> Table | None:
    """Rows of glue.json with all training examples, and published systems.

    Args:
        glue: content of glue.json.
        notes: number of the footnote of each task that has one.

    Returns:
        None where no row has a result.
    """
    measured = {row: _by_column(tasks, notes) for row, tasks in _known_rows(glue)}
    columns = [column for column in _columns() if any(column in scores for scores in measured.values())]
    if not columns:
        return None
    best = {column: _best(measured, column) for column in columns}
    ours = [
        [Cell(ROWS[row]), *(_cell(scores.get(column), column, best[column], row, notes) for column in columns)]
        for row, scores in measured.items()
        if scores
    ]
    heads = [Column("system", numeric=False), *(Column(task, _METRICS[metric]) for task, metric in columns)]
    groups = [Rows("Measured here, on dev", ours), Rows("Published", _published(columns))]
    return Table("GLUE scores in percent", heads, groups)


def headline(glue: dict[str, Any], notes: Mapping[str, int]) -> tuple[dict[str, float], int, tuple[int, ...]]:
    """Means over the tasks that the distilled and the scratch row share, each task its first metric's mean.

    Returns:
        means: by row; none where they share no task.
        tasks: how many they are of.
        notes: footnotes of these tasks.
    """
    found = {row: _by_column(tasks, notes) for row, tasks in _known_rows(glue) if row in ("distilled", "scratch")}
    columns = [column for column in _first_columns() if all(column in scores for scores in found.values())]
    if len(found) < 2 or not columns:
        return {}, 0, ()
    means = {row: statistics.fmean(scores[column].mean for column in columns) for row, scores in found.items()}
    numbers = sorted({notes[task_of(column)] for column in columns if task_of(column) in notes})
    return means, len(columns), tuple(numbers)


def low_data_charts(glue: dict[str, Any], notes: Mapping[str, int]) -> list[Chart]:
    """For each task that was fine-tuned on shares of its examples, score against their number, a line a row."""
    charts: list[Chart] = []
    for column in _first_columns():
        task = task_of(column)
        rows = {row: tasks[task] for row, tasks in _known_rows(glue) if _has_shares(tasks.get(task, []))}
        examples = _examples(rows.values())
        lines = [_line(row, results, column, examples) for row, results in rows.items()]
        if any(line.points for line in lines):
            mark = f" [{notes[task]}]" if task in notes else ""
            y = f"{_METRICS[column[1]]}, %"
            name = f"low-{len(charts)}"
            charts.append(draw(name, column[0] + mark, lines, x="training examples", y=y, log_x=True))
    return charts


def low_data_legend(glue: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and line of each row in the low-data charts."""
    shown = [row for row, tasks in _known_rows(glue) if any(_has_shares(results) for results in tasks.values())]
    return [(ROWS[row], swatch(f"row-{row}", _colour(row))) for row in shown]


def task_of(column: Score) -> str:
    """The task of a column."""
    return "MNLI" if column[0].startswith("MNLI") else column[0]


def _colour(row: str) -> int:
    return list(ROWS).index(row)


def _known_rows(glue: dict[str, Any]) -> Iterator[tuple[str, dict[str, list[dict[str, Any]]]]]:
    rows = dict(glue.get("rows", {}))
    yield from ((row, rows[row]) for row in ROWS if row in rows)


def _columns() -> list[Score]:
    return [
        (set_name(task.name, split), metric) for task in TASKS.values() for split in task.dev for metric in task.metrics
    ]


def _first_columns() -> list[Score]:
    """One column a task: its first dev set and metric."""
    return [(set_name(task.name, task.dev[0]), task.metrics[0]) for task in TASKS.values()]


def _split(column: Score) -> str:
    return next(split for split in TASKS[task_of(column)].dev if set_name(task_of(column), split) == column[0])


def _by_column(tasks: dict[str, list[dict[str, Any]]], notes: Mapping[str, int]) -> dict[Score, Measured]:
    measured = {}
    for column in _columns():
        results = [result for result in tasks.get(task_of(column), []) if result.get("fraction", 1.0) == 1]
        if values := _values(results, _split(column), column[1]):
            measured[column] = Measured(values)
    return measured


def _values(results: Sequence[dict[str, Any]], split: str, metric: str) -> tuple[float, ...]:
    found = (result["scores"].get(split, {}).get(metric) for result in results)
    return tuple(100 * value for value in found if value is not None)


def _best(measured: Mapping[str, Mapping[Score, Measured]], column: Score) -> float | None:
    """The best mean of our student's rows, as it is shown."""
    students = [scores[column] for row, scores in measured.items() if row in _STUDENTS and column in scores]
    return max(round(one.mean, 1) for one in students) if len(students) > 1 else None


def _cell(measured: Measured | None, column: Score, best: float | None, row: str, notes: Mapping[str, int]) -> Cell:
    if measured is None:
        return EMPTY
    detail = "" if measured.deviation is None else f"± {measured.deviation:.1f}"
    marks = (notes[task_of(column)],) if task_of(column) in notes else ()
    is_best = row in _STUDENTS and round(measured.mean, 1) == best
    return Cell(f"{measured.mean:.1f}", measured.mean, is_best, marks, detail)


def _published(columns: Sequence[Score]) -> list[list[Cell]]:
    rows = []
    for system in PUBLISHED:
        name = Cell(f"{system.name}, {system.split}", detail=system.source)
        scores = (system.scores.get(column) for column in columns)
        rows.append([name, *(EMPTY if score is None else Cell(f"{score:.1f}", score) for score in scores)])
    return rows


def _has_shares(results: Sequence[dict[str, Any]]) -> bool:
    """Whether a row of a task was fine-tuned on less than all examples, too."""
    return any(result.get("fraction", 1.0) < 1 for result in results)


def _examples(rows: Iterable[Sequence[dict[str, Any]]]) -> dict[float, int]:
    """Number of a task's examples by their share; rows that learn from a teacher count augmented copies as well."""
    found: dict[float, int] = {}
    for result in (result for results in rows for result in results):
        fraction, examples = result.get("fraction", 1.0), int(result["examples"])
        found[fraction] = min(examples, found.get(fraction, examples))
    return found


def _line(row: str, results: Sequence[dict[str, Any]], column: Score, examples: Mapping[float, int]) -> Series:
    """Mean score by number of examples."""
    by_share = {
        fraction: [result for result in results if result.get("fraction", 1.0) == fraction]
        for fraction in sorted(examples)
    }
    measured = {
        fraction: Measured(values)
        for fraction, group in by_share.items()
        if (values := _values(group, _split(column), column[1]))
    }
    points = [(float(examples[fraction]), one.mean) for fraction, one in measured.items()]
    deviations = [one.deviation or 0.0 for one in measured.values()]
    return Series(ROWS[row], points, colour=_colour(row), deviations=deviations if any(deviations) else ())
