"""One contender of train_speed.py in its own process: train for a while, and print its speed as JSON.

usage: python train_contender.py NAME SHARDS TEACHER_FOLDER

NAME is naive, sd, sd-fp32, sd-dense, sd-default-malloc or teacher-in-the-loop. All train the default student, 300/300,
toward the last layer in SHARDS, in batches of 128.
"""

import argparse
import itertools
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from sentence_distill.pipeline.shards import Shard

BATCH = 128
WARM_UP_STEPS = {"naive": 10, "teacher-in-the-loop": 1}
MEASURED_S = 20.0
_NAIVE_ROWS = 16_384


class NaiveStudent(nn.Module):
    """The same student, over packed sequences."""

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 300)
        self.lstm = nn.LSTM(300, 300, batch_first=True, bidirectional=True)
        self.projection = nn.Linear(600, dim)

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Encode padded sentences."""
        packed = pack_padded_sequence(self.embedding(input_ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        inside = (torch.arange(states.shape[1])[None] < lengths[:, None])[:, :, None]
        return self.projection((states * inside).sum(dim=1) / lengths[:, None])


def naive(shards: Path, dim: int) -> Iterator[int]:
    """Train with a naive loop: random padded batches, packed, float32, dense AdamW, vectors from a Python list."""
    shard = Shard.open(sorted(shards.glob("shard-*.arrow"))[0])
    rows = range(min(_NAIVE_ROWS, len(shard.ids)))
    input_ids = [torch.tensor(shard.tokens[row].astype(np.int64)) for row in rows]
    vectors = shard.embeddings[: len(rows), -dim:].astype(np.float32).tolist()
    model = NaiveStudent(json.loads((shards / "manifest.json").read_text())["fingerprint"]["vocabulary"], dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while True:
        order = random.Random(0).sample(list(rows), len(rows))
        for first in range(0, len(order) - BATCH, BATCH):
            chosen = order[first : first + BATCH]
            lengths = torch.tensor([len(input_ids[row]) for row in chosen])
            output = model(pad_sequence([input_ids[row] for row in chosen], batch_first=True), lengths)
            loss = (1 - torch.cosine_similarity(output, torch.tensor([vectors[row] for row in chosen]))).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield BATCH


def trainer_of(name: str, shards: Path, out: Path) -> Any:
    """Make this project's trainer, as the command does, or with one optimization removed."""
    from ablations import DenseOptimizer

    from sentence_distill.pipeline.processes import keep_freed_memory
    from sentence_distill.student import train
    from sentence_distill.student.config import TrainConfig

    if name == "sd-dense":
        train.Optimizer = DenseOptimizer
    if name != "sd-default-malloc":
        keep_freed_memory()
    layer = json.loads((shards / "manifest.json").read_text())["fingerprint"]["layers"][-1]
    precision = "fp32" if name == "sd-fp32" else "auto"
    trainer = train.Trainer(
        TrainConfig(shards=shards, out=out, target_layers=(layer,), device="cpu", precision=precision)
    )
    trainer.encoder.train()
    return trainer


def endless(trainer: Any) -> Iterator[Any]:
    """Yield its batches, epoch after epoch."""
    config = trainer.config
    for trainer.state.epoch in itertools.count():
        yield from trainer.stream.batches(batch_size=config.batch_size, seed=config.seed, epoch=trainer.state.epoch)


def sd(name: str, shards: Path, out: Path, meter: list[float]) -> Iterator[int]:
    """Train with this project's loop; `meter` measures the time it waits for batches."""
    trainer = trainer_of(name, shards, out)
    batches = endless(trainer)
    while True:
        began = time.perf_counter()
        batch = next(batches)
        meter.append(time.perf_counter() - began)
        trainer._step(batch)
        yield len(batch.targets)


def teacher_in_the_loop(shards: Path, teacher: Path, out: Path) -> Iterator[int]:
    """Train with the teacher in the loop: it encodes each batch with sentence-transformers before the step."""
    import pyarrow as pa
    from sentence_transformers import SentenceTransformer

    from sentence_distill.student.dataset import Batch

    model = SentenceTransformer(str(teacher), device="cpu")
    trainer = trainer_of("sd", shards, out)
    dim = trainer.encoder.config.target_dims[-1]
    text = pa.ipc.open_file(pa.memory_map(str(sorted(shards.glob("shard-*.arrow"))[0]))).read_all()["text"]
    rng = np.random.default_rng(0)
    for batch in endless(trainer):
        # Not the sentences of the batch, whose text may be in another shard: only the time matters.
        sentences = text.take(rng.choice(len(text), len(batch.targets), replace=False)).to_pylist()
        vectors = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
        trainer._step(Batch(batch.input_ids, vectors[:, :dim]))
        yield len(batch.targets)


def main() -> None:
    """Warm up, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("shards", type=Path)
    parser.add_argument("teacher", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        loops: dict[str, Callable[[], Iterator[int]]] = {
            "naive": lambda: naive(args.shards, 384),
            "teacher-in-the-loop": lambda: teacher_in_the_loop(args.shards, args.teacher, Path(out)),
        }
        steps = loops.get(args.name, lambda: sd(args.name, args.shards, Path(out), waits))()
        for _ in range(WARM_UP_STEPS.get(args.name, 80)):
            next(steps)
        waits.clear()
        began, rows = time.perf_counter(), 0
        while (seconds := time.perf_counter() - began) < MEASURED_S:
            rows += next(steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": rows / seconds, "wait_share": sum(waits) / seconds, "peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
