"""A student, or a classifier made from one, as an ONNX graph in float32 or int8. Nothing here imports PyTorch.

The graph is built node by node, and not traced by torch's exporter. ONNX's LSTM operator is bidirectional and takes the
length of each sentence; a trace of `StudentEncoder.pool_padded` would contain its two one-way LSTMs and the index
operations that reverse sentences. The result has about thirty nodes, is built in a fraction of a second, has no fixed
shapes, and needs no onnxscript.

In int8, the LSTM is ONNX Runtime's DynamicQuantizeLSTM. It quantizes inputs and states to 8 bits on a grid between the
minimum and the maximum of the whole batch, so a sentence's vector would depend on the other sentences in its batch, by
up to 0.005 in cosine. To prevent this, both ends of each grid are the same for every batch, because every sentence
contains them:

- Inputs: two additional columns of the word embeddings hold the minimum and the maximum of the table. Their weights are
  zero.
- States: two additional units have all gates open, and candidates 1 and -1. At step t, their cells are t and -t, and
  their states tanh(t) and -tanh(t). No other unit exceeds these, because |c_t| <= |c_{t-1}| + 1.

An output is then the same to the last bit in every batch. The number of units is padded to a multiple of 8, because
ONNX Runtime's vectorized code is slower for other numbers than for up to six more units.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sentence_distill.student.config import StudentConfig
from sentence_distill.student.files import read_student
from sentence_distill.student.onnx_student import (
    OUTPUT,
    PROBABILITIES,
    SCORES,
    UNITS,
    OnnxStudent,
    inputs_of_column,
    name_in_column,
)

# Versions that ONNX Runtime supports since 1.12 (2022); later features are not needed.
_OPSET = 17
_IR_VERSION = 8
# PyTorch orders the gates of a cell as input, forget, cell, output; ONNX as input, output, forget, cell.
_GATES = (0, 3, 1, 2)
# Weights use 7 of their 8 bits: on processors without VNNI, the 16-bit sum of two products would overflow.
_LARGEST_WEIGHT = 63
# Its sigmoid and tanh are 1 in float32.
_OPEN_GATE = 30.0
_ALIGNMENT = 8

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Head:
    """Head of a classifier."""

    weights: Weights
    """float32 arrays by name as in `StudentClassifier.head.state_dict`."""
    columns: int
    """1, or 2 for pairs of texts."""
    regression: bool
    """True if the single output is a score."""


def build_graph(
    config: StudentConfig, weights: Weights, *, head: Head | None = None, int8: bool = False
) -> onnx.ModelProto:
    """Build the network from token ids to the public embedding, or to the outputs of a classifier.

    Inputs are `input_ids` and `attention_mask`, int64[sentences, tokens], with a mask of 1 for tokens and 0 for padding
    at the end; a classifier of pairs also has `input_ids_2` and `attention_mask_2` for the second texts. The output is
    `sentence_embedding`, float32[sentences, dim]; `probabilities`, float32[sentences, classes]; or for a regression
    `scores`, float32[sentences, 1]. All sizes are dynamic, and the number of tokens may be 0.

    `weights` are named as in `StudentEncoder.state_dict`; the last projection is used, or a head in its place. `int8`
    stores word embeddings in 8 bits, and multiplies 8-bit numbers in the LSTM.
    """
    builder = _Builder(config, weights, int8=int8)
    if head is None:
        builder.project(builder.pooled(0))
        return builder.model(1, OUTPUT, config.target_dims[-1])
    builder.classify(head, [builder.pooled(column) for column in range(head.columns)])
    return builder.model(head.columns, SCORES if head.regression else PROBABILITIES, len(head.weights["4.bias"]))


def int8_student(folder: Path, threads: int = 0) -> OnnxStudent:
    """Open the student in a folder as an int8 graph, which runs `threads` batches in parallel, 0 for one per core."""
    config, weights, tokenizer = read_student(folder)
    return OnnxStudent(build_graph(config, weights, int8=True).SerializeToString(), tokenizer, threads)


class _Builder:
    """A graph under construction. Methods add nodes and return the name of their output."""

    def __init__(self, config: StudentConfig, weights: Weights, *, int8: bool) -> None:
        self._config, self._weights, self._int8 = config, weights, int8
        # Units per direction in the graph, including the added ones.
        self._units = -(-(config.hidden + 2) // _ALIGNMENT) * _ALIGNMENT if int8 else config.hidden
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def _constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant tensor, unless there is one of that name, and return its name."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def _add(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def model(self, columns: int, output: str, width: int) -> onnx.ModelProto:
        """Return the checked model."""
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["sentences", name_in_column("tokens", column)])
            for column in range(columns)
            for name in inputs_of_column(column)
        ]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["sentences", width])]
        graph = helper.make_graph(self._nodes, "student", inputs, outputs, list(self._constants.values()))
        domains = sorted({node.domain for node in self._nodes})
        model = helper.make_model(
            graph,
            producer_name="sentence-distill",
            opset_imports=[helper.make_opsetid(name, 1 if name else _OPSET) for name in domains],
            ir_version=_IR_VERSION,
        )
        helper.set_model_props(model, {UNITS: str(self._config.hidden)})
        onnx.checker.check_model(model)
        return model

    def pooled(self, column: int) -> str:
        """Add the encoder for a column of texts, float32[sentences, poolings * 2 * units]; columns share constants."""
        input_ids, attention_mask = (self._time_first(name) for name in inputs_of_column(column))
        lengths = self._add("ReduceSum", attention_mask, self._constant("time", [0]), keepdims=0)
        table = self._weights["embedding.weight"]
        if self._int8:
            states = self._int8_words(table, input_ids)
        else:
            states = self._add("Gather", self._constant("words", table, np.float32), input_ids)
        for layer in range(self._config.layers):
            if layer:
                states = self._joined_directions(states)
            ends = self._add("Cast", lengths, to=TensorProto.INT32)
            states = (self._int8_lstm if self._int8 else self._float_lstm)(layer, states, ends)
        return self._pool(states, attention_mask, lengths)

    def _time_first(self, name: str) -> str:
        """Transpose an input to int64[tokens, sentences], the layout of LSTMs; one row of zeros if there are no tokens.

        Without that row, a batch of empty sentences would have no values to take a maximum over.
        """
        last, one = self._constant("last", [1]), self._constant("one", [1])
        tokens = self._add("Slice", self._add("Shape", name), last, self._constant("end", [2]))
        missing = self._add("Max", self._add("Sub", one, tokens), self._constant("zero", [0]))
        pads = self._add("Concat", self._constant("no_pads", [0, 0, 0]), missing, axis=0)
        return self._add("Transpose", self._add("Pad", name, pads), perm=[1, 0])

    def _int8_words(self, table: np.ndarray, input_ids: str) -> str:
        """Look up words, float32[tokens, sentences, embedding_dim + 2], in a table quantized to a grid of 256 values.

        The last two columns are the ends of the grid. The LSTM quantizes its input to the same grid, so storing the
        table in 8 bits loses nothing.
        """
        # The grid of DynamicQuantizeLSTM always includes 0.
        low, high = min(0.0, float(table.min())), max(0.0, float(table.max()))
        scale = max(high - low, 1e-12) / 255
        zero = round(-low / scale)
        codes = np.clip(np.rint(table / scale) + zero, 0, 255)
        codes = np.concatenate([codes, np.broadcast_to([0, 255], (len(codes), 2))], axis=1)
        rows = self._add("Gather", self._constant("words", codes, np.uint8), input_ids)
        grid = self._constant("words_scale", scale, np.float32), self._constant("words_zero", zero, np.uint8)
        return self._add("DequantizeLinear", rows, *grid)

    def _joined_directions(self, states: str) -> str:
        """Concatenate both directions for the next layer, float32[tokens, sentences, 2 * units].

        In int8, two more columns hold 1 and -1, the ends of the grid for states.
        """
        by_token = self._add("Transpose", states, perm=[0, 2, 1, 3])
        joined = self._add("Reshape", by_token, self._constant("join_directions", [0, 0, -1]))
        for value in (1.0, -1.0) if self._int8 else ():
            pads = self._constant("one_column", [0, 0, 0, 0, 0, 1])
            joined = self._add("Pad", joined, pads, self._constant(f"end_{value:.0f}", value, np.float32))
        return joined

    def _cell(self, name: str, layer: int) -> np.ndarray:
        """Return a weight or bias of both directions, float32[2, 4, hidden, …], with the gates in ONNX's order."""
        both = np.stack([self._weights[f"lstm.{name}_l{layer}{end}"] for end in ("", "_reverse")])
        return both.reshape(2, 4, -1, *both.shape[2:])[:, list(_GATES)]

    def _float_lstm(self, layer: int, states: str, lengths: str) -> str:
        """Add an LSTM, float32[tokens, 2, sentences, units], the states of both directions."""
        inputs = []
        for name in ("weight_ih", "weight_hh"):
            cell = self._cell(name, layer).reshape(2, 4 * self._units, -1)
            inputs.append(self._constant(f"{name}_l{layer}", cell, np.float32))
        biases = np.concatenate([self._cell(name, layer).reshape(2, -1) for name in ("bias_ih", "bias_hh")], axis=1)
        inputs += [self._constant(f"bias_l{layer}", biases, np.float32), lengths]
        return self._add("LSTM", states, *inputs, hidden_size=self._units, direction="bidirectional")

    def _int8_lstm(self, layer: int, states: str, lengths: str) -> str:
        """Add a quantized LSTM, float32[tokens, 2, sentences, units], with the two units that fix the states' range."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        read, fed_back, bias, other_bias = (self._cell(name, layer) for name in names)
        hidden, units = bias.shape[2], self._units
        # Everything is zero-padded: inputs by the two columns that hold the ends of their grid, units to `units`. The
        # input of a later layer is two directions of `units` each.
        if layer:
            read = _widened(read.reshape(2, 4, hidden, 2, hidden), units).reshape(2, 4, hidden, 2 * units)
        read = _widened(_widened(read, read.shape[3] + 2).swapaxes(2, 3), units)
        fed_back = _widened(_widened(fed_back, units).swapaxes(2, 3), units)
        bias, other_bias = _widened(bias, units), _widened(other_bias, units)
        # The two units read nothing, so their biases alone decide: all gates open, and candidates of 1 and -1.
        bias[:, :, hidden : hidden + 2] = _OPEN_GATE
        bias[:, _GATES.index(2), hidden + 1] = -_OPEN_GATE
        inputs, scales = [], []
        for name, weight in (("weight_ih", read), ("weight_hh", fed_back)):
            # The weight as [2, inputs, 4 * units], with a scale for each unit of each gate.
            flat = weight.transpose(0, 2, 1, 3).reshape(2, -1, 4 * units)
            scale = np.maximum(np.abs(flat).max(axis=1), 1e-12) / _LARGEST_WEIGHT
            inputs.append(self._constant(f"{name}_l{layer}", np.rint(flat / scale[:, None]), np.int8))
            scales.append(self._constant(f"{name}_scale_l{layer}", scale, np.float32))
            scales.append(self._constant("weight_zero", np.zeros((2, 4 * units)), np.int8))
        biases = np.concatenate([bias.reshape(2, -1), other_bias.reshape(2, -1)], axis=1)
        inputs += [self._constant(f"bias_l{layer}", biases, np.float32), lengths, "", "", "", *scales]
        settings: dict[str, Any] = {"domain": "com.microsoft", "hidden_size": units, "direction": "bidirectional"}
        return self._add("DynamicQuantizeLSTM", states, *inputs, **settings)

    def _pool(self, states: str, attention_mask: str, lengths: str) -> str:
        """Pool the states to float32[sentences, poolings * 2 * units]; sentences without tokens pool to zeros."""
        counts = self._add("Cast", lengths, to=TensorProto.FLOAT)
        counts = self._add("Unsqueeze", counts, self._constant("count_axes", [0, 2]))
        one = self._constant("one_float", 1.0, np.float32)
        parts = []
        for mode in self._config.pooling.split("+"):
            inside = self._add("Unsqueeze", attention_mask, self._constant("mask_axes", [1, 3]))
            if mode == "mean":
                # DynamicQuantizeLSTM returns zeros for padding, LSTM does not.
                masked = states
                if not self._int8:
                    masked = self._add("Mul", states, self._add("Cast", inside, to=TensorProto.FLOAT))
                summed = self._add("ReduceSum", masked, self._constant("time", [0]), keepdims=0)
                part = self._add("Div", summed, self._add("Max", counts, one))
            else:
                # -1 is a lower bound of LSTM states, so padding never is the maximum.
                lowest = self._constant("lowest", -1.0, np.float32)
                masked = self._add("Where", self._add("Cast", inside, to=TensorProto.BOOL), states, lowest)
                highest = self._add("ReduceMax", masked, axes=[0], keepdims=0)
                part = self._add("Mul", highest, self._add("Min", counts, one))
            parts.append(self._add("Transpose", part, perm=[1, 0, 2]))
        pooled = parts[0] if len(parts) == 1 else self._add("Concat", *parts, axis=1)
        return self._add("Reshape", pooled, self._constant("flat", [0, -1]))

    def _linear(self, name: str, inputs: str, weight: np.ndarray, bias: np.ndarray, output: str = "") -> str:
        """Add a linear layer over pooled states, float32[sentences, outputs]; int8 graphs store its weight in float16.

        The weight, [outputs, poolings * 2 * hidden], is padded with zeros for the added units.
        """
        widened = _widened(weight.reshape(len(weight), -1, self._config.hidden), self._units).reshape(len(weight), -1)
        matrix = self._constant(name, widened.T, np.float16 if self._int8 else np.float32)
        if self._int8:
            matrix = self._add("Cast", matrix, to=TensorProto.FLOAT)
        return self._add("Gemm", inputs, matrix, self._constant(f"{name}_bias", bias, np.float32), output=output)

    def project(self, pooled: str) -> None:
        """Add the projection to the public embedding, and its normalization."""
        last = f"projections.{len(self._config.target_dims) - 1}"
        weight, bias = self._weights[f"{last}.weight"], self._weights[f"{last}.bias"]
        vectors = self._linear("projection", pooled, weight, bias, "" if self._config.normalize else OUTPUT)
        if self._config.normalize:
            length = self._add("ReduceL2", vectors, axes=[1], keepdims=1)
            floor = self._constant("shortest", 1e-12, np.float32)
            self._add("Div", vectors, self._add("Max", length, floor), output=OUTPUT)

    def classify(self, head: Head, pooled: list[str]) -> None:
        """Add the head as in `StudentClassifier.logits`, without dropout, and the softmax."""
        inputs = pooled[0]
        if head.columns == 2:
            u, v = pooled
            difference = self._add("Abs", self._add("Sub", u, v))
            inputs = self._add("Concat", u, v, difference, self._add("Mul", u, v), axis=1)
        hidden = self._linear("head_hidden", inputs, head.weights["1.weight"], head.weights["1.bias"])
        hidden = self._add("Relu", hidden)
        # Always float32: it is small, and in a regression it has the scale of the labels, which may exceed float16.
        matrix = self._constant("head_output", head.weights["4.weight"].T, np.float32)
        bias = self._constant("head_output_bias", head.weights["4.bias"], np.float32)
        outputs = self._add("Gemm", hidden, matrix, bias, output=SCORES if head.regression else "")
        if not head.regression:
            self._add("Softmax", outputs, axis=1, output=PROBABILITIES)


def _widened(array: np.ndarray, width: int) -> np.ndarray:
    """Pad the last axis with zeros to `width`."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])
