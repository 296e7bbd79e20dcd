"""`sd embed`: stage one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.data.progress import Progress


def _layers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of layer numbers such as -1 or 3,6") from None


@click.command()
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    required=True,
    metavar="PATH",
    help="File, folder, glob, fsspec URL, - for standard input, or hf:NAME[:CONFIG[:SPLIT]]; may be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="shards",
    show_default=True,
    help="Folder of the shards; a run that was stopped goes on where it stood.",
)
@click.option(
    "--teacher",
    default=None,
    metavar="NAME",
    help="Folder or hub name of a transformer encoder, minilm or mpnet.  [default: bert-base-uncased, "
    "or the packaged MiniLM where it can't be had]",
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean", "max", "pooler"]),
    default=None,
    help="[default: a sentence-transformers teacher's own, otherwise cls]",
)
@click.option(
    "--layers",
    default="-1",
    show_default=True,
    callback=_layers,
    metavar="N[,N…]",
    help="Hidden layers to pool and concatenate; 0 is the word embeddings, -1 the last layer.",
)
@click.option(
    "--format",
    "format_",
    default=None,
    type=click.Choice(["text", "wikiextractor", "jsonl", "parquet", "arrow", "csv", "tsv"]),
    help="[default: found from name and content]",
)
@click.option("--text-field", default="text", show_default=True, help="JSON field or table column of the text.")
@click.option("--split/--no-split", default=True, show_default=True, help="Split each line into sentences.")
@click.option("--language", default="en", show_default=True, help="Language of the splitter's rules.")
@click.option("--min-words", default=3, show_default=True, help="Reject shorter sentences.")
@click.option("--max-words", default=100, show_default=True, help="Reject longer sentences.")
@click.option("--max-tokens", default=128, show_default=True, help="Reject sentences with more tokens.")
@click.option(
    "--shard-rows",
    default=16_384,
    show_default=True,
    type=click.IntRange(1),
    help="Sentences of a shard, the unit of commit and resume.",
)
@click.option(
    "--token-budget",
    default=4096,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens of a teacher's batch.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Of the embeddings on disk.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the teacher's arithmetic; auto is bf16 where the hardware has it.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--compression",
    type=click.Choice(["none", "zstd", "lz4"]),
    default="none",
    show_default=True,
    help="Of the shards; compressed ones can't be memory-mapped.",
)
@click.option("--no-text", is_flag=True, help="Keep token ids only, not the sentences.")
def embed(
    corpora: tuple[str, ...],
    out: Path,
    teacher: str | None,
    pooling: str | None,
    layers: tuple[int, ...],
    device: str,
    precision: str,
    **options: Any,
) -> None:
    """Run the teacher once over a corpus and write its sentence embeddings to sharded Arrow files.

    The corpus is split into sentences, cleaned and freed of exact duplicates; what can't be used is listed
    in rejected.jsonl. Stop it when you like: the same command goes on with the shard it was at.

    \b
      sd embed --corpus wiki.txt --out shards/
      sd embed --corpus 'dumps/*.jsonl.zst' --text-field body --teacher minilm
      zcat wiki.gz | sd embed --corpus - --teacher ./my-bert --pooling mean --layers 6,12
    """
    from dataclasses import fields

    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.data.corpus import Corpus
    from sentence_distill.data.sentences import SentenceRules
    from sentence_distill.data.sources import find_sources
    from sentence_distill.data.spool import HUB_PREFIX
    from sentence_distill.pipeline.locate import locate_teacher

    progress = ConsoleProgress()
    rules = SentenceRules(**{field.name: options[field.name] for field in fields(SentenceRules)})
    # Cheap mistakes first: a wrong path shows before any weights are loaded.
    paths = [corpus for corpus in corpora if corpus != "-" and not corpus.startswith(HUB_PREFIX)]
    if paths:
        find_sources(paths, out)
    located = locate_teacher(teacher)
    locations = _readable_twice(corpora, options["text_field"], out, progress)
    corpus = Corpus.open(locations, format=options["format_"], text_field=options["text_field"], leave_out=out)
    if located.notice:
        progress.log(f"note: {located.notice} ({located.reason})")

    from sentence_distill.pipeline.embed import EmbedConfig, EmbedRun
    from sentence_distill.pipeline.precision import pick_device, pick_precision
    from sentence_distill.pipeline.teacher import Teacher

    where = pick_device(device)
    loaded = Teacher.load(located, pooling=pooling, layers=layers, device=where, dtype=pick_precision(precision, where))
    progress.log(
        f"teacher {loaded.name}, pooling {loaded.recipe.pooling}, layers {','.join(map(str, loaded.recipe.layers))}"
        f"{', normalised' if loaded.recipe.normalize else ''}, {str(loaded.dtype).removeprefix('torch.')} on {where}"
    )
    config = EmbedConfig(
        rules=rules,
        keep_text=not options["no_text"],
        compression=None if options["compression"] == "none" else options["compression"],
        **{name: options[name] for name in ("shard_rows", "max_tokens", "token_budget", "dtype")},
    )
    run = EmbedRun(corpus=corpus, teacher=loaded, out=out, config=config, notice=located.notice, progress=progress)
    try:
        manifest = run.run()
    except KeyboardInterrupt:
        raise UserError(f"stopped; what is in {out} stays, and the same command goes on from there") from None
    _summary(out, manifest)


def _readable_twice(corpora: tuple[str, ...], text_field: str, out: Path, progress: "Progress") -> list[str]:
    """The corpora as locations; standard input and hub datasets are first copied beside the shards."""
    from sentence_distill.data.spool import HUB_PREFIX, spool_hub_dataset, spool_stream

    locations = []
    for corpus in corpora:
        if corpus == "-":
            locations.append(str(spool_stream(sys.stdin.buffer, out / "corpus")))
        elif corpus.startswith(HUB_PREFIX):
            name = corpus.removeprefix(HUB_PREFIX)
            locations.append(str(spool_hub_dataset(name, text_field, out / "corpus", progress)))
        else:
            locations.append(corpus)
    return locations


def _summary(out: Path, manifest: dict[str, Any]) -> None:
    totals = manifest["totals"]
    rejected = sum(totals["rejected"].values())
    click.echo(
        f"{out}: {len(manifest['shards'])} shards, {totals['rows']:,} sentences, {totals['tokens']:,} tokens, "
        f"{totals['bytes'] / 1e6:,.1f} MB\n"
        f"from {totals['records']:,} records; {totals['duplicates']:,} duplicates left out, {rejected:,} rejected"
        + (f" (see {out / 'rejected.jsonl'}): " if rejected else "")
        + ", ".join(f"{count:,} {reason}" for reason, count in totals["rejected"].items())
        + f"\nnext: sd train-student --shards {out}"
    )
