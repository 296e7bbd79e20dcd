"""One page of HTML about a student, of what lies in its folder; it needs nothing from the network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sentence_distill.data.errors import UserError
from sentence_distill.data.published import PUBLISHED
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.student.files import DISTILLATION
from sentence_distill.student.log import METRICS
from sentence_distill.student.model import load_student
from sentence_distill.student.reference import own_shards
from sentence_distill.student.report.charts import require_matplotlib
from sentence_distill.student.report.data import (
    EVAL,
    GLUE,
    SPEED,
    Example,
    StudentFiles,
    nearest_examples,
    read_reference,
)
from sentence_distill.student.report.glue import glue_table, low_data_charts, low_data_legend
from sentence_distill.student.report.measures import (
    bucket_charts,
    cards,
    curve_charts,
    fidelity_table,
    is_measured,
    measured_models,
    other_corpus,
)
from sentence_distill.student.report.origin import commands, environments, history_table, option_rows, origin
from sentence_distill.student.report.speed import rates_table, speed_charts, speed_table

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Footnote:
    """A remark on all figures of a task."""

    number: int
    task: str
    text: str


def write_report(
    folder: Path, out: Path, *, shards: Path | None, title: str | None, notes: Mapping[str, str]
) -> dict[str, str]:
    """Write the page.

    Args:
        folder: of the student.
        out: file to write.
        shards: where held-out sentences are looked for; None takes those that the student was trained on.
        title: of the page; None names the teacher.
        notes: remarks on the figures of GLUE tasks, by task.

    Returns:
        What is missing, by section, with how to get it.

    Raises:
        UserError: there is no student, a file of it is damaged, or matplotlib is not installed.
    """
    require_matplotlib()
    files = StudentFiles.read(folder)
    context = gather(files, shards=shards, title=title, notes=notes)
    write_atomically(out, render(context).encode())
    missing: dict[str, str] = context["missing"]
    return missing


def gather(files: StudentFiles, *, shards: Path | None, title: str | None, notes: Mapping[str, str]) -> dict[str, Any]:
    """All that the template shows; arguments and errors as in `write_report`."""
    footnotes = [Footnote(number, task, text) for number, (task, text) in enumerate(notes.items(), start=1)]
    marks = {note.task: note.number for note in footnotes}
    teacher = files.distillation["teacher"]["teacher"]
    examples, no_examples = _examples(files, shards)
    context = {
        "name": files.folder.resolve().name,
        "title": title or f"{teacher.rsplit('/', 1)[-1]} distilled into a BiLSTM",
        "published": PUBLISHED,
        "footnotes": footnotes,
        "examples": examples,
        **_training(files),
        **_fidelity(files),
        **_glue(files, marks),
        **_speed(files),
        "cards": cards(files, marks),
        "environments": environments(files),
        "commands": commands(files),
    }
    glue = files.command(GLUE)
    missing = {
        "curves": "" if context["curves"] else "no metrics.jsonl in the folder; sd train-student writes it",
        "fidelity": "" if is_measured(files) else f"more of it is measured by: {files.command(EVAL)}",
        "glue": "" if context["glue"] else f"not measured yet: {glue}",
        "low-data": "" if context["low_data"] else f"not measured yet: {glue} --train-fraction 0.01,0.1,1",
        "speed": "" if context["speed"] else f"not measured yet: {files.command(SPEED)}",
        "neighbours": no_examples,
    }
    return {**context, "missing": missing}


def _training(files: StudentFiles) -> dict[str, Any]:
    with files.using(DISTILLATION):
        found = {"origin": origin(files), "options": option_rows(files), "history": history_table(files)}
    with files.using(METRICS):
        return {**found, "curves": curve_charts(files.metrics)}


def _fidelity(files: StudentFiles) -> dict[str, Any]:
    with files.using(EVAL):
        models, skipped = measured_models(files), files.evaluation.get("skipped", {})
        if other := other_corpus(files):
            elsewhere = f"{EVAL} has them of {other}, not of what the student was trained on: {files.command(EVAL)}"
            skipped = {**skipped, "held-out sentences of its own corpus": elsewhere}
        return {"fidelity": fidelity_table(models), "buckets": bucket_charts(models), "unmeasured": skipped}


def _glue(files: StudentFiles, marks: Mapping[str, int]) -> dict[str, Any]:
    with files.using(GLUE):
        return {
            "glue": glue_table(files.glue, marks),
            "low_data": low_data_charts(files.glue, marks),
            "low_data_legend": low_data_legend(files.glue),
            "glue_skipped": files.glue.get("skipped", {}),
        }


def _speed(files: StudentFiles) -> dict[str, Any]:
    with files.using(SPEED):
        return {
            "speed": speed_table(files.speed) if files.speed else None,
            "rates": rates_table(files.speed) if files.speed else None,
            "speed_charts": speed_charts(files.speed) if files.speed else [],
            "speed_skipped": files.speed.get("skipped", {}),
        }


def render(context: Mapping[str, Any]) -> str:
    """The page; whatever stands in the context is escaped, charts excepted."""
    environment = Environment(
        loader=PackageLoader("sentence_distill.student"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(context)


def _examples(files: StudentFiles, shards: Path | None) -> tuple[list[Example], str]:
    """Neighbours, or why there are none."""
    try:
        reference = read_reference(shards or own_shards(files.distillation, files.folder), files.distillation)
    except UserError as error:
        return [], f"{error}; sd report {files.folder} --shards FOLDER names others"
    return nearest_examples(load_student(files.folder), reference), ""
