"""A self-contained HTML report of a student, from the figures in its folder; it reads and computes nothing else."""

import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from sentence_distill.data.options import command_line
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.pipeline.records import read_sources
from sentence_distill.student.charts import Chart, Series, draw, require_matplotlib, swatch
from sentence_distill.student.config import ROWS, ReportConfig
from sentence_distill.student.figures import (
    EVAL,
    FEWEST_ROWS,
    GLUE,
    MADE_BY,
    SPEED,
    Distillation,
    EvalRecord,
    GlueFigures,
    HeldOut,
    ModelFigures,
    Rates,
    SpeedRecord,
    cosine_on,
    load_distillation,
    quality,
    read_figures,
    too_few,
)
from sentence_distill.student.files import find_shards
from sentence_distill.student.run_folder import read_metrics
from sentence_distill.student.tables import (
    FIRST_COLUMNS,
    MANY,
    METRICS,
    ONE,
    Cell,
    Column,
    Table,
    by_quality,
    corpora_table,
    glue_table,
    number,
    plain_names,
    probe_tables,
    published,
    quality_table,
    range_name,
    rates_table,
    render,
    size_table,
    speed_table,
)

_CURVES = (
    ("train", "loss", "Training loss"),
    ("validation", "cosine", "Held-out cosine"),
    ("validation", "rank_agreement", "Held-out rank agreement"),
    ("train", "learning_rate", "Learning rate"),
    ("train", "sentences_per_second", "Sentences per second"),
    ("train", "wait_share", "Share of time spent waiting for data"),
)
_MOST_POINTS = 300
_ON_CORPUS = cosine_on("")


def write_report(config: ReportConfig) -> dict[str, str]:
    """Write the page; return what is not measured, with how to measure it."""
    require_matplotlib()
    context = gather(config)
    write_atomically(config.out, render("report.html.j2", **context).encode())
    return context["missing"]  # type: ignore[no-any-return]


def gather(config: ReportConfig) -> dict[str, Any]:
    """Return everything that the template shows."""
    folder = config.student
    distillation = load_distillation(folder)
    record = msgspec.convert(distillation, Distillation)
    evaluation = read_figures(folder / EVAL, EvalRecord)
    glue = read_figures(folder / GLUE, GlueFigures) or GlueFigures(rows={})
    speed = read_figures(folder / SPEED, SpeedRecord)
    footnotes = [note.split("=", 1) for note in dict.fromkeys(config.notes)]
    marks = {task: place for place, (task, _) in enumerate(footnotes, start=1)}
    models, skipped = _models(folder, record, evaluation)
    student = next(iter(models.values()))
    held_out = student.held_out or HeldOut()
    legend, low_data = _low_data(glue, marks)
    curves = _curves(read_metrics(folder))
    sources = read_sources(find_shards(distillation, folder))
    commands = [sources and sources.command, record.command]
    commands += [figures.command for figures in (evaluation, glue, speed) if figures]
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "title": config.title,
        "record": record,
        "published": published(),
        "corpora": list(plain_names(record.corpus.fingerprint.get("corpora") or []).values()),
        "footnotes": footnotes,
        "student": student,
        "teacher": models.get(evaluation.teacher or "" if evaluation else "teacher", ModelFigures()),
        "scores": held_out,
        "too_few": too_few(held_out.rows),
        "glue_means": _glue_means(glue, marks),
        "history": _history(record),
        "curves": curves,
        "quality": [one for one in (quality_table(models), corpora_table(models)) if one.groups[""]],
        "probes": probe_tables(models),
        "ranges": _range_charts(held_out),
        "glue": glue_table(glue, marks),
        "low_data": low_data,
        "low_data_legend": legend,
        "sizes": size_table(models),
        "speed": speed_table(speed) if speed else None,
        "rates": rates_table(speed) if speed else None,
        "speed_charts": _speed_charts(speed) if speed else [],
        "environments": _environments(evaluation, glue, speed),
        "fingerprints": _fingerprints(record, student),
        "commands": [*filter(None, commands), command_line("report", config)],
        "skipped": [*skipped.items(), *glue.skipped.items(), *(speed.skipped.items() if speed else ())],
        "task_scores": record.task_scores(),
    }
    return {**context, "missing": _missing(folder, context)}


def _missing(folder: Path, shown: dict[str, Any]) -> dict[str, str]:
    """Return what of a student is not measured, with the command that measures it, or what it takes."""
    student, scores = shown["student"], shown["scores"]

    def command(file: str, options: str = "") -> str:
        return f"{MADE_BY[file]}{options} {shlex.quote(str(folder))}"

    found: dict[str, tuple[Any, str]] = {
        "recall@10": (
            scores.recall_at_10 is not None and not shown["too_few"],
            f"needs at least {FEWEST_ROWS} held-out sentences" if shown["too_few"] else command(EVAL),
        ),
        "STS-B": (student.sts_spearman is not None, command(EVAL, " --sts dev.tsv")),
        "nearest neighbors (if the shards keep text)": (student.examples, command(EVAL)),
        "speed and size": (student.sentences_per_second, command(EVAL)),
        "GLUE": (shown["glue"], command(GLUE)),
        "few labeled examples": (shown["low_data"], command(GLUE, " --train-fraction 0.01,0.1,1")),
    }
    if shown["task_scores"]:
        # The vectors of a fine-tuned student are not to be compared with the teacher's.
        found = {}
    found["training curves"] = (shown["curves"], "metrics.jsonl of sd train-student is not in the folder")
    found["latency, memory, other backends"] = (shown["speed"], command(SPEED))
    return {what: how for what, (known, how) in found.items() if not known}


def _models(
    folder: Path, record: Distillation, evaluation: EvalRecord | None
) -> tuple[dict[str, ModelFigures], dict[str, str]]:
    """Return the figures by model, the student first, and what sd eval skipped, with the reason.

    If sd eval did not measure it, or on another corpus, the student has the held-out figures of its training.
    """
    if evaluation is None:
        return record.models(), {}
    trained = record.models()["student"].held_out
    models, skipped = dict(evaluation.models), dict(evaluation.skipped)
    name = evaluation.student or "student"
    student = models.pop(name, ModelFigures()) if evaluation.student else ModelFigures()
    if student.held_out and (other := student.held_out.other_corpus):
        skipped["held-out sentences of its own corpus"] = (
            f"{EVAL} has them of {other}, not of what the student was trained on: "
            f"{MADE_BY[EVAL]} {shlex.quote(str(folder))}"
        )
        # Of the other models too: figures over other sentences don't stand next to the student's.
        models = {model: msgspec.structs.replace(figures, held_out=None) for model, figures in models.items()}
        student = msgspec.structs.replace(student, held_out=None)
    student = msgspec.structs.replace(student, held_out=student.held_out or trained)
    return {name: student, **{other: figures for other, figures in models.items() if other != name}}, skipped


def _glue_means(glue: GlueFigures, marks: dict[str, int]) -> dict[str, Any] | None:
    """Average the distilled and the scratch row over the tasks that both have, by the first metric of each."""
    rows = {row: glue.rows.get(row, {}) for row in ("distilled", "scratch")}
    shared = [
        column for column in FIRST_COLUMNS if all(column.percent(tasks.get(column.task, [])) for tasks in rows.values())
    ]
    if not shared:
        return None
    means = {
        row: statistics.fmean(statistics.fmean(column.percent(tasks[column.task])) for column in shared)
        for row, tasks in rows.items()
    }
    notes = sorted({marks[column.task] for column in shared if column.task in marks})
    return {**means, "tasks": len(shared), "notes": notes}


def _history(record: Distillation) -> Table | None:
    """Tabulate the validations of the training; None if there was none."""
    if not record.history:
        return None
    first = ("epoch", "loss", "cosine", "mean_over_corpora", "rank_agreement", "mse")
    names = [name for name in first if name in record.history[0]]
    names += [name for name in record.history[0] if name not in (*first, "step", "mean_vector_cosine")]
    decisive = "mean_over_corpora" if "mean_over_corpora" in names else "cosine"
    best = max(map(quality, record.history))
    rows = [
        [number(entry["step"])]
        + [Cell(f"{entry[n]:.4g}", entry[n], best=n == decisive and entry[n] == best) for n in names]
        for entry in record.history
    ]
    corpora = {name: name.removeprefix(_ON_CORPUS) for name in names if name.startswith(_ON_CORPUS)}
    shown = plain_names(corpora.values())
    heads = [Column("step")]
    heads += [Column(shown[corpora[n]], "cosine") if n in corpora else Column(n.replace("_", " ")) for n in names]
    held_out = record.models()["student"].held_out
    over = f"{held_out.rows:,} held-out sentences" if held_out and held_out.rows else "held-out sentences"
    return Table(f"Validation on {over}", heads, {"": rows})


def _curves(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """Draw the curves of a training run, of its metrics.jsonl."""
    charts: list[Chart] = []
    for kind, name, title in _CURVES:
        points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind and name in line]
        # What a small chart can show: each point is the mean of some that follow one another.
        size = -(-len(points) // _MOST_POINTS) or 1
        groups = [points[first : first + size] for first in range(0, len(points), size)]
        thinned = [(statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups]
        if thinned:
            series = Series(title.lower(), thinned, markers=kind == "validation")
            charts.append(draw(f"curve-{len(charts)}", title, [series], x="step", y=""))
    return charts


def _range_charts(held_out: HeldOut) -> list[Chart]:
    """Draw the held-out cosine by length, and by how often training saw the rarest word."""
    charts = []
    for key, title, x, parts in (
        ("by-length", "Cosine by sentence length", "tokens", held_out.by_length),
        ("by-frequency", "Cosine by the sentence's rarest token", "times seen in training", held_out.by_frequency),
    ):
        if parts:
            names = [range_name(part) for part in parts]
            series = Series("student", [(float(place), part.cosine) for place, part in enumerate(parts)])
            summary = "; ".join(f"{name}: {part.cosine:.3f}" for name, part in zip(names, parts, strict=True))
            charts.append(draw(key, title, [series], x=x, y="", categories=names, summary=summary))
    return charts


def _low_data(glue: GlueFigures, marks: dict[str, int]) -> tuple[list[tuple[str, str]], list[Chart]]:
    """Draw score against number of examples for each task that was fine-tuned on fractions, with a legend of rows."""
    charts: list[Chart] = []
    shown: set[str] = set()
    for column in FIRST_COLUMNS:
        rows = {row: glue.rows[row].get(column.task, []) for row in ROWS if row in glue.rows}
        rows = {row: results for row, results in rows.items() if any(one.fraction < 1 for one in results)}
        # Rows that learn from a teacher count augmented copies as well.
        examples: dict[float, int] = {}
        for one in (one for results in rows.values() for one in results):
            examples[one.fraction] = min(one.examples, examples.get(one.fraction, one.examples))
        lines = []
        for row, results in rows.items():
            values = {fraction: column.percent(results, fraction) for fraction in sorted(examples)}
            points = [
                (float(examples[fraction]), statistics.fmean(found)) for fraction, found in values.items() if found
            ]
            deviations = [statistics.stdev(found) if len(found) > 1 else 0.0 for found in values.values() if found]
            color = list(ROWS).index(row)
            lines.append(Series(ROWS[row], points, color, deviations if any(deviations) else ()))
        if any(line.points for line in lines):
            shown |= set(rows)
            title = column.name + (f" [{marks[column.task]}]" if column.task in marks else "")
            y = f"{METRICS[column.metric]}, %"
            charts.append(draw(f"low-{len(charts)}", title, lines, x="training examples", y=y, log_x=True))
    legend = [(title, swatch(f"row-{row}", color)) for color, (row, title) in enumerate(ROWS.items()) if row in shown]
    return legend, charts


def _speed_charts(speed: SpeedRecord) -> list[Chart]:
    """Draw STS-B against speed and size, a point per contender; nothing if no pairs were given."""
    threads, contenders = max(speed.threads), by_quality(speed)
    models = list(dict.fromkeys(costs.model for _, costs in contenders))
    charts = []
    for size, title, x in (
        (ONE, "One sentence per call", "sentences per second, logarithmic"),
        (MANY, f"{MANY} sentences per call", "sentences per second, logarithmic"),
        (None, "Size", "MB on disk, logarithmic"),
    ):
        # Runners of one model can share a point; so do their numbers.
        places: dict[tuple[float, float], list[str]] = {}
        colors: dict[tuple[float, float], int] = {}
        for place, (_, costs) in enumerate(contenders, start=1):
            value = costs.threads.get(threads, Rates()).by_batch.get(size) if size else costs.megabytes
            if value and costs.sts_spearman is not None:
                places.setdefault((value, costs.sts_spearman), []).append(str(place))
                colors[value, costs.sts_spearman] = models.index(costs.model)
        points = [
            Series(f"no. {' and '.join(numbers)}", [point], colors[point], line=False, labels=[", ".join(numbers)])
            for point, numbers in places.items()
        ]
        if points:
            charts.append(draw(f"speed-{size or 'size'}", title, points, x=x, y="STS-B, Spearman", log_x=True))
    return charts


def _environments(evaluation: EvalRecord | None, glue: GlueFigures, speed: SpeedRecord | None) -> Table | None:
    """Tabulate hardware and versions that the files of figures name; None if none does."""
    found = [(EVAL, evaluation.environment)] if evaluation else []
    found += [(GLUE, environment) for environment in glue.environments]
    found += [(SPEED, speed.environment)] if speed else []
    rows = []
    for name, one in found:
        if one:
            versions = ", ".join(f"{package} {version}" for package, version in one.versions.items())
            values = (name, one.date, one.cpu, str(one.cores), one.system, one.python, versions)
            rows.append([Cell(value) for value in values])
    titles = ("file", "date", "CPU", "cores", "system", "Python", "packages")
    heads = [Column(title, numeric=False) for title in titles]
    return Table("Hardware and versions", heads, {"": rows}) if rows else None


def _fingerprints(record: Distillation, student: ModelFigures) -> dict[str, str]:
    """Gather the hashes by which teacher, corpus and student are known again."""
    content = record.corpus.fingerprint.get("corpus_content")
    found = {"Teacher's weights": record.teacher.teacher_weights, "Corpus": [content] if content else []}
    found["Student's weights"] = student.weights
    return {what: ", ".join(hashes) for what, hashes in found.items() if hashes}
