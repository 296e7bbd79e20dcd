"""Write the training sentences of GLUE's tasks without labels, one per line: text unlike Wikipedia's.

usage: python benchmarks/headline/glue_text.py GLUE_DIR OUT [--tasks NAME...] [--sentences N]

Those of STS-B are left out by default, so that it remains a test on unseen text. So is every sentence that occurs in a
dev set, ignoring case and punctuation: half of STS-B's pairs of news consist of sentences in MRPC's training set.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path

from sentence_distill.data.glue import TASKS, GlueSource, GlueTask, TaskMissing, open_glue


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[name for name in TASKS if name != "STS-B"])
    parser.add_argument("--sentences", type=int, help="Number of sentences to draw, with a fixed seed.")
    options = parser.parse_args()
    glue = open_glue(options.glue_dir)
    measured = {bare(sentence) for task in TASKS.values() for split in task.dev for sentence in read(glue, task, split)}
    sentences: dict[str, None] = {}
    for name in options.tasks:
        task = TASKS[name]
        before, left_out = len(sentences), 0
        for sentence in read(glue, task, "train"):
            if bare(sentence) in measured:
                left_out += 1
            else:
                sentences[sentence] = None
        print(f"{task.name}: {len(sentences) - before:,} sentences, {left_out:,} left out that stand in a dev set")
    written = list(sentences)
    if options.sentences:
        written = random.Random(0).sample(written, min(options.sentences, len(written)))
    options.out.write_text("".join(f"{sentence}\n" for sentence in written), encoding="utf-8")
    print(f"{options.out}: {len(written):,} sentences")


def read(glue: GlueSource, task: GlueTask, split: str) -> Iterator[str]:
    """Return the sentences in all columns of a split; [] if it is missing."""
    try:
        texts = glue.load(task, split).texts
    except TaskMissing as missing:
        print(f"{task.name}: {missing}")
        return
    for column in texts:
        yield from (" ".join(text.split()) for text in column)


def bare(sentence: str) -> str:
    """Normalize a sentence: without case and punctuation."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


if __name__ == "__main__":
    main()
