"""A self-contained HTML report of a student, from the figures in its folder; it reads and computes nothing else."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from sentence_distill.data.options import command_line
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.student.charts import Chart, Series, draw, require_matplotlib, swatch
from sentence_distill.student.config import ROWS, ReportConfig
from sentence_distill.student.figures import (
    EVAL,
    GLUE,
    MADE_BY,
    SPEED,
    EvalRecord,
    GlueFigures,
    HeldOut,
    ModelFigures,
    Range,
    Rates,
    SpeedRecord,
    read_figures,
)
from sentence_distill.student.files import find_shards, load_distillation
from sentence_distill.student.metrics import too_few
from sentence_distill.student.run_folder import read_metrics
from sentence_distill.student.tables import (
    FIRST_COLUMNS,
    MANY,
    METRICS,
    ONE,
    Cell,
    Column,
    Rows,
    Table,
    by_quality,
    fidelity_table,
    glue_rows,
    glue_table,
    published,
    rates_table,
    speed_table,
)

_CURVES = (
    ("train", "loss", "Loss of a batch"),
    ("validation", "cosine", "Held-out cosine"),
    ("validation", "rank_agreement", "Held-out rank agreement"),
    ("train", "learning_rate", "Learning rate"),
    ("train", "sentences_per_second", "Sentences per second"),
    ("train", "wait_share", "Share of the time spent waiting for data"),
)
_MOST_POINTS = 300


@dataclass(frozen=True)
class Card:
    """A headline figure in large letters, with something to compare it with."""

    value: str
    name: str
    compared: str = ""
    notes: tuple[int, ...] = ()


def write_report(config: ReportConfig | None = None, /, **options: Any) -> dict[str, str]:
    """Write the page.

    Args:
        config: student and file; instead of it, its fields may be given as keyword arguments.
        **options: fields of `ReportConfig`.

    Returns:
        What is missing, by section, with how to get it.

    Raises:
        UserError: there is no student, a file of it is damaged, or matplotlib is not installed.
    """
    config = config or ReportConfig(**options)
    require_matplotlib()
    context = gather(config)
    environment = Environment(
        loader=PackageLoader("sentence_distill.student"),
        # What stands in the context is escaped, charts excepted.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(config.out, environment.get_template("report.html.j2").render(context).encode())
    return context["missing"]  # type: ignore[no-any-return]


def gather(config: ReportConfig) -> dict[str, Any]:
    """Return everything that the template shows."""
    folder = config.student
    distillation = load_distillation(folder)
    evaluation = read_figures(folder / EVAL, EvalRecord)
    glue = read_figures(folder / GLUE, GlueFigures) or GlueFigures(rows={})
    speed = read_figures(folder / SPEED, SpeedRecord)
    footnotes = [note.split("=", 1) for note in dict.fromkeys(config.notes)]
    marks = {task: place for place, (task, _) in enumerate(footnotes, start=1)}
    models, unmeasured = _models(folder, distillation, evaluation)
    student = next(iter(models.values()))
    legend, low_data = _low_data(glue, marks)
    teacher = distillation["teacher"]["teacher"]
    context = {
        "name": folder.resolve().name,
        "title": config.title or f"{teacher.rsplit('/', 1)[-1]} distilled into a BiLSTM",
        "published": published(),
        "footnotes": footnotes,
        "cards": _cards(models, evaluation, glue, marks),
        "origin": _origin(distillation, student),
        "options": [(name.replace("_", " "), _shown(value)) for name, value in distillation["training"].items()],
        "history": _history(distillation),
        "curves": _curves(read_metrics(folder)),
        "fidelity": fidelity_table(models),
        "ranges": _range_charts(student.held_out or HeldOut()),
        "unmeasured": unmeasured,
        "glue": glue_table(glue, marks),
        "glue_skipped": glue.skipped,
        "low_data": low_data,
        "low_data_legend": legend,
        "speed": speed_table(speed) if speed else None,
        "rates": rates_table(speed) if speed else None,
        "speed_charts": _speed_charts(speed) if speed else [],
        "speed_skipped": speed.skipped if speed else {},
        "examples": student.examples,
        "environments": _environments(evaluation, glue, speed),
        "commands": _commands(config, distillation, [evaluation, glue, speed]),
    }
    to_make = {name: f"{command} --student {folder}" for name, command in MADE_BY.items()}
    missing = {
        "curves": "" if context["curves"] else "no metrics.jsonl in the folder; sd train-student writes it",
        "fidelity": "" if evaluation and evaluation.student else f"more of it is measured by: {to_make[EVAL]}",
        "glue": "" if context["glue"] else f"not measured yet: {to_make[GLUE]}",
        "low-data": "" if low_data else f"not measured yet: {to_make[GLUE]} --train-fraction 0.01,0.1,1",
        "speed": "" if speed else f"not measured yet: {to_make[SPEED]}",
        "neighbors": "" if student.examples else f"found by: {to_make[EVAL]}, if the shards keep text",
    }
    return {**context, "missing": missing}


def _models(
    folder: Path, distillation: dict[str, Any], evaluation: EvalRecord | None
) -> tuple[dict[str, ModelFigures], dict[str, str]]:
    """Return the figures by model, the student first, and what was not measured.

    If sd eval did not measure it, or on another corpus, the student has the held-out figures of its training.
    """
    trained = msgspec.convert(distillation["metrics"].get("held_out"), HeldOut | None)
    if evaluation is None:
        return {"student": ModelFigures(held_out=trained)}, {}
    models, skipped = dict(evaluation.models), dict(evaluation.skipped)
    name = evaluation.student or "student"
    student = models.pop(name, ModelFigures()) if evaluation.student else ModelFigures()
    if student.held_out and (other := student.held_out.other_corpus):
        skipped["held-out sentences of its own corpus"] = (
            f"{EVAL} has them of {other}, not of what the student was trained on: {MADE_BY[EVAL]} --student {folder}"
        )
        # Of the other models too: figures over other sentences don't stand next to the student's.
        models = {model: msgspec.structs.replace(figures, held_out=None) for model, figures in models.items()}
        student = msgspec.structs.replace(student, held_out=None)
    student = msgspec.structs.replace(student, held_out=student.held_out or trained)
    return {name: student, **{other: figures for other, figures in models.items() if other != name}}, skipped


def _cards(
    models: dict[str, ModelFigures], evaluation: EvalRecord | None, glue: GlueFigures, marks: dict[str, int]
) -> list[Card]:
    """Pick the headline figures, as many as were measured."""
    student = next(iter(models.values()))
    teacher = models.get((evaluation and evaluation.teacher) or "", ModelFigures())
    scores = student.held_out or HeldOut()
    over = f", over {scores.rows:,} sentences" if scores.rows else ""
    found = []
    if scores.cosine is not None:
        floor = scores.mean_vector_cosine
        compared = over.removeprefix(", ") if floor is None else f"one constant vector: {floor:.3f}{over}"
        found.append(Card(f"{scores.cosine:.3f}", "cosine to the teacher, held out", compared))
    if scores.rank_agreement is not None:
        found.append(Card(f"{scores.rank_agreement:.3f}", "rank agreement of similarities", f"teacher: 1{over}"))
    if scores.recall_at_10 is not None and not too_few(scores.rows):
        recall = f"{100 * scores.recall_at_10:.0f}%"
        found.append(Card(recall, "of the teacher's 10 nearest neighbors found", f"teacher: 100%{over}"))
    if student.sts_spearman is not None:
        compared = "" if teacher.sts_spearman is None else f"teacher: {teacher.sts_spearman:.3f}"
        found.append(Card(f"{student.sts_spearman:.3f}", "STS-B, Spearman, no fine-tuning", compared))
    if rate := student.sentences_per_second:
        theirs = teacher.sentences_per_second
        compared = f"teacher: {theirs:,.0f}, {rate / theirs:.1f} times as many" if theirs else ""
        found.append(Card(f"{rate:,.0f}", "sentences per second", compared))
    # Means over the tasks that the distilled and the scratch row share, by the first metric of each.
    rows = [glue.rows.get(row, {}) for row in ("distilled", "scratch")]
    shared = [column for column in FIRST_COLUMNS if all(column.percent(tasks.get(column.task, [])) for tasks in rows)]
    if shared:
        distilled, scratch = (
            statistics.fmean(statistics.fmean(column.percent(tasks[column.task])) for column in shared)
            for tasks in rows
        )
        notes = tuple(sorted({marks[column.task] for column in shared if column.task in marks}))
        name = f"GLUE dev, mean of {len(shared)} tasks"
        found.append(Card(f"{distilled:.1f}", name, f"from scratch: {scratch:.1f}", notes))
    if size := student.size:
        found.append(Card(f"{size.parameters / 1e6:.1f} M", "parameters", f"{size.megabytes:,.1f} MB on disk"))
    return found


def _origin(distillation: dict[str, Any], figures: ModelFigures) -> list[tuple[str, str]]:
    """Say what the student is, from which teacher and which text."""
    teacher, student, corpus = distillation["teacher"], distillation["student"], distillation["corpus"]
    fingerprint = corpus["fingerprint"]
    layers, width = ", ".join(map(str, teacher["layers"])), fingerprint["dim"] // len(fingerprint["layers"])
    after = "".join(f", {module}" for module in fingerprint.get("modules", []))
    share = distillation["training"].get("train_fraction", 1.0)
    part = f", of which a share of {share:g} was trained on" if share < 1 else ""
    files, size = fingerprint["corpus_files"], fingerprint["corpus_bytes"] / 1e3
    shown = f"{size / 1e3:,.0f} MB" if size >= 1e4 else f"{size:,.0f} kB"
    text = f"{files:,} file{'s' if files != 1 else ''}, {shown} (hash of the content {fingerprint['corpus_content']})"
    count = "one BiLSTM layer" if student["layers"] == 1 else f"{student['layers']} BiLSTM layers"
    facts = [
        ("Teacher", teacher["teacher"]),
        ("Its sentence vectors", f"pooling {teacher['pooling']}, layer {layers}{after}, {width} wide"),
        ("Teacher's weights", ", ".join(teacher["teacher_weights"])),
        ("Corpus", f"{corpus['rows']:,} sentences of {text}{part}"),
        (
            "Student",
            f"{count} of {student['hidden']} units per direction over {student['embedding_dim']}-dimensional word "
            f"embeddings, vocabulary of {student['vocabulary']:,}; {student['pooling']} pooling; "
            f"{student['target_dims'][-1]} dimensions{', of length 1' if student['normalize'] else ''}",
        ),
    ]
    if figures.size:
        words = student["vocabulary"] * student["embedding_dim"]
        facts.append(("Parameters", f"{figures.size.parameters:,}, of which {words:,} are word embeddings"))
    if history := distillation.get("history"):
        facts.append(("Training", f"{history[-1]['step']:,.0f} steps, {history[-1]['epoch']:.3g} epochs"))
    return facts


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if value is None:
        return "–"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _history(distillation: dict[str, Any]) -> Table | None:
    """Tabulate the validations of the training; None if there was none."""
    history = distillation.get("history", [])
    if not history:
        return None
    names = [name for name in ("epoch", "loss", "cosine", "rank_agreement", "mse") if name in history[0]]
    best = max(entry["cosine"] for entry in history)
    rows = [
        [Cell(f"{entry['step']:,.0f}", entry["step"])]
        + [Cell(f"{entry[n]:.4g}", entry[n], best=n == "cosine" and entry[n] == best) for n in names]
        for entry in history
    ]
    heads = [Column("step"), *(Column(name.replace("_", " ")) for name in names)]
    held_out = distillation["metrics"].get("held_out", {}).get("rows")
    over = f"{held_out:,} held-out sentences" if held_out else "held-out sentences"
    return Table(f"Validations on {over}", heads, [Rows("", rows)])


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
        ("by-length", "Cosine by length of the sentence", "tokens", held_out.by_length),
        ("by-frequency", "Cosine by the sentence's rarest token", "how often training saw it", held_out.by_frequency),
    ):
        if parts:
            names = [_range(part) for part in parts]
            series = Series("student", [(float(place), part.cosine) for place, part in enumerate(parts)])
            summary = "; ".join(f"{name}: {part.cosine:.3f}" for name, part in zip(names, parts, strict=True))
            charts.append(draw(key, title, [series], x=x, y="", categories=names, summary=summary))
    return charts


def _range(part: Range) -> str:
    def short(count: int) -> str:
        for unit, letter in ((1_000_000, "M"), (1_000, "k")):
            if count >= 10 * unit:
                return f"{count / unit:.0f}{letter}"
        return str(count)

    if part.most is None:
        return f"{short(part.least)}+"
    return short(part.least) if part.least == part.most else f"{short(part.least)}–{short(part.most)}"


def _low_data(glue: GlueFigures, marks: dict[str, int]) -> tuple[list[tuple[str, str]], list[Chart]]:
    """Draw score against number of examples for each task that was fine-tuned on fractions, with a legend of rows."""
    charts: list[Chart] = []
    shown: dict[str, None] = {}
    for column in FIRST_COLUMNS:
        rows = {row: tasks.get(column.task, []) for row, tasks in glue_rows(glue).items()}
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
            shown |= dict.fromkeys(rows)
            title = column.name + (f" [{marks[column.task]}]" if column.task in marks else "")
            y = f"{METRICS[column.metric]}, %"
            charts.append(draw(f"low-{len(charts)}", title, lines, x="training examples", y=y, log_x=True))
    return [(ROWS[row], swatch(f"row-{row}", list(ROWS).index(row))) for row in ROWS if row in shown], charts


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
    titles = ("figures of", "date", "processor", "cores", "system", "Python", "packages")
    heads = [Column(title, numeric=False) for title in titles]
    return Table("Where the figures are from", heads, [Rows("", rows)]) if rows else None


class _Command(msgspec.Struct):
    """What is read of the record of a run."""

    command: str = ""


def _commands(
    config: ReportConfig, distillation: dict[str, Any], figures: Sequence[EvalRecord | GlueFigures | SpeedRecord | None]
) -> list[str]:
    """Return the commands as they were given, as far as they are recorded."""
    try:
        sources = find_shards(distillation, config.student) / "sources.json"
        embed = msgspec.json.decode(sources.read_bytes(), type=_Command).command
    except (OSError, msgspec.MsgspecError):
        embed = ""
    measured = [one.command for one in figures if one]
    found = [embed, str(distillation.get("command", "")), *measured, command_line("report", config)]
    return [command for command in found if command]
