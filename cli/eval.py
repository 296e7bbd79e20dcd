"""`sd eval`: measure a student."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.train_student import DEFAULT_STUDENT
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS

if TYPE_CHECKING:
    from sentence_distill.data.glue import GlueFolder, GlueHub
    from sentence_distill.student.finetune import FinetuneConfig
    from sentence_distill.student.glue import TaskResult


def _tasks(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return tuple(TASKS)
    known = {name.lower(): name for name in TASKS}
    chosen = [name.strip().lower() for name in value.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(TASKS)}")
    return tuple(known[name] for name in chosen)


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
@click.option(
    "--tasks", callback=_tasks, default=None, metavar="NAME[,NAME…]", help="GLUE: which.  [default: all nine]"
)
@click.option("--from-scratch", is_flag=True, help="GLUE: a second row, the same BiLSTM from random weights.")
@click.option(
    "--epochs",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="GLUE: most epochs; tasks of over 19,000 examples get fewer, at least 2.  The best on dev counts.",
)
@click.option(
    "--learning-rate",
    default=1e-3,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="GLUE: of fine-tuning.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="GLUE: of fine-tuning.")
@click.option("--device", default="auto", show_default=True, help="GLUE: auto, cpu, cuda or cuda:N.")
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
    tasks: tuple[str, ...],
    from_scratch: bool,
    epochs: int,
    learning_rate: float,
    seed: int,
    device: str,
    json_file: Path | None,
) -> None:
    """Measure a student: fidelity, STS-B, size and speed, or with --glue its fine-tuned scores.

    What can't be measured, because its data is not here, is listed with the reason.
    """
    from sentence_distill.data.glue import open_glue
    from sentence_distill.student.folder import load_distillation

    # Wrong paths show before anything is loaded, asked for or measured.
    load_distillation(folder)
    json_file = json_file or folder / ("glue.json" if glue else "eval.json")
    if not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")
    if glue:
        source = open_glue(glue_dir)
        from sentence_distill.student.finetune import FinetuneConfig

        config = FinetuneConfig(epochs=epochs, learning_rate=learning_rate, seed=seed)
        _glue(folder, source, tasks, config, from_scratch, device, json_file)
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
    _write_json(json_file, {**figures, "skipped": skipped})
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


def _glue(
    folder: Path,
    source: "GlueFolder | GlueHub",
    tasks: tuple[str, ...],
    config: "FinetuneConfig",
    from_scratch: bool,
    device: str,
    json_file: Path,
) -> None:
    from dataclasses import asdict

    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.pipeline.precision import pick_device, pick_precision
    from sentence_distill.student.folder import load_student
    from sentence_distill.student.glue import describe, run_glue

    student, where, progress = load_student(folder), pick_device(device), ConsoleProgress()
    precision = pick_precision("auto", where)
    rows: dict[str, list[TaskResult]] = {}
    for row in ("distilled", "from scratch") if from_scratch else ("distilled",):
        rows[row] = []
        for result in run_glue(
            student,
            source,
            tasks=tasks,
            config=config,
            from_scratch=row == "from scratch",
            device=where,
            precision=precision,
        ):
            rows[row].append(result)
            progress.log(f"{row}: {describe(result)}")
            # After each task, so that a run that is stopped leaves what it has.
            figures = {name: {r.task: asdict(r) for r in results} for name, results in rows.items()}
            _write_json(json_file, {"finetuning": asdict(config), "rows": figures})
    _print_glue(rows)


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _print_glue(rows: dict[str, "list[TaskResult]"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("GLUE dev", "metric", *rows, box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    results = list(zip(*rows.values(), strict=True))
    for row in results:
        for dev, scores in row[0].scores.items():
            name = row[0].task + dev.removeprefix("dev").replace("_matched", "-m").replace("_mismatched", "-mm")
            for metric in scores:
                table.add_row(name, metric, *(f"{100 * result.scores[dev][metric]:.1f}" for result in row))
    Console().print(table)
    for row in results:
        if row[0].skipped:
            click.echo(f"skipped: {row[0].task}: {row[0].skipped}")
