"""`sd report`: a page about a student."""

from pathlib import Path

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.out_file import check_free, check_parent
from sentence_distill.student.config import DEFAULT_STUDENT

# What a report of this version holds in its head, and one of a version before that line came.
_MARKS = (
    ('<meta name="generator" content="sentence-distill report">',),
    ("content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">", "data:,"),
)


def _notes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    from sentence_distill.data.glue import TASKS

    known = {name.lower(): name for name in TASKS}
    notes = {}
    for value in values:
        task, _, text = value.partition("=")
        if task.strip().lower() not in known or not text.strip():
            raise click.BadParameter(f"{value!r} is no TASK=TEXT with one of {', '.join(TASKS)}")
        notes[known[task.strip().lower()]] = text.strip()
    return notes


@click.command()
@click.argument("student", type=click.Path(path_type=Path), default=DEFAULT_STUDENT)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    help="File to write.",
)
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="For nearest neighbours of held-out sentences.  [default: those that the student was trained on]",
)
@click.option("--overwrite", is_flag=True, help="Replace --out even if it is not a report.")
@click.option("--title", default=None, help="Of the page.  [default: names the teacher]")
@click.option(
    "--note",
    "notes",
    multiple=True,
    callback=_notes,
    metavar="TASK=TEXT",
    help="Footnote at every figure of a GLUE task, where its data is not the official one say; may be repeated.",
)
@stopped_by_signals("stopped; nothing was written")
def report(
    student: Path, out: Path, shards: Path | None, overwrite: bool, title: str | None, notes: dict[str, str]
) -> None:
    """Write one page of HTML about a student, from what training and sd eval left in its folder.

    The page holds everything itself and fetches nothing. What was not measured yet is named in it with the
    command that measures it.

    \b
      sd report distilled --out report.html
      sd report distilled --note 'QQP=another split than the official one'
    """
    from sentence_distill.pipeline.manifest import require_vectors
    from sentence_distill.student.files import load_distillation
    from sentence_distill.student.hub import require_own_folder

    require_own_folder(student)
    load_distillation(student)
    check_parent(out)
    check_free(out, overwrite, own=_is_report)
    if shards:
        require_vectors(shards)
    from sentence_distill.student.report.page import write_report

    missing = write_report(student, out, shards=shards, title=title, notes=notes)
    for section, reason in missing.items():
        if reason:
            click.echo(f"{section}: {reason}")
    click.echo(f"report: {out}")


def _is_report(path: Path) -> bool:
    head = path.read_bytes()[:1000].decode(errors="replace")
    return any(all(mark in head for mark in marks) for marks in _MARKS)
