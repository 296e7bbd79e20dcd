"""`sd eval` without --glue: fidelity, STS-B, size and speed of models side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.console import write_json
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.pipeline.load import Located
    from sentence_distill.student.evaluate import Measured

_SCORES = {
    "rows": ("held-out sentences", "{:,}"),
    "cosine": ("cosine to the teacher, held out", "{:.4f}"),
    "mean_vector_cosine": ("  the same of one constant vector", "{:.4f}"),
    "mse": ("MSE, held out", "{:.3g}"),
    "rank_agreement": ("rank agreement, held out", "{:.4f}"),
    "recall_at_10": ("recall of the teacher's 10 neighbours", "{:.4f}"),
    "recall_at_10_among_100": ("  the same among the model's first 100", "{:.4f}"),
}
_RECORDED = ("size", "teacher_size", "held_out", "sentences_per_second", "timed_as", "sts_spearman")
_PARTS = {
    "by_length": ("cosine by length: {} tokens", "{:.4f}"),
    "by_frequency": ("cosine by rarest token: seen {} times", "{:.4f}"),
}


def evaluate_intrinsic(
    models: tuple[str, ...],
    shards: Path | None,
    sts: Path | None,
    teacher: str | None,
    json_file: Path,
    *,
    overwrite: bool,
) -> None:
    """Measure, print and write; a single student's card shows the figures too."""
    from sentence_distill.data.glue import load_sts
    from sentence_distill.student.files import is_student

    # All that is cheap to miss is missed before the first model is loaded.
    pairs = load_sts(sts) if sts else None

    from sentence_distill.student.evaluate import is_nothing, measure_models, merge
    from sentence_distill.student.models import find_model, open_model, short_names

    located = [find_model(model) for model in models]
    alone = len(models) == 1 and is_student(models[0])
    names = ["student"] if alone else short_names(models)
    opened = []
    for model, name, found in zip(models, names, located, strict=True):
        progress.log(f"loading {f'student {model}' if alone else model} …")
        opened.append(open_model(found, name))
    measured = measure_models(opened, shards=shards, pairs=pairs, teacher_name=teacher)
    if is_nothing(measured.models):
        reasons = "; ".join(f"{what}: {why}" for what, why in measured.skipped.items())
        raise UserError(f"nothing could be measured, and nothing was written ({reasons})")
    columns = [model.name for model in opened]
    roles = {} if alone else _own(json_file.parent, located, columns, measured)
    old = {} if overwrite or not json_file.exists() else json.loads(json_file.read_text(encoding="utf-8"))
    in_folder = [found for found in located if found.folder.resolve() == json_file.resolve().parent]
    figures = merge(
        old,
        measured.models,
        skipped=measured.skipped,
        roles=roles,
        alone=alone,
        reference=measured.reference,
        trusted=bool(in_folder),
    )
    write_json(json_file, figures)
    _print(measured)
    # Last: a student that others share may be one to read only, and its figures are worth having all the same.
    if alone:
        _record(Path(models[0]), _of_student(figures))


def _of_student(figures: dict[str, Any]) -> dict[str, Any]:
    """What a student's record and card show of the figures over it."""
    recorded = {name: figures[name] for name in _RECORDED if name in figures}
    if other := figures.get("held_out", {}).get("other_corpus"):
        # The card says how it does on sentences of its own corpus.
        del recorded["held_out"]
        click.echo(f"held-out sentences of {other}, not what the student was trained on: its card keeps its own")
    return recorded


def _record(folder: Path, figures: dict[str, Any]) -> None:
    """Let a student's record and card show its figures."""
    from sentence_distill.student.files import CARD, load_distillation
    from sentence_distill.student.model import update_distillation

    try:
        written = update_distillation(folder, metrics={**load_distillation(folder)["metrics"], **figures})
    except OSError as error:
        click.echo(f"{folder} can't be written ({error.strerror}): its record and card stay as they were")
        return
    if not written:
        click.echo(
            f"{folder / CARD} was edited, or is of another version, and stays as it is; without it one is made anew"
        )


def _own(folder: Path, located: list["Located"], columns: list[str], measured: "Measured") -> dict[str, str]:
    """Which columns are the student in whose folder the figures lie, and its teacher; nothing where it is not there."""
    for found, column in zip(located, columns, strict=True):
        if column in measured.teachers and found.folder.resolve() == folder.resolve():
            return {"student": column, "teacher": measured.teachers[column]}
    return {}


def _print(measured: "Measured") -> None:
    from rich.console import Console
    from rich.table import Table

    from sentence_distill.student.metrics import too_few

    models = list(measured.models.values())
    table = Table("measure", *measured.models, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, form: str, values: list[Any]) -> None:
        if any(value is not None for value in values):
            table.add_row(name, *("" if value is None else form.format(value) for value in values))

    held_out = [model.get("held_out", {}) for model in models]
    for score, (name, form) in _SCORES.items():
        row(name, form, [scores.get(score) for scores in held_out])
    for measure, (name, form) in _PARTS.items():
        by_range = [{_range(part): part["cosine"] for part in scores.get(measure, [])} for scores in held_out]
        for part in dict.fromkeys(part for parts in by_range for part in parts):
            row("  " + name.format(part), form, [parts.get(part) for parts in by_range])
    row("STS-B Spearman", "{:.4f}", [model.get("sts_spearman") for model in models])
    row("sentences/s", "{:,.0f}", [model.get("sentences_per_second") for model in models])
    row("parameters", "{:,}", [model["size"]["parameters"] for model in models])
    row("size on disk, MB", "{:.1f}", [model["size"]["megabytes"] for model in models])
    Console().print(table)
    if timed := [f"{name}: {model['timed_as']}" for name, model in measured.models.items() if "timed_as" in model]:
        click.echo(f"timed on the CPU; {', '.join(timed)}")
    # The same sentences are held out for all models.
    for reason in dict.fromkeys(filter(None, (too_few(scores.get("rows")) for scores in held_out))):
        click.echo(f"recall@10: {reason}")
    for what, why in measured.skipped.items():
        click.echo(f"not measured: {what}: {why}")


def _range(part: dict[str, Any]) -> str:
    least, most = part["least"], part["most"]
    if most is None:
        return f"{least:,} and more"
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
