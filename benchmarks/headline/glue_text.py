"""The training sentences of GLUE's tasks without their labels, a sentence a line: text of other kinds than Wikipedia's.

usage: python benchmarks/headline/glue_text.py GLUE_DIR OUT

STS-B's are left out, so that a student's figure on it stays one for text of a source it has not seen.
"""

import argparse
from pathlib import Path

from sentence_distill.data.glue import TASKS, TaskMissing, open_glue


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    glue, sentences = open_glue(options.glue_dir), {}
    for task in TASKS.values():
        if task.name == "STS-B":
            continue
        try:
            texts = glue.load(task, "train").texts
        except TaskMissing as missing:
            print(f"{task.name}: {missing}")
            continue
        before = len(sentences)
        sentences |= dict.fromkeys(" ".join(text.split()) for column in texts for text in column)
        print(f"{task.name}: {len(sentences) - before:,} sentences")
    options.out.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    print(f"{options.out}: {len(sentences):,} sentences")


if __name__ == "__main__":
    main()
