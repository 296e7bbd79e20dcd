"""`sd embed`: stage one."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.cli.shards import next_command
from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.config import HUB_PREFIX, EmbedConfig
from sentence_distill.pipeline.processes import keep_few_kernels, keep_freed_memory
from sentence_distill.pipeline.records import Manifest, Totals

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
    # Before torch is imported.
    keep_few_kernels()
    keep_freed_memory()
    from sentence_distill.pipeline import embed as stage

    with stopped_by_signals(lambda: _stopped(config)):
        result = stage.embed(config)
    out = config.out
    if isinstance(result, Manifest):
        _summary(out, result)
    elif config.slice:
        click.echo(
            f"{out}: the share's {len(result.share(*config.slice))} shards are there\n"
            f"next, once all are: sd shards merge {shlex.quote(out)}"
        )
    else:
        several = "or as jobs with --slice 1/N to N/N"
        click.echo(
            f"{out}: a plan of {result.rows:,} sentences in {len(result.slices):,} slices\n"
            "next: the same command without --plan-only, "
            + ("with the same text on standard input" if "-" in config.corpus else several)
        )


def _stopped(config: EmbedConfig) -> str:
    copied = any(name == "-" or name.startswith(HUB_PREFIX) for name in config.corpus)
    if copied and not any(Path(config.out, "corpus").glob("*.zst")):
        return "stopped before the corpus was copied; run the same command again to begin anew"
    # What is embedded when the signal comes is still written; the slice in hand is dropped.
    return f"stopped; what {config.out} holds stays: run the same command again to resume"


def _summary(out: str, manifest: Manifest) -> None:
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


def _lost(totals: Totals) -> Iterator[str]:
    """Say which option keeps what was left out, if that is much."""
    for reason, count in {**totals.rejected, "duplicates": totals.duplicates}.items():
        if reason in _KEPT_BY and count > _MUCH * totals.sentences:
            share = count / totals.sentences
            yield f"note: {share:.0%} of the sentences are left out as {reason}: {_KEPT_BY[reason]}"
