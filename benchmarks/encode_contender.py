"""One contender of encode_speed.py in a process of its own: loads, encodes once, prints what it took as JSON.

usage: python encode_contender.py --name NAME STUDENT TEACHER TEXT PAIRS WORKDIR [--batch-size N] [--single N]

NAME is student-bf16, student-fp32, student-int8, st-student-fp32, st-student-bf16, model2vec, or a teacher's of
embed_contender.py. Writes the vectors of both text files, one sentence a line, to WORKDIR/NAME.text.npy and
WORKDIR/NAME.pairs.npy. With --single it does neither: it encodes N sentences one a call, on one core, and prints the
milliseconds of a call, p50 and p99.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
from embed_contender import Encode, measured
from embed_contender import load as load_teacher


def load(name: str, student: Path, teacher: Path, workdir: Path, batch_size: int) -> Encode:
    """The contender as a function from sentences to vectors."""
    if name in ("student-bf16", "student-fp32"):
        import torch

        from sentence_distill import Student

        loaded, precision = Student.load(student), torch.bfloat16 if name.endswith("bf16") else torch.float32
        return lambda sentences: loaded.encode(sentences, precision)
    if name.startswith("st-student"):
        import torch
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(student), device="cpu")
        model = model.to(torch.bfloat16) if name.endswith("bf16") else model
        return lambda sentences: model.encode(sentences, batch_size=batch_size)
    if name == "student-int8":
        from sentence_distill.student.encoding.onnx_student import OnnxStudent

        return OnnxStudent(workdir / "onnx-int8").encode
    if name == "model2vec":
        from model2vec import StaticModel

        encode: Encode = StaticModel.from_pretrained(str(workdir / "model2vec")).encode
        return encode
    return load_teacher(name, teacher, workdir, batch_size)


def latency(encode: Encode, sentences: list[str]) -> dict[str, float]:
    """Milliseconds of a call with one sentence."""
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
        # Before anything counts the cores to start threads.
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
