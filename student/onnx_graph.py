"""A student, or a classifier made of one, as an ONNX graph in float32 or int8. Nothing here imports PyTorch.

Built node by node instead of traced by torch's exporter. ONNX's LSTM reads both ways and stops at each sentence's own
end; a trace of `StudentEncoder.pool_padded` would keep its two one-way LSTMs and the reversals by index around them. So
the graph is some thirty nodes, is made in a fraction of a second, holds no example's shape, and needs no onnxscript.

In int8 the LSTM is ONNX Runtime's DynamicQuantizeLSTM. It rounds its inputs and states to 8 bits between the least and
the largest number of the whole batch, so that a sentence's vector would depend on the sentences around it (by up to
0.005 of the cosine). Here the least and the largest are always the same two numbers, because every sentence brings them
along:

- Two more columns of word embeddings hold the table's least and largest number; no weight reads them.
- Two more units have all gates open and candidates of 1 and -1. Their states are tanh(t) and -tanh(t) at step t, which
  no other unit's can exceed: |c_t| <= |c_{t-1}| + 1.

So an output is the same to the last bit in every batch. The units are filled up to a multiple of 8, without which ONNX
Runtime's vector code is slower than with six units more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sentence_distill.student.config import StudentConfig
from sentence_distill.student.onnx_encoder import OUTPUT, PROBABILITIES, SCORES, UNITS, inputs_of_column, name_in_column

# What ONNX Runtime has read since 1.12 (2022); nothing of later ones is needed.
_OPSET = 17
_IR_VERSION = 8
# torch holds a cell's weights as input, forget, cell, output gate; ONNX as input, output, forget, cell.
_GATES = (0, 3, 1, 2)
# Of the 8 bits of a weight 7: sums of two products overflow otherwise on processors without VNNI.
_LARGEST_WEIGHT = 63
# The sigmoid and tanh of it are 1 in float32.
_OPEN_GATE = 30.0
_ALIGNMENT = 8

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Head:
    """The head of a classifier, as arrays.

    Args:
        weights: float32 arrays by their names in `StudentClassifier.head.state_dict`.
        columns: 1, or 2 for pairs of texts.
        regression: whether the one output is a score and no class.
    """

    weights: Weights
    columns: int
    regression: bool

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return SCORES if self.regression else PROBABILITIES


def build_graph(
    config: StudentConfig, weights: Weights, *, head: Head | None = None, int8: bool = False
) -> onnx.ModelProto:
    """Build the network from token ids to the public embedding, or to the outputs of a classifier.

    Its inputs are int64[sentences, tokens] `input_ids` and `attention_mask`, 1 at a sentence's tokens and 0 behind its
    end; a classifier of pairs has `input_ids_2` and `attention_mask_2` too, for the second texts. Its output is one of
    float32[sentences, dim] `sentence_embedding`, float32[sentences, classes] `probabilities`, and float32[sentences, 1]
    `scores` of a regression. All sizes are free, tokens may be 0.

    Args:
        config: shape of the student.
        weights: float32 arrays by their names in `StudentEncoder.state_dict`; of the projections the last is used.
        head: what reads the pooled states instead of the projection.
        int8: store word embeddings in 8 bits and multiply 8-bit numbers in the LSTM.
    """
    graph = _Graph()
    # Units of a direction as the graph holds them.
    units = -(-(config.hidden + 2) // _ALIGNMENT) * _ALIGNMENT if int8 else config.hidden
    stored = TensorProto.FLOAT16 if int8 else TensorProto.FLOAT
    columns = head.columns if head else 1
    pooled = [_pooled_states(graph, config, weights, units, column, int8=int8) for column in range(columns)]
    if head is None:
        _project(graph, config, weights, pooled[0], units, stored)
        return graph.model(1, OUTPUT, config.target_dims[-1], config.hidden)
    _classify(graph, config, head, pooled, units, stored)
    return graph.model(columns, head.output, len(head.weights["4.bias"]), config.hidden)


def _pooled_states(
    graph: "_Graph", config: StudentConfig, weights: Weights, units: int, column: int, *, int8: bool
) -> str:
    """float32[sentences, poolings * 2 * units] of one column of texts; all columns share the constants."""
    input_ids, attention_mask = (_time_first(graph, name) for name in inputs_of_column(column))
    lengths = graph.add("ReduceSum", attention_mask, graph.constant("time", [0]), keepdims=0)
    words = _int8_words if int8 else _float_words
    states = words(graph, weights["embedding.weight"], input_ids)
    for layer in range(config.layers):
        if layer:
            states = _next_layer(graph, states, int8=int8)
        lstm = _int8_lstm if int8 else _float_lstm
        states = lstm(graph, weights, layer, states, graph.add("Cast", lengths, to=TensorProto.INT32), units)
    # ONNX Runtime's own operator gives zeros behind a sentence's end.
    return _pool(graph, config, states, attention_mask, lengths, zeros_behind_ends=int8)


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Hold a tensor; the same name is the same tensor."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        self._constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; return the output's name."""
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def model(self, columns: int, output: str, width: int, units: int) -> onnx.ModelProto:
        """All of it, checked."""
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
        helper.set_model_props(model, {UNITS: str(units)})
        onnx.checker.check_model(model)
        return model


def _time_first(graph: _Graph, name: str) -> str:
    """int64[tokens, sentences] of an input, the order in which an LSTM reads; one row of 0 where it has no tokens.

    A batch of empty sentences would have nothing to take a maximum over.
    """
    last, one = graph.constant("last", [1]), graph.constant("one", [1])
    tokens = graph.add("Slice", graph.add("Shape", name), last, graph.constant("end", [2]))
    missing = graph.add("Max", graph.add("Sub", one, tokens), graph.constant("zero", [0]))
    pads = graph.add("Concat", graph.constant("no_pads", [0, 0, 0]), missing, axis=0)
    return graph.add("Transpose", graph.add("Pad", name, pads), perm=[1, 0])


def _float_words(graph: _Graph, table: np.ndarray, input_ids: str) -> str:
    """float32[tokens, sentences, embedding_dim]."""
    return graph.add("Gather", graph.constant("words", table, np.float32), input_ids)


def _int8_words(graph: _Graph, table: np.ndarray, input_ids: str) -> str:
    """float32[tokens, sentences, embedding_dim + 2]: numbers on a grid of 256, the last two its ends.

    The LSTM rounds its input to the same grid again, so nothing is lost by keeping the table on it.
    """
    low, high = min(0.0, float(table.min())), max(0.0, float(table.max()))
    scale = max(high - low, 1e-12) / 255
    zero = round(-low / scale)
    codes = np.clip(np.rint(table / scale) + zero, 0, 255)
    ends = np.broadcast_to([0, 255], (len(codes), 2))
    rows = graph.add("Gather", graph.constant("words", np.concatenate([codes, ends], axis=1), np.uint8), input_ids)
    return graph.add(
        "DequantizeLinear",
        rows,
        graph.constant("words_scale", scale, np.float32),
        graph.constant("words_zero", zero, np.uint8),
    )


def _next_layer(graph: _Graph, states: str, *, int8: bool) -> str:
    """float32[tokens, sentences, 2 * units] of both directions' states; in int8 two more columns, 1 and -1."""
    by_token = graph.add("Transpose", states, perm=[0, 2, 1, 3])
    joined = graph.add("Reshape", by_token, graph.constant("join_directions", [0, 0, -1]))
    for value in (1.0, -1.0) if int8 else ():
        pads = graph.constant("one_column", [0, 0, 0, 0, 0, 1])
        joined = graph.add("Pad", joined, pads, graph.constant(f"end_{value:.0f}", value, np.float32))
    return joined


def _cell(weights: Weights, name: str, layer: int) -> np.ndarray:
    """float32[2, 4, hidden, …]: a weight or bias of both directions by gates in ONNX's order."""
    both = np.stack([weights[f"lstm.{name}_l{layer}{end}"] for end in ("", "_reverse")])
    return both.reshape(2, 4, -1, *both.shape[2:])[:, list(_GATES)]


def _float_lstm(graph: _Graph, weights: Weights, layer: int, states: str, lengths: str, units: int) -> str:
    """float32[tokens, 2, sentences, units]: the states of both directions."""
    inputs = []
    for name in ("weight_ih", "weight_hh"):
        cell = _cell(weights, name, layer)
        inputs.append(graph.constant(f"{name}_l{layer}", cell.reshape(2, 4 * units, -1), np.float32))
    biases = np.concatenate([_cell(weights, name, layer).reshape(2, -1) for name in ("bias_ih", "bias_hh")], axis=1)
    inputs.append(graph.constant(f"bias_l{layer}", biases, np.float32))
    return graph.add("LSTM", states, *inputs, lengths, hidden_size=units, direction="bidirectional")


def _int8_lstm(graph: _Graph, weights: Weights, layer: int, states: str, lengths: str, units: int) -> str:
    """The same with 8-bit weights, and the two units that set the range of the states."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    read, fed_back, bias, other_bias = (_cell(weights, name, layer) for name in names)
    hidden = bias.shape[2]
    if layer:
        read = _widened(read.reshape(2, 4, hidden, 2, hidden), units).reshape(2, 4, hidden, 2 * units)
    read = _widened(_widened(read, read.shape[3] + 2).swapaxes(2, 3), units)
    fed_back = _widened(_widened(fed_back, units).swapaxes(2, 3), units)
    bias, other_bias = _widened(bias, units), _widened(other_bias, units)
    bias[:, :, hidden : hidden + 2] = _OPEN_GATE
    bias[:, _GATES.index(2), hidden + 1] = -_OPEN_GATE
    inputs, scales = [], []
    for name, weight in (("weight_ih", read), ("weight_hh", fed_back)):
        # [2, inputs, 4 * units], and a scale for each unit of each gate.
        flat = weight.transpose(0, 2, 1, 3).reshape(2, -1, 4 * units)
        scale = np.maximum(np.abs(flat).max(axis=1), 1e-12) / _LARGEST_WEIGHT
        inputs.append(graph.constant(f"{name}_l{layer}", np.rint(flat / scale[:, None]), np.int8))
        scales += [
            graph.constant(f"{name}_scale_l{layer}", scale, np.float32),
            graph.constant("weight_zero", np.zeros((2, 4 * units)), np.int8),
        ]
    biases = np.concatenate([bias.reshape(2, -1), other_bias.reshape(2, -1)], axis=1)
    inputs += [graph.constant(f"bias_l{layer}", biases, np.float32), lengths, "", "", ""]
    return graph.add(
        "DynamicQuantizeLSTM",
        *(states, *inputs, *scales),
        domain="com.microsoft",
        hidden_size=units,
        direction="bidirectional",
    )


def _widened(array: np.ndarray, width: int) -> np.ndarray:
    """The array with zeros behind its last axis, `width` long then."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])


def _pool(
    graph: _Graph, config: StudentConfig, states: str, attention_mask: str, lengths: str, *, zeros_behind_ends: bool
) -> str:
    """float32[sentences, poolings * 2 * units]; a sentence without tokens pools to zeros."""
    time = graph.constant("time", [0])
    counts = graph.add("Cast", lengths, to=TensorProto.FLOAT)
    counts = graph.add("Unsqueeze", counts, graph.constant("count_axes", [0, 2]))
    one = graph.constant("one_float", 1.0, np.float32)
    parts = []
    for mode in config.pooling.split("+"):
        inside = graph.add("Unsqueeze", attention_mask, graph.constant("mask_axes", [1, 3]))
        if mode == "mean":
            masked = states
            if not zeros_behind_ends:
                masked = graph.add("Mul", states, graph.add("Cast", inside, to=TensorProto.FLOAT))
            summed = graph.add("ReduceSum", masked, time, keepdims=0)
            part = graph.add("Div", summed, graph.add("Max", counts, one))
        else:
            # An LSTM's states lie above -1.
            lowest = graph.constant("lowest", -1.0, np.float32)
            masked = graph.add("Where", graph.add("Cast", inside, to=TensorProto.BOOL), states, lowest)
            highest = graph.add("ReduceMax", masked, axes=[0], keepdims=0)
            part = graph.add("Mul", highest, graph.add("Min", counts, one))
        parts.append(graph.add("Transpose", part, perm=[1, 0, 2]))
    pooled = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    return graph.add("Reshape", pooled, graph.constant("flat", [0, -1]))


def _linear(
    graph: _Graph, name: str, inputs: str, weight: np.ndarray, bias: np.ndarray, stored: int, output: str = ""
) -> str:
    """float32[sentences, outputs] of a linear layer whose weight, [outputs, inputs], is stored in a type."""
    matrix = graph.constant(name, weight.T, helper.tensor_dtype_to_np_dtype(stored))
    if stored != TensorProto.FLOAT:
        matrix = graph.add("Cast", matrix, to=TensorProto.FLOAT)
    return graph.add("Gemm", inputs, matrix, graph.constant(f"{name}_bias", bias, np.float32), output=output)


def _over_units(weight: np.ndarray, hidden: int, units: int) -> np.ndarray:
    """A weight over pooled states, [outputs, poolings * 2 * hidden], that reads nothing of the added units."""
    return _widened(weight.reshape(len(weight), -1, hidden), units).reshape(len(weight), -1)


def _project(graph: _Graph, config: StudentConfig, weights: Weights, pooled: str, units: int, stored: int) -> None:
    last = len(config.target_dims) - 1
    weight = _over_units(weights[f"projections.{last}.weight"], config.hidden, units)
    bias = weights[f"projections.{last}.bias"]
    vectors = _linear(graph, "projection", pooled, weight, bias, stored, "" if config.normalize else OUTPUT)
    if config.normalize:
        length = graph.add("ReduceL2", vectors, axes=[1], keepdims=1)
        floor = graph.constant("shortest", 1e-12, np.float32)
        graph.add("Div", vectors, graph.add("Max", length, floor), output=OUTPUT)


def _classify(graph: _Graph, config: StudentConfig, head: Head, pooled: list[str], units: int, stored: int) -> None:
    """The head as `StudentClassifier.logits` applies it, and the softmax; its dropouts are only of training."""
    inputs = pooled[0]
    if head.columns == 2:
        u, v = pooled
        difference = graph.add("Abs", graph.add("Sub", u, v))
        inputs = graph.add("Concat", u, v, difference, graph.add("Mul", u, v), axis=1)
    weight = _over_units(head.weights["1.weight"], config.hidden, units)
    hidden = graph.add("Relu", _linear(graph, "head_hidden", inputs, weight, head.weights["1.bias"], stored))
    # It is small, and in a regression has the unit of the labels, which float16 may not reach: float32 always.
    last = head.weights["4.weight"], head.weights["4.bias"], TensorProto.FLOAT
    if head.regression:
        _linear(graph, "head_output", hidden, *last, SCORES)
    else:
        graph.add("Softmax", _linear(graph, "head_output", hidden, *last), axis=1, output=PROBABILITIES)
