"""`sd eval --glue`: fine-tune a student on GLUE, and print the table."""

from statistics import mean, stdev
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.out_file import refuse_other
from sentence_distill.data.glue import set_name
from sentence_distill.student.config import ROWS, EvalConfig, GlueConfig

if TYPE_CHECKING:
    from sentence_distill.student.figures import GlueFigures, GlueScores


def run_glue(options: EvalConfig, config: GlueConfig) -> None:
    """Score a student on GLUE and print the table; see `evaluate_glue`."""
    from sentence_distill.student.glue import PARTS, ZIP_NAME, evaluate_glue

    if config.submission:
        names = {path.name for path in config.submission.iterdir()} if config.submission.exists() else set()
        refuse_other(config.submission, names - {ZIP_NAME, *(f"{name}.tsv" for name in PARTS)}, "sd eval --submission")
    results, submission = evaluate_glue(options, config)
    _print_table(results, config)
    if submission:
        click.echo(f"submission: {submission.path}")
        if submission.missing:
            click.echo(f"  gluebenchmark.com refuses it without {', '.join(submission.missing)}")


def _print_table(results: "GlueFigures", config: GlueConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = [row for row in config.chosen_rows if row in results.rows]
    table = Table("GLUE dev", "metric", *(ROWS[row] for row in rows), box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for task in config.tasks:
        found = {row: [r for r in results.rows[row].get(task, []) if r.fraction == 1.0] for row in rows}
        scored = [(dev, metric) for row in rows for r in found[row] for dev in r.scores for metric in r.scores[dev]]
        for dev, metric in dict.fromkeys(scored):
            table.add_row(set_name(task, dev), metric, *(_figure(found[row], dev, metric) for row in rows))
    Console().print(table)
    for what, why in results.skipped.items():
        click.echo(f"skipped: {what}: {why}")


def _figure(results: "list[GlueScores]", dev: str, metric: str) -> str:
    values = [100 * result.scores[dev][metric] for result in results if dev in result.scores]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
