"""How close an exported student is to the one in PyTorch, and how fast both are."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.student.encoding.export_folder import Agreement
from sentence_distill.student.evaluation.models import Encode
from sentence_distill.student.onnx_encoder import PROBABILITIES, SCORES

_CALLS = 200


def agreement(texts: str, output: str, exported: Encode, student: Encode, sentences: Sequence[str]) -> Agreement:
    """Compare what an export computes with its student.

    Args:
        texts: origin of the sentences.
        output: the name of what both compute, see `OnnxEncoder.output`.
        exported: the export.
        student: the student in PyTorch.
        sentences: what to compare on.
    """
    found, expected = exported(sentences), student(sentences)
    compared = Agreement(
        texts=texts, sentences=len(sentences), largest_difference=float(np.abs(found - expected).max())
    )
    if output == PROBABILITIES:
        return replace(compared, same_label=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()))
    if output == SCORES:
        return replace(compared, range=(float(expected.min()), float(expected.max())))
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    return replace(compared, cosine=float(cosines.mean()), lowest_cosine=float(cosines.min()))


def latencies(
    encoders: dict[str, Encode], sentences: Sequence[str], calls: int = _CALLS
) -> dict[str, dict[str, float]]:
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
