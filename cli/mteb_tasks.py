"""`sd eval --mteb`: models on tasks of MTEB."""

import json
from pathlib import Path
from typing import Any

import click

from sentence_distill.cli.console import write_json
from sentence_distill.data.errors import UserError


def evaluate_mteb(models: tuple[str, ...], names: str, json_file: Path, *, overwrite: bool) -> None:
    """Score each model on each task; the figures so far are written after each, and a task without data is listed.

    Scores of other tasks, and of other models, stay in the file, unless a model has other weights now.
    """
    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.student.environment import PACKAGES, environment
    from sentence_distill.student.evaluation.models import (
        find_model,
        load_sentence_transformer,
        short_names,
        weights_hashes,
    )
    from sentence_distill.student.evaluation.mteb_tasks import find_tasks, load_task, run_task

    tasks = find_tasks([name.strip() for name in names.split(",")])
    located = [find_model(model) for model in models]
    columns = short_names(models)
    opened = dict(zip(columns, map(load_sentence_transformer, located), strict=True))
    progress = ConsoleProgress()
    figures: dict[str, Any] = {"environment": environment((*PACKAGES, "mteb")), "models": {}, "skipped": {}}
    figures["weights"] = {column: weights_hashes(found.folder) for column, found in zip(columns, located, strict=True)}
    figures["models"] = {column: {} for column in columns}
    if json_file.exists() and not overwrite:
        _keep(json.loads(json_file.read_text(encoding="utf-8")), figures)
    measured = 0
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
            measured += 1
            progress.log(f"{column}: {name}: {result['metric']} {result['score']:.4f}")
            write_json(json_file, figures)
    if not measured:
        raise UserError("; ".join(figures["skipped"].values()))
    write_json(json_file, figures)
    _print(figures)


def _keep(old: dict[str, Any], figures: dict[str, Any]) -> None:
    """Take over the scores of a file, but for models that have other weights now or then named none."""
    for column, scores in old["models"].items():
        weights = old.get("weights", {}).get(column)
        if weights is not None and figures["weights"].setdefault(column, weights) == weights:
            figures["models"].setdefault(column, {}).update(scores)


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
