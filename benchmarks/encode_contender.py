"""One contender of encode_speed.py in its own process: load, encode once, and print the costs as JSON.

usage: python encode_contender.py --name NAME STUDENT TEACHER TEXT PAIRS WORKDIR [--batch-size N] [--single N]

NAME is student-int8, student-bf16, student-fp32, before, before-int8 (both of version 0.1.0), model2vec,
model2vec-nanotoken, or a teacher of embed_contender.py. Writes the vectors of both text files, one sentence per line,
to WORKDIR/NAME.text.npy and WORKDIR/NAME.pairs.npy. With --single, it instead encodes N sentences, one per call, on one
core, and prints the milliseconds per call, p50 and p99.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from embed_contender import Encode, measured
from embed_contender import load as load_teacher


def load(name: str, student: Path, teacher: Path, workdir: Path, batch_size: int) -> Encode:
    """Load a contender as a function from sentences to vectors."""
    if name.startswith("student"):
        import torch

        from sentence_distill import Student

        loaded, precisions = Student.load(student), {"bf16": torch.bfloat16, "fp32": torch.float32}
        precision = precisions.get(name.removeprefix("student-"))
        return lambda sentences: loaded.encode(sentences, precision)
    if name.startswith("before"):
        return _before(name, student, workdir)
    if name.startswith("model2vec"):
        from model2vec import StaticModel

        static = StaticModel.from_pretrained(str(workdir / "model2vec"))
        return static.encode if name == "model2vec" else _over_nanotoken(static)
    return load_teacher(name, teacher, workdir, batch_size)


def _before(name: str, student: Path, workdir: Path) -> Encode:
    """Load a student as version 0.1.0 ran it: in PyTorch, in the dtype of its sd encode, or its int8 export."""
    import subprocess
    import sys

    import torch

    from sentence_distill import Student
    from sentence_distill.student.onnx_student import OnnxStudent

    if name == "before":
        from sentence_distill.pipeline.hardware import STUDENT, pick_precision

        loaded, precision = Student.load(student), pick_precision("auto", torch.device("cpu"), STUDENT)
        return lambda sentences: loaded.encode(sentences, precision)
    export = workdir / "before-onnx"
    if not export.exists():
        command = ["export", str(student), "--onnx", "--int8", "--out", str(export), "--sentences"]
        command += [str(workdir / "pairs.txt")]
        subprocess.run([sys.executable, "-m", "sentence_distill.cli", *command], check=True, stdout=sys.stderr)
    encode: Encode = OnnxStudent.of_export(export).encode
    return encode


def _over_nanotoken(static: Any) -> Encode:
    """Load a static model with this project's tokenizer: the model's own pooling over those ids."""
    from sentence_distill.data.tokenization import TextTokenizer

    tokenizer = TextTokenizer(static.tokenizer.to_str())

    def encode(sentences: list[str]) -> np.ndarray:
        tokens = tokenizer.tokenize(sentences)
        # Each sentence has a token, because neither the text nor the pairs have empty lines.
        vectors = np.stack([static._encode_helper(tokens[row]).mean(axis=0) for row in range(len(tokens))])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]

    return encode


def latency(encode: Encode, sentences: list[str]) -> dict[str, float]:
    """Measure milliseconds per call with one sentence."""
    encode(sentences[:1])
    milliseconds = []
    for sentence in sentences:
        started = time.perf_counter()
        encode([sentence])
        milliseconds.append(1000 * (time.perf_counter() - started))
    return {f"p{part}": float(np.percentile(milliseconds, part)) for part in (50, 99)}


def main() -> None:
    """Encode once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("student", "teacher", "text", "pairs", "workdir"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--name", required=True)
    parser.add_argument("--single", type=int)
    options = parser.parse_args()
    if options.single:
        # Before any library counts the cores to start threads.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sentences = options.text.read_text(encoding="utf-8").splitlines()
    encode = load(options.name, options.student, options.teacher, options.workdir, options.batch_size)
    if options.single:
        print(json.dumps(latency(encode, sentences[: options.single])))
        return
    vectors, figures = measured(encode, sentences)
    pairs = encode(options.pairs.read_text(encoding="utf-8").splitlines())
    for kind, found in (("text", vectors), ("pairs", pairs)):
        np.save(options.workdir / f"{options.name}.{kind}.npy", found.astype(np.float32))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
