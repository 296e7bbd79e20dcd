"""Intrinsic measures of a student: fidelity, STS-B, size, and speed beside its teacher's."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from sentence_distill.data.glue import Examples
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.fidelity import fidelity
from sentence_distill.student.model import Student, encode_tokens
from sentence_distill.student.stream import ShardStream

TIMED_SENTENCES = 2000
_REPEATS = 3


def held_out_fidelity(student: Student, shards: Path, held_out: float) -> dict[str, float]:
    """`fidelity` on the rows of `shards` that training held out."""
    input_ids, targets = ShardStream(shards, held_out=held_out).held_out()
    return fidelity(
        encode_tokens(student.encoder, input_ids), targets[:, -student.encoder.config.target_dims[-1] :]
    )


def sts_spearman(encode: Callable[[Sequence[str]], np.ndarray], examples: Examples) -> float:
    """Spearman correlation of human scores with the cosines of `encode`'s vectors of each pair."""
    first, second = (torch.from_numpy(encode(column)) for column in examples.texts)
    cosines = functional.cosine_similarity(first, second, dim=1).numpy()
    return float(spearmanr(cosines, examples.labels).statistic)


def size(folder: Path, student: Student) -> dict[str, float]:
    """Parameters, and megabytes of all that is needed to load the student; checkpoints are left out."""
    files = [f for f in folder.rglob("*") if f.is_file() and "checkpoints" not in f.relative_to(folder).parts]
    return {
        "parameters": sum(p.numel() for p in student.encoder.parameters()),
        "megabytes": sum(f.stat().st_size for f in files) / 1e6,
    }


def sample_sentences(shards: Path, count: int = TIMED_SENTENCES) -> list[str]:
    """The first sentences of the first shard, for timing; none where the shards keep no text."""
    table = pa.ipc.open_file(pa.memory_map(str(shards / "shard-00000.arrow"))).read_all()
    return table["text"][:count].to_pylist() if "text" in table.column_names else []


def teacher_encoder(teacher: Teacher, token_budget: int) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from sentences to the teacher's vectors of its last target layer, as stage one makes them."""

    def encode(sentences: Sequence[str]) -> np.ndarray:
        ids = [tokens[: teacher.max_tokens] for tokens in teacher.tokenize(sentences)]
        return teacher.embed(ids, token_budget)[:, -teacher.layer_dim :]

    return encode


def speed(
    encoders: dict[str, Callable[[Sequence[str]], np.ndarray]], sentences: Sequence[str]
) -> dict[str, float]:
    """Sentences a second of each encoder, tokenising included: the median of three rounds.

    In each round the encoders take turns, so that a slow minute of the machine meets them all.
    """
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(sentences[:64])
    for _ in range(_REPEATS):
        for name, encode in encoders.items():
            started = time.perf_counter()
            encode(sentences)
            rates[name].append(len(sentences) / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in rates.items()}
