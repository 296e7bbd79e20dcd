"""An exported student at work in ONNX Runtime; nothing here imports PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.student.export_folder import INPUTS, MODEL, OUTPUT, TOKENIZER

_BATCH = 32


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
