"""`sd eval`: measure a student."""

from pathlib import Path
from typing import Any

import click

from sentence_distill.cli.console import write_json
from sentence_distill.cli.glue import evaluate_glue, glue_options
from sentence_distill.cli.train_student import DEFAULT_STUDENT
from sentence_distill.data.errors import UserError


@click.command("eval")
@click.option(
    "--student",
    "folder",
    type=click.Path(path_type=Path),
    default=DEFAULT_STUDENT,
    show_default=True,
    help="Folder that sd train-student made.",
)
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="For held-out fidelity and speed.  [default: those that the student was trained on]",
)
@click.option(
    "--sts",
    type=click.Path(path_type=Path),
    default=None,
    help="TSV with sentence1, sentence2, score.  [default: STS-B/dev.tsv in --glue-dir]",
)
@click.option(
    "--teacher",
    default=None,
    metavar="NAME",
    help="Teacher to compare with.  [default: the student's, where this machine has it]",
)
@click.option("--glue", is_flag=True, help="Fine-tune and score on GLUE instead.")
@click.option(
    "--glue-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="GLUE in the official TSV layout.  [default: nyu-mll/glue from the hub]",
)
@glue_options
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where the figures go.  [default: eval.json or glue.json in the student's folder]",
)
def evaluate(
    folder: Path,
    shards: Path | None,
    sts: Path | None,
    teacher: str | None,
    glue: bool,
    glue_dir: Path | None,
    json_file: Path | None,
    **options: Any,
) -> None:
    """Measure a student: fidelity, STS-B, size and speed, or with --glue its fine-tuned scores.

    What can't be measured, because its data is not here, is listed with the reason.
    """
    from sentence_distill.student.folder import load_distillation

    # Wrong paths show before anything is loaded, asked for or measured.
    load_distillation(folder)
    json_file = json_file or folder / ("glue.json" if glue else "eval.json")
    if not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")
    if glue:
        evaluate_glue(folder, glue_dir, json_file, options)
    else:
        _intrinsic(folder, shards, _sts_file(sts, glue_dir), teacher, json_file)
    click.echo(f"figures: {json_file}" + ("" if glue else f"\nnext: sd eval --glue --student {folder}"))


def _sts_file(sts: Path | None, glue_dir: Path | None) -> Path | None:
    if sts is not None or glue_dir is None:
        return sts
    inside = glue_dir / "STS-B" / "dev.tsv"
    return inside if inside.exists() else None


def _intrinsic(folder: Path, shards: Path | None, sts: Path | None, teacher: str | None, json_file: Path) -> None:
    from sentence_distill.data.sts import load_sts
    from sentence_distill.student.folder import load_distillation, update_distillation
    from sentence_distill.student.measure import measure_student

    pairs = load_sts(sts) if sts else None
    figures, skipped = measure_student(folder, shards=shards, pairs=pairs, teacher_name=teacher)
    _print_intrinsic(figures, skipped)
    write_json(json_file, {**figures, "skipped": skipped})
    update_distillation(folder, metrics={**load_distillation(folder)["metrics"], **figures})


def _print_intrinsic(figures: dict[str, Any], skipped: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "student", "teacher", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    if held_out := figures.get("held_out"):
        table.add_row("cosine to the teacher, held out", f"{held_out['cosine']:.4f}", "")
        table.add_row("  the same of one constant vector", f"{held_out['mean_vector_cosine']:.4f}", "")
        table.add_row("MSE, held out", f"{held_out['mse']:.3g}", "")
        table.add_row("rank agreement, held out", f"{held_out['rank_agreement']:.4f}", "")
    for key, name, form in (
        ("sts_spearman", "STS-B Spearman", "{:.4f}"),
        ("sentences_per_second", "sentences/s", "{:,.0f}"),
    ):
        if values := figures.get(key):
            table.add_row(name, *(form.format(values[who]) if who in values else "" for who in ("student", "teacher")))
    table.add_row("parameters", f"{figures['size']['parameters']:,}", "")
    table.add_row("size on disk, MB", f"{figures['size']['megabytes']:.1f}", "")
    Console().print(table)
    for what, why in skipped.items():
        click.echo(f"not measured: {what}: {why}")
