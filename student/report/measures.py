"""Fidelity in a report: headline cards, training curves, a table of models and small charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sentence_distill.student.metrics import too_few
from sentence_distill.student.models import free_name
from sentence_distill.student.report.charts import EMPTY, Cell, Chart, Column, Rows, Series, Table, draw, number
from sentence_distill.student.report.data import EVAL, GLUE, StudentFiles
from sentence_distill.student.report.glue import headline

_CURVES = (
    ("train", "loss", "Loss of a batch"),
    ("validation", "cosine", "Held-out cosine"),
    ("validation", "rank_agreement", "Held-out rank agreement"),
    ("train", "learning_rate", "Learning rate"),
    ("train", "sentences_per_second", "Sentences a second"),
    ("train", "wait_share", "Share of the time spent waiting for data"),
)
_MOST_POINTS = 300
_RECALL = ("recall_at_10", "recall_at_10_among_100")
_SCORES = {
    "cosine": "cosine to the teacher, held out",
    "mean_vector_cosine": "the same of one constant vector",
    "rank_agreement": "rank agreement of similarities, held out",
    "recall_at_10": "recall of the teacher's 10 nearest neighbours, held out",
    "recall_at_10_among_100": "the same among the model's 100 nearest",
    "mse": "mean squared error, held out",
}


@dataclass(frozen=True)
class Card:
    """One headline figure.

    Attributes:
        value: in large letters.
        name: what it is.
        beside: what to compare it with.
        notes: numbers of footnotes.
    """

    value: str
    name: str
    beside: str = ""
    notes: tuple[int, ...] = ()


def is_measured(files: StudentFiles) -> bool:
    """Whether eval.json holds figures of this student; of several models it names the one that it is."""
    return "student" in files.evaluation if "models" in files.evaluation else bool(files.evaluation)


def other_corpus(files: StudentFiles) -> str:
    """The shards that eval.json's held-out sentences are from, where they are not the student's own; "" otherwise."""
    figures = files.evaluation
    student = figures.get("models", {}).get(figures.get("student"), figures)
    return str(student.get("held_out", {}).get("other_corpus", ""))


def measured_models(files: StudentFiles) -> dict[str, dict[str, Any]]:
    """Figures by model, the student first; it is called "student", whatever else was measured beside it.

    Where sd eval did not measure it, or on another corpus, the student has the held-out figures of its training.
    """
    figures = files.evaluation
    own = {"held_out": files.distillation["metrics"].get("held_out", {})}
    if "models" in figures:
        measured = figures["models"]
        if other_corpus(files):
            # Of the other models too: figures over other sentences don't stand beside the student's.
            measured = {name: {**model, "held_out": {}} for name, model in measured.items()}
            measured[figures["student"]] |= own
        models: dict[str, dict[str, Any]] = {"student": measured[figures["student"]] if is_measured(files) else own}
        for name, model in measured.items():
            if name != figures.get("student"):
                models[free_name(name, models)] = model
        return models
    if figures.get("held_out") and not other_corpus(files):
        own = {"held_out": figures["held_out"]}
    models = {"student": own}
    for measure in ("sts_spearman", "sentences_per_second"):
        for name, value in figures.get(measure, {}).items():
            models.setdefault(name, {})[measure] = value
    for name, key in (("student", "size"), ("teacher", "teacher_size")):
        if key in figures:
            models.setdefault(name, {})["size"] = figures[key]
    return models


def cards(files: StudentFiles, notes: Mapping[str, int]) -> list[Card]:
    """Headline figures, as many as were measured.

    Raises:
        UserError: eval.json or glue.json is damaged.
    """
    with files.using(EVAL):
        found = _measured_cards(files)
    with files.using(GLUE):
        means, tasks, marks = headline(files.glue, notes)
    if means:
        beside = f"from scratch: {means['scratch']:.1f}"
        found.append(Card(f"{means['distilled']:.1f}", f"GLUE dev, mean of {tasks} tasks", beside, marks))
    with files.using(EVAL):
        if size := measured_models(files)["student"].get("size"):
            beside = f"{size['megabytes']:,.1f} MB on disk"
            found.append(Card(f"{size['parameters'] / 1e6:.1f} M", "parameters", beside))
    return found


def _measured_cards(files: StudentFiles) -> list[Card]:
    models = measured_models(files)
    student, teacher = models["student"], models.get(files.evaluation.get("teacher", "teacher"), {})
    fidelity, found = student.get("held_out", {}), []
    over = f"over {fidelity['rows']:,} sentences" if "rows" in fidelity else ""
    if "cosine" in fidelity:
        floor = fidelity.get("mean_vector_cosine")
        beside = "" if floor is None else f"one constant vector: {floor:.3f}"
        found.append(Card(f"{fidelity['cosine']:.3f}", "cosine to the teacher, held out", _joined(beside, over)))
    if "rank_agreement" in fidelity:
        agreement = f"{fidelity['rank_agreement']:.3f}"
        found.append(Card(agreement, "rank agreement of similarities", _joined("teacher: 1", over)))
    recall = _score(fidelity, "recall_at_10")
    if recall is not None and not isinstance(recall, str):
        name = "of the teacher's 10 nearest neighbours found"
        found.append(Card(f"{100 * recall:.0f}%", name, _joined("teacher: 100%", over)))
    for key, form, name in (
        ("sts_spearman", ".3f", "STS-B, Spearman, no fine-tuning"),
        ("sentences_per_second", ",.0f", "sentences a second"),
    ):
        if key in student:
            beside = f"teacher: {teacher[key]:{form}}" if key in teacher else ""
            if beside and key == "sentences_per_second":
                beside += f", {student[key] / teacher[key]:.1f} times as many"
            found.append(Card(f"{student[key]:{form}}", name, beside))
    return found


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def curve_charts(metrics: Sequence[dict[str, Any]]) -> list[Chart]:
    """Curves of a training run, of its metrics.jsonl."""
    charts: list[Chart] = []
    for kind, name, title in _CURVES:
        points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind and name in line]
        if points:
            series = Series(title.lower(), _thinned(points), markers=kind == "validation")
            charts.append(draw(f"curve-{len(charts)}", title, [series], x="step", y=""))
    return charts


def fidelity_table(models: Mapping[str, dict[str, Any]]) -> Table:
    """All single figures, a column a model."""
    held_out = {name: model.get("held_out", {}) for name, model in models.items()}
    sizes = {name: model.get("size", {}) for name, model in models.items()}
    lines = [(title, ".4g", [_score(scores, key) for scores in held_out.values()]) for key, title in _SCORES.items()]
    lines += [
        ("held-out sentences", ",.0f", [scores.get("rows") for scores in held_out.values()]),
        ("STS-B, Spearman, no fine-tuning", ".4f", [model.get("sts_spearman") for model in models.values()]),
        ("sentences a second", ",.0f", [model.get("sentences_per_second") for model in models.values()]),
        ("parameters", ",.0f", [size.get("parameters") for size in sizes.values()]),
        ("size on disk, MB", ",.1f", [size.get("megabytes") for size in sizes.values()]),
    ]
    rows = [
        [Cell(title), *(_cell(value, form) for value in values)]
        for title, form, values in lines
        if any(value is not None for value in values)
    ]
    heads = [Column("measure", numeric=False), *(Column(name) for name in models)]
    return Table("Fidelity, speed and size", heads, [Rows("", rows)])


def _score(held_out: Mapping[str, Any], key: str) -> float | str | None:
    """A held-out score, or why there is none."""
    if key == "recall_at_10" and (reason := too_few(held_out.get("rows"))):
        return reason
    return None if key in _RECALL and too_few(held_out.get("rows")) else held_out.get(key)


def _cell(value: float | str | None, form: str) -> Cell:
    if value is None:
        return EMPTY
    return Cell(value) if isinstance(value, str) else number(value, form)


def bucket_charts(models: Mapping[str, dict[str, Any]]) -> list[Chart]:
    """Held-out cosine by length, and by how often training saw the rarest word."""
    charts = []
    for key, title, x in (
        ("by_length", "Cosine by length of the sentence", "tokens"),
        ("by_frequency", "Cosine by the sentence's rarest token", "how often training saw it"),
    ):
        parts = models["student"].get("held_out", {}).get(key)
        if parts:
            names, values = [_range(part) for part in parts], [part["cosine"] for part in parts]
            series = Series("student", [(float(place), value) for place, value in enumerate(values)])
            summary = "; ".join(f"{name}: {value:.3f}" for name, value in zip(names, values, strict=True))
            identifier = key.replace("_", "-")
            charts.append(draw(identifier, title, [series], x=x, y="", categories=names, summary=summary))
    return charts


def _range(part: dict[str, Any]) -> str:
    least, most = part["least"], part["most"]
    if most is None:
        return f"{_short(least)}+"
    return _short(least) if least == most else f"{_short(least)}–{_short(most)}"


def _short(count: int) -> str:
    """A count in few letters, as in 12k."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * unit:
            return f"{count / unit:.0f}{letter}"
    return str(count)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS`, each the mean of some that follow one another: what a small chart can show."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
