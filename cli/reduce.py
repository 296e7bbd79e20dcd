"""`sd reduce`: a student with a narrower vector, or what each width would cost."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.legacy_options import counts
from sentence_distill.cli.out_file import is_reduced, new_folder, whole_or_none
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.student.config import DEFAULT_STUDENT

if TYPE_CHECKING:
    from sentence_distill.student.model import Student
    from sentence_distill.student.reduce import Directions

_COLUMNS = {
    "kept": "squared length kept",
    "rank_agreement": "rank agreement",
    "recall_at_10": "recall@10",
    "teacher_rank_agreement": "with the teacher: rank agreement",
    "teacher_recall_at_10": "recall@10",
}
# Fewer leave the second decimal of every column to chance.
_FEW_ROWS = 100


def _dims(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else counts(context, parameter, value)


@click.command()
@click.argument("student", default=DEFAULT_STUDENT)
@click.option("--dim", type=click.IntRange(1), default=None, metavar="N", help="Write a student of this width.")
@click.option(
    "--dims",
    default=None,
    callback=_dims,
    metavar="N[,N…]",
    help="Widths to compare, where --dim is not given.  [default: powers of two, as in 32,64,128,256]",
)
@click.option("--float16", is_flag=True, help="Store the weights in half the bytes, with --dim or alone.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to write, with --dim or --float16.  [default: STUDENT-N, STUDENT-float16]",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier reduced student in --out.")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="Sentences to reduce by.  [default: those that the student was trained on]",
)
@click.option(
    "--corpus",
    multiple=True,
    metavar="FILE",
    help="Text to reduce by instead of shards, in any form that sd embed takes; may be repeated.",
)
@stopped_by_signals("stopped; nothing was written")
def reduce(
    student: str,
    dim: int | None,
    dims: tuple[int, ...] | None,
    float16: bool,
    out: Path | None,
    overwrite: bool,
    shards: Path | None,
    corpus: tuple[str, ...],
) -> None:
    """Give a student a narrower vector, for search and clustering: its own principal directions; or half the bytes.

    STUDENT is a folder, wiki-small, or a name on the hub. [default: distilled] Without --dim the command shows what
    is left at several widths, and writes nothing. The folder that it writes is a student like any other, smaller
    and as fast; it needs no more training and no teacher.

    \b
      sd reduce distilled
      sd reduce distilled --dim 64 --out distilled-64
      sd reduce distilled --float16
    """
    from sentence_distill.pipeline.manifest import require_vectors
    from sentence_distill.student.files import load_distillation
    from sentence_distill.student.hub import locate_student

    _check(dim, dims, float16, out, shards, corpus)
    out = out or _default_out(student, str(dim or "float16"))
    if dim or float16:
        held = new_folder(out, overwrite, earlier=is_reduced, command="sd reduce")
        click.get_current_context().with_resource(held)
    if shards:
        require_vectors(shards)
    folder = locate_student(student)
    load_distillation(folder)
    if dim or not float16:
        _refuse_fine_tuned(student, folder)
    if not (dim or float16):
        *_, figures = _compare(student, folder, dims, shards, corpus)
        # The last is that of the full width.
        click.echo(f"next: sd reduce {shlex.quote(str(student))} --dim {figures[-2]['dim']}")
        return
    from sentence_distill.student.reduce import copy_student, halve_weights

    with whole_or_none(out):
        if dim is None:
            copy_student(folder, out)
        else:
            _write_narrower(student, folder, dim, out, shards, corpus)
        if float16:
            halve_weights(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    click.echo(f"{out}: a student of {size / 1e6:.1f} MB\nnext: sd eval {shlex.quote(str(out))}")


def _compare(
    name: str, folder: Path, dims: tuple[int, ...] | None, shards: Path | None, corpus: tuple[str, ...]
) -> "tuple[Student, dict[str, Any], Directions, bool, list[dict[str, Any]]]":
    """Show what is left at some widths.

    Returns:
        The student, its record, its directions, whether the sentences are of its own corpus, and each width's figures.
    """
    from sentence_distill.student.files import find_shards, load_distillation
    from sentence_distill.student.model import encode_tokens, load_student
    from sentence_distill.student.reduce import (
        compare_dims,
        find_directions,
        require_narrower,
        sample_corpus,
        sample_shards,
        usual_dims,
    )

    full, distillation = load_student(folder), load_distillation(folder)
    wanted = dims or usual_dims(full.dim)
    if not wanted:
        raise UserError(
            f"{name} has only {full.dim} dimensions; name the widths to compare with --dims 2,4 for example"
        )
    require_narrower(wanted, full.dim)
    if not (shards or corpus or find_shards(distillation, folder).exists()):
        raise UserError(f"the shards of {name} are not here; name text with --corpus, or shards with --shards")
    sample = sample_corpus(corpus, full) if corpus else sample_shards(shards, distillation, folder)
    with progress.task("encode", len(sample.fit), "sentences") as advance:
        directions = find_directions(full, sample.fit, advance)
    figures = compare_dims(
        encode_tokens(full.encoder, sample.measured), sample.teacher, directions, (*wanted, full.dim)
    )
    _print(figures, len(sample.measured), full.dim)
    return full, distillation, directions, sample.own, figures


def _write_narrower(name: str, folder: Path, dim: int, out: Path, shards: Path | None, corpus: tuple[str, ...]) -> None:
    from sentence_distill.student.files import find_shards, moved_record
    from sentence_distill.student.reduce import reduce_student, save_reduced

    full, distillation, directions, own, figures = _compare(name, folder, (dim,), shards, corpus)
    source = ", ".join(corpus) or str(shards or find_shards(distillation, folder).name)
    record = moved_record(distillation, folder, out)
    reduced = reduce_student(full, directions, dim)
    save_reduced(out, reduced, record, source=source, directions=directions, figures=figures[0], own=own)
    if shards and not own:
        click.echo(f"{shards} is not what the student was trained on: the card shows none of these figures")
    click.echo(f"{dim} dimensions instead of {full.dim}")


def _refuse_fine_tuned(name: str, folder: Path) -> None:
    """Its head reads other states than these vectors, and its record's scores are of that head."""
    from sentence_distill.student.files import TASK

    if (folder / TASK).exists():
        raise UserError(
            f"{name} is fine-tuned on a task, for which its vectors are not used; reduce the student that it was made "
            "of, then fine-tune that (sd finetune), or halve its bytes with --float16 alone"
        )


def _default_out(student: str, suffix: str) -> Path:
    """STUDENT-suffix: beside a student's folder, and of one on the hub in the current folder."""
    if not Path(student).exists():
        student = student.partition("@")[0].rpartition("/")[2]
    return Path(f"{student.rstrip('/')}-{suffix}")


def _check(
    dim: int | None,
    dims: tuple[int, ...] | None,
    float16: bool,
    out: Path | None,
    shards: Path | None,
    corpus: tuple[str, ...],
) -> None:
    if dim is not None and dims is not None:
        raise click.UsageError("--dim writes a student, --dims compares widths and writes none; give one of them")
    if dim is None and float16 and (dims or shards or corpus):
        raise click.UsageError(
            "--float16 without --dim writes the student as it is; leave --dims, --shards, --corpus out"
        )
    if out is not None and dim is None and not float16:
        raise click.UsageError("--out goes with --dim or --float16")
    if shards is not None and corpus:
        raise click.UsageError("--shards and --corpus are two sources of sentences; give one of them")


def _print(figures: list[dict[str, Any]], rows: int, full_dim: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from sentence_distill.student.metrics import too_few

    shown = {name: title for name, title in _COLUMNS.items() if name in figures[0]}
    table = Table("dimensions", *shown.values(), box=None, header_style="bold")
    for column in table.columns:
        column.justify = "right"
    for found in figures:
        table.add_row(str(found["dim"]), *(f"{found[name]:.4f}" for name in shown))
    click.echo(f"Against the full {full_dim} dimensions, over {rows:,} sentences that the reduction never saw:")
    Console().print(table)
    if "recall_at_10" not in shown:
        click.echo(f"recall@10: {too_few(rows)}")
    if rows < _FEW_ROWS:
        click.echo(f"warning: {rows} sentences measure little; name more text with --corpus", err=True)
