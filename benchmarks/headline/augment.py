"""Write unlabelled texts as JSON lines for `sd embed`, with augmented copies (Tang et al. 2019).

The texts are the training examples of a GLUE task, or the lines of a file.

usage: python benchmarks/headline/augment.py OUT (--task NAME --glue-dir DIR | --text FILE) [--copies N] [--mask TOKEN]
"""

import argparse
from itertools import chain
from pathlib import Path

from sentence_distill.data.glue import TASKS, open_glue
from sentence_distill.data.labelled import json_line, synthetic_examples
from sentence_distill.pipeline.files import replacing


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--task", choices=TASKS)
    source.add_argument("--text", type=Path)
    parser.add_argument("--glue-dir", type=Path)
    parser.add_argument("--copies", type=int, default=20, help="Copies of each example; duplicates are dropped.")
    parser.add_argument("--mask", default="[MASK]", help="Mask token of the teacher.")
    options = parser.parse_args()
    if options.task:
        texts = open_glue(options.glue_dir).load(TASKS[options.task], "train").texts
    else:
        texts = ([line.strip() for line in options.text.read_text(encoding="utf-8").split("\n") if line.strip()],)
    copies = synthetic_examples(texts, copies=options.copies, mask=options.mask, seed=0)
    with replacing(options.out) as file:
        file.writelines(json_line(example) for example in chain(zip(*texts, strict=True), copies))


if __name__ == "__main__":
    main()
