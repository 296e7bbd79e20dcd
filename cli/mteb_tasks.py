"""`sd eval --mteb`: models on tasks of MTEB."""

from pathlib import Path
from typing import Any

import click

from sentence_distill.cli.console import write_json
from sentence_distill.data.errors import UserError


def evaluate_mteb(models: tuple[str, ...], names: str, json_file: Path) -> None:
    """Score each model on each task; the figures so far are written after each, and a task without data is listed."""
    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.student.environment import PACKAGES, environment
    from sentence_distill.student.evaluation.models import find_model, load_sentence_transformer, short_names
    from sentence_distill.student.evaluation.mteb_tasks import find_tasks, load_task, run_task

    tasks = find_tasks([name.strip() for name in names.split(",")])
    located = [find_model(model) for model in models]
    columns = short_names(models)
    opened = dict(zip(columns, map(load_sentence_transformer, located), strict=True))
    progress = ConsoleProgress()
    figures: dict[str, Any] = {"environment": environment((*PACKAGES, "mteb")), "models": {}, "skipped": {}}
    figures["models"] = {column: {} for column in columns}
    for task in tasks:
        name = task.metadata.name
        try:
            load_task(task)
        except UserError as error:
            figures["skipped"][name] = str(error)
            continue
        for column, model in opened.items():
            try:
                result = run_task(model, task)
            except UserError as error:
                figures["skipped"][f"{name}, {column}"] = str(error)
                continue
            figures["models"][column][name] = result
            progress.log(f"{column}: {name}: {result['metric']} {result['score']:.4f}")
            write_json(json_file, figures)
    if not any(figures["models"].values()):
        raise UserError("; ".join(figures["skipped"].values()))
    write_json(json_file, figures)
    _print(figures)


def _print(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("MTEB task", "metric", *figures["models"], box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    rows = list(figures["models"].values())
    metrics = {name: result["metric"] for row in rows for name, result in row.items()}
    for name, metric in metrics.items():
        table.add_row(name, metric, *(f"{row[name]['score']:.4f}" if name in row else "" for row in rows))
    Console().print(table)
    for what, why in figures["skipped"].items():
        click.echo(f"not measured: {what}: {why}")
