"""`sd augment`: unlabelled text for distillation on one task."""

import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from sentence_distill.cli.out_file import check_out_file
from sentence_distill.cli.values import SEED
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue_tasks import TASKS

if TYPE_CHECKING:
    from sentence_distill.data.progress import Advance


@click.command()
@click.option(
    "--task", type=click.Choice(list(TASKS), case_sensitive=False), default=None, help="Of GLUE: its training text."
)
@click.option(
    "--glue-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder of the official TSV files.  [default: the hub's copy]",
)
@click.option(
    "--text",
    "locations",
    multiple=True,
    metavar="PATH",
    help="Your own plain text instead of --task: an example a line, a pair with a tab between; may be repeated.",
)
@click.option(
    "--copies",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="Augmented copies of each example, duplicates dropped; 0 writes the text alone.",
)
@click.option("--mask", default="[MASK]", show_default=True, help="The teacher's mask token.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of the augmentation.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of JSON lines to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace --out where it is there already.")
def augment(
    task: str | None,
    glue_dir: Path | None,
    locations: tuple[str, ...],
    copies: int,
    mask: str,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Write a task's text, without labels, and augmented copies of it (Tang et al. 2019).

    In a copy words are masked, or only a run of up to five words stays. Of pairs the copies change the first
    sentence, the second and both in turn.

    \b
      sd augment --task SST-2 --glue-dir glue/ --out sst2.jsonl
      sd augment --text reviews.txt --copies 10 --out reviews.jsonl
    """
    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.data.augment import synthetic_examples
    from sentence_distill.data.sources import find_sources
    from sentence_distill.data.unlabelled import FIELDS, read_unlabelled
    from sentence_distill.pipeline.files import replacing

    if (task is None) == (not locations):
        raise click.UsageError("give either --task or --text")
    if glue_dir and locations:
        raise click.UsageError("--glue-dir goes with --task")
    if len(mask.split()) != 1:
        raise click.UsageError("--mask is one word, such as [MASK]")
    check_out_file(out, find_sources(locations) if locations else [], overwrite)
    texts = read_unlabelled(locations) if task is None else _task_texts(task, glue_dir)
    with replacing(out) as file, ConsoleProgress().task("augment", None, "examples") as advance:
        count = _write(zip(*texts, strict=True), file, advance)
        added = _write(synthetic_examples(texts, copies=copies, mask=mask, seed=seed), file, advance)
    split = "--no-split " if len(texts) == 1 else ""
    click.echo(
        f"{out}: {count:,} examples and {added:,} different augmented copies\n"
        f"next: sd embed --corpus {shlex.quote(str(out))} --text-column {','.join(FIELDS[len(texts)])} "
        f"{split}--min-words 1"
    )


def _write(examples: Iterator[tuple[str, ...]], file: BinaryIO, advance: "Advance") -> int:
    from sentence_distill.data.unlabelled import json_line

    count = 0
    # A progress bar costs more than an example.
    while lines := [json_line(example) for example in islice(examples, 1000)]:
        file.write(b"".join(lines))
        advance(len(lines))
        count += len(lines)
    return count


def _task_texts(name: str, glue_dir: Path | None) -> tuple[list[str], ...]:
    from sentence_distill.data.glue import TaskMissing, open_glue

    try:
        return open_glue(glue_dir).load(TASKS[name], "train").texts
    except TaskMissing as error:
        raise UserError(f"--glue-dir {glue_dir}: {error}") from None
