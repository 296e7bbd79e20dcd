"""How close an exported student is to the one in PyTorch, and how fast both are."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.student.evaluation.models import Encode

_CALLS = 200


def agreement(vectors: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How close float32[n, dim] vectors are to those expected: cosines of a sentence's two, and single components."""
    cosines = functional.cosine_similarity(torch.from_numpy(vectors), torch.from_numpy(expected))
    return {
        "cosine": float(cosines.mean()),
        "lowest_cosine": float(cosines.min()),
        "largest_difference": float(np.abs(vectors - expected).max()),
    }


def latencies(encoders: dict[str, Encode], sentences: Sequence[str], calls: int = _CALLS) -> dict[str, Any]:
    """Milliseconds of a call with one sentence, text to vector: the 50th and 99th percentile of each encoder.

    The encoders take turns with every sentence, and PyTorch has one thread meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    try:
        # The first calls allocate.
        for encode in encoders.values():
            encode(sentences[:1])
        for number in range(calls):
            for name, encode in encoders.items():
                started = time.perf_counter()
                encode([sentences[number % len(sentences)]])
                taken[name].append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return {name: {f"p{part}": float(np.percentile(times, part)) for part in (50, 99)} for name, times in taken.items()}
