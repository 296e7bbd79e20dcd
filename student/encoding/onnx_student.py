"""An exported student at work in ONNX Runtime; nothing here imports PyTorch."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.children import cores
from sentence_distill.student.batches import near_length_batches, pad_tokens
from sentence_distill.student.encoding.export_folder import INPUTS, MODEL, OUTPUT, TOKENIZER

# A batch's states then fit into a core's cache.
_TOKEN_BUDGET = 2048


class OnnxStudent:
    """Encodes sentences with what `sd export --onnx` wrote; takes nothing from the student's folder."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        """Open an export.

        Args:
            folder: of `sd export --onnx`.
            threads: how many batches are computed side by side, each by one thread; 0 is one a core.

        Raises:
            UserError: there is none, or it is damaged.
        """
        import onnxruntime

        command = f"sd export STUDENT --onnx --out {folder}"
        if not (folder / MODEL).exists() or not (folder / TOKENIZER).exists():
            raise UserError(f"{folder} holds no export; make one: {command}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # neither library has a class of its own for a damaged file
            raise UserError(
                f"the export in {folder} is damaged ({first_line(error)}); make it again: {command}"
            ) from error
        # Batches are padded here, each to its own longest sentence.
        self._tokenizer.no_padding()
        self._threads = threads or cores()
        self._folder = folder

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._session.get_outputs()[0].shape[1])

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences: float32[n, dim], in the order given."""
        return self.vectors(self.tokenize(sentences))

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(sentences))]

    def vectors(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """float32[n, dim] of n tokenised sentences, in batches of near lengths, several side by side."""
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        out = np.empty((len(tokens), self.dim), dtype=np.float32)

        def encode(rows: np.ndarray) -> None:
            out[rows] = self._encode_batch([tokens[row] for row in rows])

        # The longest first, so that no thread is left alone with it at the end.
        batches = list(near_length_batches(lengths, _TOKEN_BUDGET))[::-1]
        if len(batches) == 1 or self._threads == 1:
            for rows in batches:
                encode(rows)
            return out
        with ThreadPoolExecutor(self._threads) as pool:
            try:
                for done in [pool.submit(encode, rows) for rows in batches]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return out

    def _encode_batch(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        input_ids, lengths = pad_tokens(tokens)
        attention_mask = (np.arange(input_ids.shape[1]) < lengths[:, None]).astype(np.int64)
        (vectors,) = self._session.run([OUTPUT], dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))
        return vectors  # type: ignore[no-any-return]

    def identity(self) -> dict[str, str]:
        """Hashes of the model's and the tokenizer's files."""
        return {name: file_hash(self._folder / name) for name in (MODEL, TOKENIZER)}
