"""An exported student at work in ONNX Runtime, and how close it is to the one in PyTorch."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.student.export_folder import MODEL, TOKENIZER
from sentence_distill.student.models import Encode
from sentence_distill.student.onnx_graph import INPUTS, OUTPUT

_BATCH = 32
_CALLS = 200


class OnnxStudent:
    """Encodes sentences with what `sd export --onnx` wrote; takes nothing from the student's folder."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Open an export.

        Args:
            folder: of `sd export --onnx`.
            threads: for one call; 0 lets ONNX Runtime choose.

        Raises:
            UserError: there is none.
        """
        import onnxruntime

        if not (folder / MODEL).exists() or not (folder / TOKENIZER).exists():
            raise UserError(f"{folder} holds no export; make one: sd export STUDENT --onnx --out {folder}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences: float32[n, dim], in the order given; in batches of 32 of similar length."""
        encodings = self._tokenizer.encode_batch_fast(list(sentences))
        order = np.argsort([-sum(encoding.attention_mask) for encoding in encodings], kind="stable")
        vectors = np.empty((len(order), self._session.get_outputs()[0].shape[1]), dtype=np.float32)
        for first in range(0, len(order), _BATCH):
            rows = order[first : first + _BATCH]
            longest = sum(encodings[rows[0]].attention_mask)
            ids = np.array([encodings[row].ids[:longest] for row in rows], dtype=np.int64)
            mask = np.array([encodings[row].attention_mask[:longest] for row in rows], dtype=np.int64)
            (vectors[rows],) = self._session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))
        return vectors


def agreement(vectors: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How close float32[n, dim] vectors are to those expected: cosines of a sentence's two, and single components."""
    cosines = torch.nn.functional.cosine_similarity(torch.from_numpy(vectors), torch.from_numpy(expected))
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
