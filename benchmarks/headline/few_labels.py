"""A problem of few labels: 1,000 examples of SST-2 with labels and 20,000 other sentences without.

usage: python benchmarks/headline/few_labels.py GLUE_DIR OUT
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from sentence_distill.data.glue import TASKS, open_glue


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    source = open_glue(options.glue_dir)
    train, dev = (source.load(TASKS["SST-2"], split) for split in ("train", "dev"))
    order = np.random.default_rng(0).permutation(len(train.labels))
    labels = TASKS["SST-2"].labels
    tables = {"few-labels.tsv": (train, order[:1000]), "few-labels-dev.tsv": (dev, range(len(dev.labels)))}
    for name, (examples, rows) in tables.items():
        with (options.out / name).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
            table.writerow(["sentence", "label"])
            table.writerows([examples.texts[0][row].strip(), labels[int(examples.labels[row])]] for row in rows)
    texts = (train.texts[0][row].strip() for row in order[1000:21000])
    (options.out / "unlabeled.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
