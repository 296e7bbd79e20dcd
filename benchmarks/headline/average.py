"""A student whose weights are the mean of two of one shape: SHARE of the first, the rest of the second.

usage: python benchmarks/headline/average.py FIRST SECOND SHARE OUT
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file, save_file

from sentence_distill.student.files import locate_student, module_weights
from sentence_distill.student.reduce import copy_student


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    first, second = locate_student(options.first), locate_student(options.second)
    options.out.mkdir()
    copy_student(first, options.out)
    for path in module_weights(first):
        name = path.relative_to(first)
        ours, theirs = load_file(path), load_file(second / name)
        mixed = {key: options.share * ours[key].float() + (1 - options.share) * theirs[key].float() for key in ours}
        save_file(mixed, options.out / name)


if __name__ == "__main__":
    main()
