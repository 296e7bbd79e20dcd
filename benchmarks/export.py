"""What each way to make an exported student smaller costs: size, closeness to student and teacher, STS, latency.

All run in ONNX Runtime with one thread beside PyTorch with one; they take turns.

usage: python benchmarks/export.py STUDENT TEXT [--shards SHARDS] [--sts STS] [--calls N]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from sentence_distill.data.glue import Examples
from sentence_distill.data.sts import load_sts
from sentence_distill.student.encoding.onnx_student import OnnxStudent
from sentence_distill.student.evaluation.measure import sts_spearman
from sentence_distill.student.evaluation.models import Encode, megabytes
from sentence_distill.student.evaluation.reference import held_out_texts, token_counts
from sentence_distill.student.evaluation.texts import sentences_of_file
from sentence_distill.student.export.onnx_export import OnnxConfig, write_onnx
from sentence_distill.student.export.onnx_measure import agreement, latencies
from sentence_distill.student.export.vocabulary import frequent_tokens, prune_student
from sentence_distill.student.fidelity import public_targets
from sentence_distill.student.folder import load_distillation, load_student
from sentence_distill.student.model import Student
from sentence_distill.student.training.stream import ShardStream

_SENTENCES = 1000
_VARIANTS = {
    "fp32": OnnxConfig(),
    "fp32, float16 tables": OnnxConfig(tables="float16"),
    "fp32, int8 tables": OnnxConfig(tables="int8"),
    "int8": OnnxConfig(int8=True, tables="int8"),
    "int8, 24,000 tokens": OnnxConfig(int8=True, tables="int8", vocabulary=24_000),
    "int8, 16,000 tokens": OnnxConfig(int8=True, tables="int8", vocabulary=16_000),
    "int8, 8,000 tokens": OnnxConfig(int8=True, tables="int8", vocabulary=8_000),
    "int8, pq tables": OnnxConfig(int8=True, tables="pq"),
    "int8, pq tables, 24,000 tokens": OnnxConfig(int8=True, tables="pq", vocabulary=24_000),
}


def main() -> None:
    """Make every variant, measure all, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--shards", type=Path, help="default: those that the student was trained on")
    parser.add_argument("--sts", type=Path)
    parser.add_argument("--calls", type=int, default=1000, help="sentences that are timed, each alone")
    args = parser.parse_args()
    distillation, student = load_distillation(args.student), load_student(args.student)
    training = distillation["training"]
    shards = args.shards or Path(distillation["shards"])
    stream = ShardStream(shards, held_out=training["held_out"], layers=training["target_layers"])
    with tempfile.TemporaryDirectory() as temporary:
        folders = _export(student, stream, Path(temporary))
        encoders: dict[str, Encode] = {"PyTorch": student.encode}
        encoders |= {name: OnnxStudent(folder, threads=1).encode for name, folder in folders.items()}
        sizes = {"PyTorch": megabytes(args.student)} | {name: megabytes(folder) for name, folder in folders.items()}
    sentences = sentences_of_file(args.text, max(_SENTENCES, args.calls))
    rows = _quality(encoders, student, stream, sentences[:_SENTENCES], load_sts(args.sts) if args.sts else None)
    timed = latencies(encoders, sentences, args.calls)
    for row in rows:
        name = row["variant"]
        row |= {"megabytes": round(sizes[name], 2)}
        row |= {f"{percentile}_ms": round(value, 3) for percentile, value in timed[name].items()}
    write_result("export", {"sentences": _SENTENCES, "calls": args.calls, "text": args.text.name}, rows)


def _export(student: Student, stream: ShardStream, workdir: Path) -> dict[str, Path]:
    counts = token_counts(stream)
    folders = {}
    for number, (name, config) in enumerate(_VARIANTS.items()):
        small = student
        if config.vocabulary is not None:
            small = prune_student(student, frequent_tokens(student.tokenizer, counts, config.vocabulary))
        folders[name] = workdir / str(number)
        folders[name].mkdir()
        write_onnx(small, folders[name], config)
    return folders


def _quality(
    encoders: dict[str, Encode], student: Student, stream: ShardStream, sentences: list[str], pairs: Examples | None
) -> list[dict[str, Any]]:
    """Cosines to the student on the text, to the teacher on held-out sentences, and STS, of each variant."""
    expected = student.encode(sentences)
    texts = held_out_texts(stream, _SENTENCES) or []
    width = stream.fingerprint["dim"] // len(stream.fingerprint["layers"])
    held_out = stream.held_out()[1][: len(texts)]
    targets = public_targets(held_out, width, normalize=student.encoder.config.normalize).numpy()
    rows = []
    for name, encode in encoders.items():
        close = agreement(encode(sentences), expected)
        row = {"variant": name, "cosine_to_student": round(close["cosine"], 4)}
        row |= {"lowest_cosine_to_student": round(close["lowest_cosine"], 4)}
        # Between a reduced student's vectors and the teacher's there is no cosine.
        if texts and width == student.dim:
            row["cosine_to_teacher"] = round(agreement(np.asarray(encode(texts)), targets)["cosine"], 4)
        if pairs is not None:
            row["sts_spearman"] = round(sts_spearman(encode, pairs), 4)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
