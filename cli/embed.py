"""`sd embed`: stage one."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.engine import check_engine, open_engine
from sentence_distill.cli.legacy_options import (
    input_format_option,
    layer_numbers,
    pooling_names,
    share,
    text_column_option,
)
from sentence_distill.cli.shards import next_command
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentence_distill.data.corpus import Corpus
    from sentence_distill.pipeline.config import EmbedConfig
    from sentence_distill.pipeline.load import Located

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
@click.argument("arguments", nargs=-1, metavar="[CORPUS]...")
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    metavar="PATH",
    help="File, folder, glob, fsspec URL, - for standard input, or hf:NAME[:CONFIG[:SPLIT]]; may be repeated. The "
    "same as an argument.",
)
@click.option(
    "-o",
    "--out",
    default="shards",
    show_default=True,
    metavar="FOLDER",
    help="Folder or object-store URL of the shards; a run that was stopped is resumed.",
)
@click.option(
    "--teacher",
    default=None,
    metavar="NAME",
    help="Folder or hub name of a transformer encoder, minilm or mpnet.  [default: minilm, which is all-MiniLM-L6-v2]",
)
@click.option(
    "--pooling",
    default=None,
    callback=pooling_names,
    metavar="NAME[+NAME…]",
    help="Pool the transformer's own states: cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken, pooler; or "
    "take logits.  [default: all modules of a sentence-transformers teacher, logits of one with a classification head, "
    "otherwise mean]",
)
@click.option(
    "--layers",
    default="-1",
    show_default=True,
    callback=layer_numbers,
    metavar="N[,N…]",
    help="Hidden layers to pool and concatenate; 0 is the word embeddings, -1 the last layer.",
)
@input_format_option(FORMATS, aliases=["--format"])
@text_column_option(
    "Column of the text; two make each record a pair of sentences, which is not split.", aliases=["--text-field"]
)
@click.option("--split/--no-split", default=True, show_default=True, help="Split each line into sentences.")
@click.option("--language", default="en", show_default=True, help="Language of the splitter's rules.")
@click.option("--min-words", default=3, show_default=True, help="Reject shorter sentences.")
@click.option("--max-words", default=100, show_default=True, help="Reject longer sentences.")
@click.option(
    "--max-tokens",
    default=None,
    type=click.IntRange(1),
    help="Reject sentences with more tokens.  [default: 128, or what the teacher reads if that is less]",
)
@click.option(
    "--shard-rows",
    default=16_384,
    show_default=True,
    type=click.IntRange(1),
    help="Sentences of a shard, the unit of commit and resume.",
)
@click.option(
    "--token-budget",
    default=0,
    type=click.IntRange(0),
    help="Tokens of a teacher's batch.  [default: 4096, on a GPU 16384]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default=None,
    help="Of the embeddings on disk.  [default: float16, for logits float32]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the teacher's arithmetic; auto is bf16 where the hardware has it.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--devices", default=None, metavar="N,N… | all", help="Several GPUs of this machine, one process each.")
@click.option(
    "--readers",
    default=None,
    type=click.IntRange(1),
    help="Processes that read and tokenise ahead of a teacher.  [default: 1, for a GPU up to 8]",
)
@click.option(
    "--slice",
    "share",
    default=None,
    callback=share,
    metavar="I/N",
    help="Do only the I-th of N shares, as one of many jobs over one folder; sd shards merge ends the run.",
)
@click.option(
    "--plan-only",
    is_flag=True,
    help="Make the plan and stop: ahead of many jobs, on a machine without GPU.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where slices are embedded: here, or by the actors of a Ray cluster.",
)
@click.option("--ray-address", default=None, help="Of a Ray cluster.  [default: a Ray of this machine's own]")
@click.option(
    "--workers", default=None, type=click.IntRange(1), help="Ray actors.  [default: one a GPU, or one a node]"
)
@click.option(
    "--compression",
    type=click.Choice(["none", "zstd", "lz4"]),
    default="none",
    show_default=True,
    help="Of the shards; compressed ones can't be memory-mapped.",
)
@click.option("--no-text", is_flag=True, help="Keep token ids only, not the sentences.")
def embed(arguments: tuple[str, ...], corpora: tuple[str, ...], out: str, teacher: str | None, **options: Any) -> None:
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
    from sentence_distill.pipeline.allocator import keep_few_kernels

    # What comes next imports torch.
    keep_few_kernels()
    from sentence_distill.data.corpus import Corpus, text_columns
    from sentence_distill.pipeline.files import open_folder
    from sentence_distill.pipeline.load import locate_teacher
    from sentence_distill.pipeline.spool import HUB_PREFIX

    corpora = (*arguments, *corpora)
    if not corpora:
        raise click.UsageError("name a corpus: sd embed --corpus wiki.txt")
    check_engine(corpora, options)
    folder = open_folder(out)
    pairs = len(text_columns(options["text_column"])) == 2
    config = _config(options, pairs)
    of_corpus = {"format": options["input_format"], "text_column": options["text_column"], "leave_out": folder}
    of_corpus["log"] = progress.log
    # Cheap mistakes first: a wrong path, column or folder shows before any weights are loaded.
    paths = [corpus for corpus in corpora if corpus != "-" and not corpus.startswith(HUB_PREFIX)]
    copied = len(paths) < len(corpora)
    if paths:
        corpus = Corpus.open(paths, **of_corpus)
        _check(corpus, config, folder, alone=not copied)
    located = None if options["plan_only"] else locate_teacher(teacher)
    if copied:
        with stopped_by_signals("stopped before the corpus was copied; run the same command again to begin anew"):
            locations = _readable_twice(corpora, options["text_column"], folder)
        corpus = Corpus.open(locations, **of_corpus)
        _check(corpus, config, folder, alone=True)

    # What is embedded when the signal comes is still written; the slice in hand is dropped.
    stopped = f"stopped; what {out} holds stays: run the same command again to resume"
    with stopped_by_signals(stopped):
        if located is None:
            _plan(corpus, config, folder, jobs="-" not in corpora)
        else:
            _embed(corpus, located, config, folder, options, pairs=pairs)


def _check(corpus: "Corpus", config: "EmbedConfig", out: Path, *, alone: bool) -> None:
    """Refuse a corpus that can't be used, and a folder that holds another one's shards.

    Args:
        corpus: what can be read before anything is copied.
        config: of the run.
        out: folder of the shards.
        alone: whether it is the whole corpus.
    """
    from sentence_distill.pipeline.embed import refuse_other_corpus
    from sentence_distill.pipeline.fingerprint import require_utf8_names

    require_utf8_names(corpus.sources)
    corpus.check()
    if alone:
        refuse_other_corpus(corpus, config, out)


def _embed(
    corpus: "Corpus",
    located: "Located",
    config: "EmbedConfig",
    out: Path,
    options: dict[str, Any],
    *,
    pairs: bool,
) -> None:
    from sentence_distill.pipeline.embed import EmbedRun, refuse_teachers_folder

    refuse_teachers_folder(out, located)
    progress.log(f"loading teacher {located.name}")
    with open_engine(located, options, pairs) as engine:
        run = EmbedRun(corpus=corpus, engine=engine, out=out, config=config)
        progress.log(str(run.teacher))
        if options["share"]:
            shards = run.run_share(*options["share"])
            click.echo(
                f"{out}: the share's {shards} shards are there\n"
                f"next, once all are: sd shards merge {shlex.quote(str(out))}"
            )
        else:
            _summary(str(out), run.run())
        if run.teacher.note:
            # Said before the work too; here nobody overlooks it.
            click.echo(f"note: {run.teacher.note}")


def _config(options: dict[str, Any], pairs: bool) -> "EmbedConfig":
    from dataclasses import fields

    from sentence_distill.data.sentences import SentenceRules
    from sentence_distill.pipeline.config import EmbedConfig

    return EmbedConfig(
        rules=SentenceRules(
            pairs=pairs, **{field.name: options[field.name] for field in fields(SentenceRules) if field.name in options}
        ),
        keep_text=not options["no_text"],
        compression=None if options["compression"] == "none" else options["compression"],
        dtype=options["dtype"] or "",
        max_tokens=options["max_tokens"] or 0,
        **{name: options[name] for name in ("shard_rows", "token_budget")},
    )


def _plan(corpus: "Corpus", config: "EmbedConfig", out: Path, *, jobs: bool) -> None:
    """Make the plan and say what follows; `jobs` is whether --slice can read the corpus."""
    from sentence_distill.pipeline.embed import make_or_load_plan
    from sentence_distill.pipeline.files import lock_folder, made_folder

    with made_folder(out), lock_folder(out):
        plan = make_or_load_plan(corpus, config, out)
    click.echo(
        f"{out}: a plan of {plan.rows:,} sentences in {len(plan.slices):,} slices\n"
        "next: the same command without --plan-only, "
        + ("or as jobs with --slice 1/N to N/N" if jobs else "with the same text on standard input")
    )


def _readable_twice(corpora: tuple[str, ...], text_column: str, out: Path) -> list[str]:
    """The corpora as locations; standard input and hub datasets are first copied beside the shards."""
    from sentence_distill.data.streams import standard_input
    from sentence_distill.pipeline.files import is_local
    from sentence_distill.pipeline.spool import HUB_PREFIX, spool_hub_dataset, spool_stream

    locations = []
    for corpus in corpora:
        copied = corpus == "-" or corpus.startswith(HUB_PREFIX)
        if copied and not is_local(out):
            raise UserError(f"--corpus {corpus} is copied beside the shards first, which needs a local --out")
        if corpus == "-":
            locations.append(str(spool_stream(standard_input(), out / "corpus")))
        elif copied:
            name = corpus.removeprefix(HUB_PREFIX)
            locations.append(str(spool_hub_dataset(name, text_column, out / "corpus")))
        else:
            locations.append(corpus)
    return locations


def _summary(out: str, manifest: dict[str, Any]) -> None:
    totals = manifest["totals"]
    rejected = sum(totals["rejected"].values())
    click.echo(
        f"{out}: {len(manifest['shards'])} shards, {totals['rows']:,} sentences, {totals['tokens']:,} tokens, "
        f"{totals['bytes'] / 1e6:,.1f} MB\n"
        f"from {totals['records']:,} records; {totals['duplicates']:,} duplicates left out, {rejected:,} rejected"
        + (f" (see {out.rstrip('/')}/rejected.jsonl): " if rejected else "")
        + ", ".join(f"{count:,} {reason}" for reason, count in totals["rejected"].items())
    )
    for line in _lost(totals):
        click.echo(line)
    click.echo(f"next: {next_command(out, manifest['fingerprint'])}")


def _lost(totals: dict[str, Any]) -> "Iterator[str]":
    """Say which option keeps what was left out, if that is much."""
    counts = {**totals["rejected"], "duplicates": totals["duplicates"]}
    for reason, count in counts.items():
        if reason in _KEPT_BY and count > _MUCH * totals["sentences"]:
            share = count / totals["sentences"]
            yield f"note: {share:.0%} of the sentences are left out as {reason}: {_KEPT_BY[reason]}"
