"""Make the static model that users might choose over a student, from the same teacher.

usage: python benchmarks/peers.py WORKDIR [--teacher minilm]

Writes WORKDIR/model2vec, with model2vec's defaults (the extra `peers`). Then time student, teacher, the teacher in
SentenceTransformer, and the static model side by side:

    sd eval --speed distilled minilm WORKDIR/model2vec --sts dev.tsv
"""

import argparse
from pathlib import Path

import numpy as np

from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.teacher_folder import transformer_folder


def make_static(teacher: Path, folder: Path) -> None:
    """Write model2vec's static model of a teacher, with its defaults."""
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    transformer = transformer_folder(teacher)
    # model2vec's `distill` would also read pickled weights.
    model = AutoModel.from_pretrained(transformer, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(transformer, local_files_only=True)
    static = distill_from_model(model, tokenizer, device="cpu")
    # Before 0.9, model2vec saves a column-major table, as PCA returns it, as if it were row-major, and pads like the
    # teacher.
    static.embedding = np.ascontiguousarray(static.embedding)
    static.tokenizer.no_padding()
    static.save_pretrained(str(folder))


def main() -> None:
    """Make the static model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--teacher", default="minilm")
    options = parser.parse_args()
    make_static(locate_teacher(options.teacher).folder, options.workdir / "model2vec")


if __name__ == "__main__":
    main()
