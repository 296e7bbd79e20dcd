"""`sd eval --speed`: its options, and what it does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sentence_distill.cli.console import write_json
from sentence_distill.cli.legacy_options import counts
from sentence_distill.data.errors import UserError

_WIDTH = 150
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _threads(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    from sentence_distill.student.environment import cores

    return counts(context, parameter, value.replace("all", str(cores())))


_OPTIONS = (
    click.option(
        "--sentences",
        "sentences_file",
        type=click.Path(path_type=Path),
        default=None,
        help="Speed: a text file, one sentence a line.  [default: the shards' text]",
    ),
    click.option(
        "--threads", default="1,all", show_default=True, callback=_threads, metavar="N[,N…]", help="Speed: how many."
    ),
    click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Speed: the median counts."),
    click.option(
        "--batch-sizes",
        default="1,8,32,128,512",
        show_default=True,
        callback=counts,
        metavar="N[,N…]",
        help="Speed: sentences handed over in one call.",
    ),
)


def speed_options(command: _Command) -> _Command:
    """Give a command the options of --speed."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def evaluate_speed(
    models: tuple[str, ...],
    shards: Path | None,
    sts: Path | None,
    teacher: str | None,
    json_file: Path,
    options: dict[str, Any],
) -> None:
    """Time, print and write."""
    from sentence_distill.data.glue import load_sts
    from sentence_distill.student.models import find_model
    from sentence_distill.student.speed import SpeedConfig, measure_speed

    config = SpeedConfig(**{name: options[name] for name in ("threads", "rounds", "batch_sizes")})
    sentences = _sentences(models, shards, options["sentences_file"])
    figures = measure_speed(
        [(model, find_model(model)) for model in models],
        sentences,
        teacher=teacher,
        pairs=load_sts(sts) if sts else None,
        config=config,
    )
    if not figures["contenders"]:
        reasons = "; ".join(f"{what}: {why}" for what, why in figures["skipped"].items())
        raise UserError(f"nothing could be timed, and nothing was written ({reasons})")
    # Not merged with what was there: only what took turns in one race can be compared.
    write_json(json_file, figures)
    _print(figures)


def _sentences(models: tuple[str, ...], shards: Path | None, file: Path | None) -> list[str]:
    from sentence_distill.data.lines import sentences_of_file
    from sentence_distill.student.files import is_student, load_distillation
    from sentence_distill.student.reference import SENTENCES, own_shards, sentences_of_shards

    if file is not None:
        return sentences_of_file(file, SENTENCES)
    students = [model for model in models if is_student(model)]
    if shards is None and students:
        shards = own_shards(load_distillation(Path(students[0])), Path(students[0]))
    if shards is None:
        raise UserError("which sentences to encode? name some with --shards, or a text file with --sentences")
    return sentences_of_shards(shards)


def _print(figures: dict[str, Any]) -> None:
    from rich.table import Table

    environment = figures["environment"]
    click.echo(f"{environment['cpu']}, {environment['cores']} cores; {figures['sentences']:,} sentences")
    for threads in map(str, figures["threads"]):
        rows = {name: row for name, row in figures["contenders"].items() if threads in row["threads"]}
        batches, lengths = (
            list(dict.fromkeys(key for row in rows.values() for key in row["threads"][threads][by]))
            for by in ("by_batch", "by_length")
        )
        table = Table(
            "sentences/s, " + ("1 thread" if threads == "1" else f"{threads} threads"),
            *(f"{size} a call" for size in batches),
            *(f"{length} tokens" for length in lengths),
            "p50, ms",
            "p99, ms",
            box=None,
            header_style="bold",
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for name, row in rows.items():
            found = row["threads"][threads]
            rates = [found["by_batch"].get(size) for size in batches]
            rates += [found["by_length"].get(length) for length in lengths]
            latency = (f"{found['latency_ms'][quantile]:.2f}" for quantile in ("p50", "p99"))
            table.add_row(name, *("" if rate is None else f"{rate:,.0f}" for rate in rates), *latency)
        _show(table)
    _print_costs(figures)
    for what, why in figures["skipped"].items():
        click.echo(f"not measured: {what}: {why}")


def _print_costs(figures: dict[str, Any]) -> None:
    from rich.table import Table

    scored = figures["sts_pairs"] is not None
    columns = ["start, s", "memory, MB", "parameters", "on disk, MB", *(["STS-B"] if scored else [])]
    table = Table("cost", *columns, box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in figures["contenders"].items():
        cells = [f"{row['startup_seconds']:.1f}", f"{row['peak_megabytes']:,.0f}", f"{row['parameters']:,}"]
        cells += [f"{row['megabytes']:.1f}", *([f"{row['sts_spearman']:.4f}"] if scored else [])]
        table.add_row(name, *cells)
    _show(table)


def _show(table: Any) -> None:
    from rich.console import Console

    # Lines that are longer than the terminal's are easier to read than names broken over five of them.
    Console(width=max(Console().width, _WIDTH)).print(table)
