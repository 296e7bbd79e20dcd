"""`sd export`: a student, or a classifier, as files that run elsewhere, or smaller."""

import shlex
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.student.config import ExportConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_distill.student.export import Exported
    from sentence_distill.student.reduce import Fidelity

_COLUMNS = {
    "kept": "squared length kept",
    "rank_agreement": "rank agreement",
    "recall_at_10": "recall@10",
    "teacher_rank_agreement": "with the teacher: rank agreement",
    "teacher_recall_at_10": "recall@10",
}
# Fewer sentences leave the second decimal of every column to chance.
_FEW_ROWS = 100


@click.command()
@options_of(ExportConfig)
@click.option("--onnx", is_flag=True, hidden=True, expose_value=False)
@stopped_by_signals("stopped; nothing was written")
def export(config: ExportConfig) -> None:
    """Write a student as one ONNX file and its tokenizer, for programs without PyTorch and without this package.

    STUDENT is a folder, wiki-small, or a name on the hub. [default: distilled] A student that sd finetune made is
    exported as a classifier. The command says how close the export comes to it, and how fast both are.

    With --format folder it writes a smaller student instead, a folder like any other: narrower vectors by --dim, half
    the bytes by --float16. It needs no more training and no teacher.

    \b
      sd export distilled
      sd export distilled --int8 --out small/
      sd export distilled --dim 64,128,256
      sd export distilled --dim 128 --format folder --out distilled-128/
    """
    from sentence_distill.student.export_folder import check_export

    check_export(config)
    from sentence_distill.student.export import export as run

    exported = run(config)
    if exported.fidelity:
        _print_fidelity(exported.fidelity)
    if exported.record:
        _print_onnx(exported)
    elif exported.folder:
        if config.dim:
            click.echo(f"{config.dim[0]} dimensions instead of {exported.fidelity[-1].dim}")
        size = sum(file.stat().st_size for file in exported.folder.rglob("*") if file.is_file())
        click.echo(f"{exported.folder}: a student of {size / 1e6:.1f} MB")
        click.echo(f"next: sd eval {shlex.quote(str(exported.folder))}")
    else:
        click.echo(f"next: sd export {shlex.quote(config.student)} --dim {config.dim[-1]}")


def _print_fidelity(found: "Sequence[Fidelity]") -> None:
    from rich.console import Console
    from rich.table import Table

    from sentence_distill.student.figures import too_few

    shown = {name: title for name, title in _COLUMNS.items() if getattr(found[0], name) is not None}
    table = Table("dimensions", *shown.values(), box=None, header_style="bold")
    for column in table.columns:
        column.justify = "right"
    for each in found:
        table.add_row(str(each.dim), *(f"{getattr(each, name):.4f}" for name in shown))
    rows = found[0].measured_rows
    click.echo(f"Against the full {found[-1].dim} dimensions, over {rows:,} sentences that the reduction never saw:")
    Console().print(table)
    if "recall_at_10" not in shown:
        click.echo(f"recall@10: {too_few(rows)}")
    if rows < _FEW_ROWS:
        click.echo(f"warning: {rows} sentences measure little; name more text with --corpus", err=True)


def _print_onnx(exported: "Exported") -> None:
    from sentence_distill.student.export import describe, describe_agreement, next_command
    from sentence_distill.student.onnx_student import EXPORT_README, MODEL, TOKENIZER

    record, folder = exported.record, exported.folder
    assert record is not None
    assert folder is not None
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in (MODEL, TOKENIZER)}
    click.echo(describe(record, exported.labels))
    click.echo(f"{'int8' if record.int8 else 'float32'}, {record.vocabulary:,} tokens")
    click.echo(", ".join(f"{name} {megabytes:.2f} MB" for name, megabytes in sizes.items()))
    if record.agreement is None or record.latency_ms is None:
        click.echo(f"not measured: {exported.skipped}")
    else:
        click.echo(describe_agreement(record.agreement))
        timed = "; ".join(f"{name} {taken.p50:.2f} / {taken.p99:.2f}" for name, taken in record.latency_ms.items())
        click.echo(f"one sentence on one thread, p50 / p99 in ms: {timed}")
    click.echo(f"export: {folder}")
    command = next_command(record, str(folder))
    click.echo(f"next: {command}; without this package: the script in {folder / EXPORT_README}")
