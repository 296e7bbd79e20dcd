"""`sd shards`: look at a folder of shards."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.pipeline.records import Fingerprint


class _FolderFirst(click.Group):
    """Takes `sd shards FOLDER` for `sd shards list FOLDER`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:  # type: ignore[type-arg]
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["list", *args]
        return super().resolve_command(ctx, args)


def _open(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    from sentence_distill.pipeline.files import open_folder

    return open_folder(value)


def next_command(folder: str | Path, fingerprint: "Fingerprint") -> str:
    """Return the command that uses finished shards."""
    folder = shlex.quote(str(folder))
    if fingerprint.pooling == "logits":
        return f"sd finetune STUDENT --task NAME --logits {folder}"
    return f"sd shards verify {folder}" if fingerprint.separator else f"sd train-student --shards {folder}"


_folder = click.argument("folder", callback=_open, metavar="SHARDS", default="shards")


@click.group(cls=_FolderFirst, invoke_without_command=True)
@click.pass_context
def shards(context: click.Context) -> None:
    """List shards, check them, or close a folder that many jobs filled: sd shards [verify|merge] SHARDS."""
    if context.invoked_subcommand is None:
        context.invoke(list_, folder=Path("shards"))


@shards.command("list")
@_folder
def list_(folder: Path) -> None:
    """List the shards of a folder: rows, tokens, bytes, type and teacher."""
    from rich.console import Console
    from rich.table import Table

    from sentence_distill.pipeline.manifest import require_manifest

    manifest = require_manifest(folder)
    fingerprint, totals = manifest.fingerprint, manifest.totals
    table = Table("shard", "rows", "tokens", "bytes", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in manifest.shards:
        table.add_row(entry.shard, f"{entry.rows:,}", f"{entry.tokens:,}", f"{entry.bytes:,}")
    table.add_row("total", f"{totals.rows:,}", f"{totals.tokens:,}", f"{totals.bytes:,}", style="bold")
    Console().print(table)
    layers = ",".join(map(str, fingerprint.layers))
    click.echo(
        f"teacher {fingerprint.teacher}, pooling {fingerprint.pooling}, layers {layers}; "
        f"{fingerprint.dim} x {fingerprint.dtype}, computed in {fingerprint.compute_dtype}"
    )
    if manifest.notice:
        click.echo(f"note: {manifest.notice}")
    click.echo(f"next: {next_command(folder, fingerprint)}")


@shards.command()
@_folder
def verify(folder: Path) -> None:
    """Check every checksum, count and row of a folder; exit with 1 if something is wrong."""
    from sentence_distill.pipeline.manifest import load_manifest, require_shards, verify_folder

    manifest = load_manifest(folder)
    if manifest is None:
        require_shards(folder)
    with progress.task("verify", len(manifest.shards) if manifest else 0, "shards") as advance:
        problems = verify_folder(folder, advance)
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(f"{folder}: {len(problems)} problems; sd embed with the options of the run rebuilds damaged shards")
        sys.exit(1)
    assert manifest is not None
    click.echo(f"{folder}: {len(manifest.shards)} shards, {manifest.totals.rows:,} rows, all right")


@shards.command()
@_folder
def merge(folder: Path) -> None:
    """Close a folder that the jobs of sd embed --slice filled: write its manifest, once every shard is there."""
    from sentence_distill.pipeline.files import lock_folder, remove_temporaries
    from sentence_distill.pipeline.manifest import close_folder, require_shards
    from sentence_distill.pipeline.plan import Plan
    from sentence_distill.pipeline.records import PLAN

    plan = Plan.load(folder / PLAN)
    if plan is None:
        require_shards(folder)
        raise UserError(f"{folder} has no plan, or a damaged one; make it: sd embed --slice 1/N --out {folder}")
    with lock_folder(folder):
        remove_temporaries(folder)
        manifest = close_folder(folder, plan)
    click.echo(
        f"{folder}: {len(plan.slices)} shards, {manifest.totals.rows:,} sentences\n"
        f"next: sd shards verify {shlex.quote(str(folder))}, {next_command(folder, manifest.fingerprint)}"
    )
