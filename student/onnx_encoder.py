"""A student's ONNX graph at work in ONNX Runtime: tokens to vectors, or to a classifier's outputs.

Nothing here imports PyTorch.
"""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.batches import near_length_batches

BACKENDS = ("auto", "onnx", "torch")
_INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
PROBABILITIES, SCORES = "probabilities", "scores"
"""Outputs of classifiers: of classes, and of a regression."""
UNITS = "units"
"""Key of a graph's metadata: the LSTM's units in each direction."""
# Tokens of a batch times units: what a core's cache holds. For 256 units that is 1,536 tokens; 4,096 lose a fifth.
_STATES = 1536 * 256


_Opened = TypeVar("_Opened")


def name_in_column(name: str, column: int) -> str:
    """A name as it stands for the first column of texts, with `_2` appended for the second."""
    return f"{name}_{column + 1}" if column else name


def inputs_of_column(column: int) -> tuple[str, ...]:
    """Names of the graph's inputs for one column of texts: ids and mask."""
    return tuple(name_in_column(name, column) for name in _INPUTS)


def open_onnx(backend: str, opener: Callable[[], _Opened]) -> _Opened | None:
    """Open a student in ONNX Runtime as a backend asks for it; return None if PyTorch is to run it.

    Args:
        backend: one of `BACKENDS`; "auto" is decided by trying.
        opener: opens the graph, or raises an ImportError or a ValueError.

    Raises:
        UserError: it is none of them, or ONNX Runtime is asked for and does not run here.
    """
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "torch":
        return None
    try:
        return opener()
    except (ImportError, ValueError) as error:
        if backend == "onnx":
            raise UserError(
                f"ONNX Runtime does not run this student here ({first_line(error)}); use the backend torch"
            ) from error
        logging.getLogger(__name__).warning("ONNX Runtime does not run here (%s): PyTorch does", first_line(error))
        return None


class OnnxEncoder:
    """Runs the graph of `onnx_graph.build_graph`; any number of threads may use it at once, and forked processes."""

    def __init__(self, model: bytes) -> None:
        """Open a graph.

        Args:
            model: the serialized graph.

        Raises:
            ValueError: ONNX Runtime can't run it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # An LSTM's steps are too small to be shared by cores: each core computes batches of its own.
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common
            raise ValueError(f"ONNX Runtime can't run this graph: {first_line(error)}") from error
        units = self._session.get_modelmeta().custom_metadata_map.get(UNITS, "256")
        self._token_budget = _STATES // int(units)

    @property
    def dim(self) -> int:
        """Width of the output: of the vectors, or the number of classes."""
        return int(self._session.get_outputs()[0].shape[1])

    @property
    def output(self) -> str:
        """Name of the output: `OUTPUT`, `PROBABILITIES` or `SCORES`."""
        return str(self._session.get_outputs()[0].name)

    def encode(self, tokens: Tokens, threads: int) -> np.ndarray:
        """Embed tokenized sentences, float32[n, dim]; see `run`."""
        return self.run([tokens], threads)

    def run(self, columns: Sequence[Tokens], threads: int) -> np.ndarray:
        """Run the graph over tokenized texts in batches of near lengths.

        Args:
            columns: n texts for each column of the graph, each at most as long as a student reads.
            threads: how many batches are computed side by side.

        Returns:
            float32[n, dim], in the order given.
        """
        if len(columns[0]) == 1:
            return self._run_batch(columns)
        out = np.empty((len(columns[0]), self.dim), dtype=np.float32)

        def run(rows: np.ndarray) -> None:
            out[rows] = self._run_batch([tokens.take(rows) for tokens in columns])

        # A pair takes as long as the longer of its texts.
        lengths = np.max([tokens.lengths for tokens in columns], axis=0)
        # The longest first, so that no thread is left alone with it at the end.
        batches = list(near_length_batches(lengths, self._token_budget))[::-1]
        if len(batches) == 1 or threads == 1:
            for rows in batches:
                run(rows)
            return out
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in [pool.submit(run, rows) for rows in batches]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return out

    def _run_batch(self, columns: Sequence[Tokens]) -> np.ndarray:
        inputs: dict[str, np.ndarray] = {}
        for column, tokens in enumerate(columns):
            input_ids, lengths = tokens.padded()
            attention_mask = (np.arange(input_ids.shape[1]) < lengths[:, None]).astype(np.int64)
            inputs |= zip(inputs_of_column(column), (input_ids, attention_mask), strict=True)
        return self._session.run(None, inputs)[0]  # type: ignore[no-any-return]
