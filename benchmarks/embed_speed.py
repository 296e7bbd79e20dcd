"""Sentences per second of the teacher in stage one, compared with alternatives on the same sentences.

usage: python benchmarks/embed_speed.py SHARDS WORKDIR [--sentences 6000] [--rounds 3] [--teacher minilm]
                                        [--peer-python ENV/bin/python]

The sentences are evenly spaced over the corpus of the shards. Each contender encodes them in its own process, once per
round, so that a slow phase of the machine affects all of them; medians are reported. ONNX and OpenVINO are included if
--peer-python names an environment made from peers-requirements.txt. Writes a dated file and a plot to results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from batch_size import fastest_batch_size
from record import RESULTS, forget_made, write_result
from transformers import AutoConfig

from sentence_distill.pipeline.load import locate_teacher

CONTENDER = Path(__file__).with_name("embed_contender.py")
NAMES = {
    "sd-bf16": "sd embed, bfloat16",
    "sd-fp32": "sd embed, float32",
    "st": "SentenceTransformer.encode as it comes",
    "st-bf16": "SentenceTransformer.encode, bfloat16 autocast",
    "onnx-fp32": "SentenceTransformer, ONNX, float32",
    "onnx-int8": "SentenceTransformer, ONNX, int8",
    "openvino-fp32": "SentenceTransformer, OpenVINO, float32",
    "openvino-bf16": "SentenceTransformer, OpenVINO, bfloat16",
    "openvino-int8": "SentenceTransformer, OpenVINO, int8",
}
_TOKEN_BUDGET = 4096
_PROBED = 1000


def sentences_of(shards: Path, count: int) -> list[str]:
    """Return `count` sentences, evenly spaced over the shards."""
    texts: list[str] = []
    for path in sorted(shards.glob("shard-*.arrow")):
        texts += pa.ipc.open_file(pa.memory_map(str(path))).read_all()["text"].to_pylist()
    return [texts[i] for i in np.linspace(0, len(texts) - 1, count).astype(int)]


def contend(name: str, python: str, folder: Path, sentences: Path, workdir: Path, batch_size: int) -> dict[str, Any]:
    """Run a contender once; return seconds, memory and versions."""
    vectors = workdir / f"{name}.npy"
    command = [python, str(CONTENDER), "--name", name, str(folder), str(sentences), str(vectors), str(workdir)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--batch-size", str(batch_size)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def peak_flops() -> float:
    """Measure FLOP per second of a large matrix product in bfloat16."""
    a, b = (torch.randn(4096, 4096).to(torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * 4096**3 / statistics.median(seconds[1:])


def model_flops(folder: Path, sentences: list[str]) -> float:
    """Count FLOP of the encoder's matrix products over `sentences`, with special tokens and without padding."""
    from tokenizers import Tokenizer

    config = AutoConfig.from_pretrained(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = np.array([len(e.ids) for e in tokenizer.encode_batch_fast(sentences)], dtype=np.float64)
    width, inner = config.hidden_size, config.intermediate_size
    linear = 2 * (4 * width**2 + 2 * width * inner) * lengths.sum()
    attention = 4 * width * (lengths**2).sum()
    return float(config.num_hidden_layers * (linear + attention))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot sentences per second, with the ratio to the first peer."""
    import matplotlib.pyplot as plt

    rows = sorted(rows, key=lambda row: row["sentences_per_second"])
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1))
    colours = ["#1f6f8b" if row["contender"].startswith("sd") else "#b8b8b8" for row in rows]
    bars = axes.barh([row["contender"] for row in rows], [row["sentences_per_second"] for row in rows], color=colours)
    axes.bar_label(
        bars, [f"{row['ratio']:.1f}x, cosine {row['mean_cosine_to_float32']:.5f}" for row in rows], padding=4
    )
    axes.set_xlim(right=1.6 * rows[-1]["sentences_per_second"])
    axes.set_xlabel("sentences a second, 2 cores" if torch.get_num_threads() == 2 else "sentences a second")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--sentences", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="minilm")
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    forget_made(options.workdir)
    sentences = sentences_of(options.shards, options.sentences)
    text, probe = options.workdir / "sentences.txt", options.workdir / "probe.txt"
    text.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    probe.write_text("\n".join(sentences[:: max(1, len(sentences) // _PROBED)][:_PROBED]) + "\n", encoding="utf-8")
    located = locate_teacher(options.teacher)

    def run(name: str, source: Path, batch_size: int) -> dict[str, Any]:
        python = sys.executable if name[:2] in ("sd", "st") else options.peer_python
        return contend(name, python, located.folder, source, options.workdir, batch_size)

    def probed(name: str, size: int) -> float:
        return float(run(name, probe, size)["wall_s"])

    names = [name for name in NAMES if name[:2] in ("sd", "st") or options.peer_python]
    batch_sizes = {name: _TOKEN_BUDGET if name.startswith("sd") else 32 for name in names}
    # The default contender uses its own batch size, all faster ones their best.
    for name in names:
        if name != "st" and not name.startswith("sd"):
            batch_sizes[name] = fastest_batch_size(partial(probed, name))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    peaks = []
    for number in range(options.rounds):
        peaks.append(peak_flops())
        for name in names:
            runs[name].append(run(name, text, batch_sizes[name]))
            print(f"round {number + 1}, {name}: {len(sentences) / runs[name][-1]['wall_s']:.1f}/s", flush=True)
    reference = np.load(options.workdir / "st.npy")
    flops, peak = model_flops(located.folder, sentences), statistics.median(peaks)
    slowest = statistics.median(run["wall_s"] for run in runs["st"])
    rows = []
    for name, results in runs.items():
        wall = statistics.median(run["wall_s"] for run in results)
        vectors = np.load(options.workdir / f"{name}.npy")
        cosines = (
            (vectors * reference).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(reference, axis=1)
        )
        rows.append(
            {
                "contender": NAMES[name],
                "sentences_per_second": round(len(sentences) / wall, 1),
                "ratio": round(slowest / wall, 2),
                "mean_cosine_to_float32": round(float(cosines.mean()), 5),
                "wall_s": round(wall, 2),
                "user_sys_s": round(statistics.median(run["user_sys_s"] for run in results), 2),
                "peak_mb": round(statistics.median(run["peak_mb"] for run in results)),
                "share_of_bf16_peak": round(flops / wall / peak, 3),
                "batch": batch_sizes[name],
                "wall_s_of_rounds": [round(run["wall_s"], 2) for run in results],
                "versions": results[0]["versions"],
            }
        )
    setting = {
        "teacher": located.name,
        "sentences": len(sentences),
        "rounds": options.rounds,
        "gflop_per_sentence": round(flops / len(sentences) / 1e9, 3),
        "bf16_peak_gflops": round(peak / 1e9, 1),
    }
    path = write_result("embed_speed", setting, rows)
    plot(rows, RESULTS / path.with_suffix(".svg").name)


if __name__ == "__main__":
    main()
