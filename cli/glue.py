"""`sd eval --glue`: its options, and what it does."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sentence_distill.cli.console import write_json
from sentence_distill.data.glue import TASKS

if TYPE_CHECKING:
    from sentence_distill.student.glue import TaskResult

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _tasks(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return tuple(TASKS)
    known = {name.lower(): name for name in TASKS}
    chosen = [name.strip().lower() for name in value.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(TASKS)}")
    return tuple(known[name] for name in chosen)


_OPTIONS = (
    click.option(
        "--tasks", callback=_tasks, default=None, metavar="NAME[,NAME…]", help="GLUE: which.  [default: all nine]"
    ),
    click.option("--from-scratch", is_flag=True, help="GLUE: a second row, the same BiLSTM from random weights."),
    click.option(
        "--epochs",
        default=5,
        show_default=True,
        type=click.IntRange(1),
        help="GLUE: most epochs; tasks of over 19,000 examples get fewer, at least 2.  The best on dev counts.",
    ),
    click.option(
        "--learning-rate",
        default=1e-3,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        help="GLUE: of fine-tuning.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="GLUE: of fine-tuning."),
    click.option("--device", default="auto", show_default=True, help="GLUE: auto, cpu, cuda or cuda:N."),
)


def glue_options(command: _Command) -> _Command:
    """Give a command the options of GLUE."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def evaluate_glue(folder: Path, glue_dir: Path | None, json_file: Path, options: dict[str, Any]) -> None:
    """Fine-tune and score a student on each task; the figures so far are written after each."""
    from dataclasses import asdict

    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.data.glue import open_glue
    from sentence_distill.pipeline.precision import pick_device, pick_precision
    from sentence_distill.student.finetune import FinetuneConfig
    from sentence_distill.student.folder import load_student
    from sentence_distill.student.glue import describe, run_glue

    source = open_glue(glue_dir)
    config = FinetuneConfig(**{name: options[name] for name in ("epochs", "learning_rate", "seed")})
    tasks, from_scratch, device = (options[name] for name in ("tasks", "from_scratch", "device"))
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
            write_json(json_file, {"finetuning": asdict(config), "rows": figures})
    _print_glue(rows)


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
