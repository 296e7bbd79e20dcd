"""Sentences per second of a stage on a GPU, or on the CPU if there is none, and the share of time of its kernels.

usage: python benchmarks/gpu_speed.py embed SHARDS --teacher minilm       next to SentenceTransformer in bfloat16
       python benchmarks/gpu_speed.py train SHARDS --size small           50 steps under PyTorch's profiler

The teacher's share of the GPU's peak in bfloat16 is an estimate: two operations per token for each weight of its
layers, without attention. PEAK_TFLOPS=989 is the peak of an H100 or H200.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from embed_speed import sentences_of
from record import write_result
from torch.profiler import ProfilerActivity, profile

from sentence_distill.pipeline.hardware import TEACHER, pick_device, pick_precision
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.config import TrainConfig
from sentence_distill.student.train import Trainer

_ROUNDS, _STEPS = 3, 50
_BATCHES = (64, 128, 256, 512, 1024, 2048)


def main() -> None:
    """Measure a stage and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["embed", "train"])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--teacher", default="minilm")
    parser.add_argument("--size", default="small")
    parser.add_argument("--sentences", type=int, default=20_000)
    options = parser.parse_args()
    device = pick_device("auto")
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    rows = _embed(options, device) if options.stage == "embed" else _train(options, device)
    of = Path(options.teacher).name if options.stage == "embed" else options.size
    write_result(f"gpu-{options.stage}-{of}", {"gpu": found, "sentences": options.sentences}, rows)


def _embed(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    from sentence_transformers import SentenceTransformer

    located = locate_teacher(options.teacher)
    sentences = sentences_of(options.shards, options.sentences)
    dtype = pick_precision("auto", device, TEACHER)
    teacher = Teacher(located, device=device, dtype=dtype)
    tokens = teacher.tokenize(sentences)
    budget = 16_384 if device.type == "cuda" else 4096
    theirs = SentenceTransformer(str(located.folder), device=device.type, model_kwargs={"dtype": torch.bfloat16})
    tried = _BATCHES if device.type == "cuda" else _BATCHES[:1]

    def encode(size: int) -> Callable[[], Any]:
        return lambda: theirs.encode(sentences, batch_size=size, show_progress_bar=False)

    best = min(tried, key=lambda size: _seconds(encode(size)))
    ways = {
        f"sd embed, {str(dtype).removeprefix('torch.')}": lambda: teacher.embed(teacher.tokenize(sentences), budget),
        f"SentenceTransformer, bfloat16, batches of {best}": encode(best),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            taken[name].append(_seconds(way))
    weights = sum(weight.numel() for name, weight in theirs.named_parameters() if "embeddings" not in name)
    operations = 2 * weights * (len(tokens.ids) + 2 * len(sentences))
    peak = float(os.environ.get("PEAK_TFLOPS", "989")) * 1e12
    rows = []
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        share = {"share_of_peak": round(operations / median / peak, 3)} if device.type == "cuda" else {}
        rate = {"sentences_per_second": round(len(sentences) / median)}
        rows.append({"teacher": options.teacher, "way": name, **rate, **share})
    return rows


def _train(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(shards=options.shards, out=Path(folder) / "student", size=options.size, batch_size=1024)
        trainer = Trainer(config)
        batches = trainer.stream.batches(batch_size=config.batch_size, seed=0, epoch=0)
        for _, batch in zip(range(5), batches, strict=False):
            trainer._step(batch)
        rows, began = 0, _now(device)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=kinds) as found:
            for _, batch in zip(range(_STEPS), batches, strict=False):
                trainer._step(batch)
                rows += len(batch.targets)
            seconds = _now(device) - began
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    kernels = {event.key: getattr(event, spent) for event in found.key_averages()}
    lstm = sum(time for name, time in kernels.items() if any(part in name.lower() for part in ("rnn", "lstm")))
    share = round(lstm / max(1e-9, sum(kernels.values())), 3)
    rate = {"sentences_per_second": round(rows / seconds), "share_of_lstm_kernels": share}
    return [{"size": options.size, "batch_size": config.batch_size, **rate}]


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
