"""Sentences a second of stage one against SentenceTransformer.encode, same sentences, same run.

usage: python benchmarks/embed_speed.py SHARDS [--sentences 4000] [--rounds 3] [--teacher minilm]

The sentences are spread over the shards' corpus in its own order. Each round times every contender once, so
that a slow minute of the machine meets them all; the medians count. Writes a dated file to benchmarks/results.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from record import write_result
from sentence_transformers import SentenceTransformer

from sentence_distill.pipeline.locate import locate_teacher
from sentence_distill.pipeline.precision import pick_precision
from sentence_distill.pipeline.teacher import Teacher


def sentences_of(shards: Path, count: int) -> list[str]:
    """`count` sentences, spread evenly over the shards."""
    texts: list[str] = []
    paths = sorted(shards.glob("shard-*.arrow"))
    for path in paths:
        texts += pa.ipc.open_file(pa.memory_map(str(path))).read_all()["text"].to_pylist()
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="minilm")
    options = parser.parse_args()

    sentences = sentences_of(options.shards, options.sentences)
    cpu, located = torch.device("cpu"), locate_teacher(options.teacher)
    best = pick_precision("auto", cpu)
    teacher = Teacher.load(located, device=cpu, dtype=best)
    exact = Teacher.load(located, device=cpu, dtype=torch.float32)
    peer = SentenceTransformer(str(located.folder), device="cpu")

    def peer_bf16() -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return peer.encode(sentences)

    contenders = {
        f"sd embed, {str(best).removeprefix('torch.')}": lambda: teacher.embed(teacher.tokenize(sentences), 4096),
        "sd embed, float32": lambda: exact.embed(exact.tokenize(sentences), 4096),
        "SentenceTransformer.encode": lambda: peer.encode(sentences),
        "SentenceTransformer.encode, bfloat16 autocast": peer_bf16,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    vectors = {}
    for _ in range(options.rounds):
        for name, encode in contenders.items():
            started = time.perf_counter()
            vectors[name] = encode()
            seconds[name].append(time.perf_counter() - started)
    reference = vectors["SentenceTransformer.encode"]
    rates = {name: len(sentences) / statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "contender": name,
            "sentences_per_second": round(rate, 1),
            "ratio_to_SentenceTransformer": round(rate / rates["SentenceTransformer.encode"], 2),
            "mean_cosine_to_SentenceTransformer": round(float((vectors[name] * reference).sum(axis=1).mean()), 5),
        }
        for name, rate in rates.items()
    ]
    tokens = sum(map(len, teacher.tokenize(sentences)))
    setting = {
        "teacher": located.name,
        "sentences": len(sentences),
        "mean_tokens": round(tokens / len(sentences), 1),
        "rounds": options.rounds,
    }
    write_result("embed_speed", setting, rows)


if __name__ == "__main__":
    main()
