"""Text of two tasks' own kind, without labels: SST-2's and CoLA's training sentences, and sentences of Wikipedia.

usage: python benchmarks/task_text.py GLUE_DIR WIKI OUT [--wiki-sentences 25000]

WIKI holds a paragraph a line; OUT gets a sentence a line.
"""

import argparse
import random
from pathlib import Path

from sentencex import segment

_LINES = 30_000
_WORDS = range(3, 61)


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("glue_dir", "wiki", "out"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--wiki-sentences", type=int, default=25_000)
    options = parser.parse_args()
    # Both have no quoted cells; SST-2's file begins with a header.
    reviews = [row[0].strip() for row in _cells(options.glue_dir / "SST-2" / "train.tsv")[1:]]
    linguistics = [row[3].strip() for row in _cells(options.glue_dir / "CoLA" / "train.tsv")]
    sentences = reviews + linguistics + _wikipedia(options.wiki)[: options.wiki_sentences]
    options.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{len(reviews):,} of SST-2, {len(linguistics):,} of CoLA, {len(sentences):,} in all: {options.out}")


def _cells(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]


def _wikipedia(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith("<")]
    random.Random(1).shuffle(lines)
    found = (sentence.strip() for line in lines[:_LINES] for sentence in segment("en", line))
    sentences = [sentence for sentence in found if len(sentence.split()) in _WORDS]
    random.Random(0).shuffle(sentences)
    return sentences


if __name__ == "__main__":
    main()
