"""Unlabelled text for two tasks: the training sentences of SST-2 and CoLA, and sentences of Wikipedia.

usage: python benchmarks/task_text.py GLUE_DIR WIKI OUT [--wiki-sentences 25000]

WIKI has one paragraph per line; OUT gets one sentence per line.
"""

import argparse
import random
from pathlib import Path

from sentencex import segment

from sentence_distill.data.glue import TASKS, open_glue

_LINES = 30_000
_WORDS = range(3, 61)


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("glue_dir", "wiki", "out"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--wiki-sentences", type=int, default=25_000)
    options = parser.parse_args()
    reviews, linguistics = (_training_text(options.glue_dir, task) for task in ("SST-2", "CoLA"))
    sentences = reviews + linguistics + _wikipedia(options.wiki)[: options.wiki_sentences]
    options.out.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{len(reviews):,} of SST-2, {len(linguistics):,} of CoLA, {len(sentences):,} in all: {options.out}")


def _training_text(folder: Path, task: str) -> list[str]:
    return [sentence.strip() for sentence in open_glue(folder).load(TASKS[task], "train").texts[0]]


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
