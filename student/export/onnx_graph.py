"""A student as an ONNX graph.

Built node by node instead of traced by torch's exporter. ONNX's LSTM reads both ways and stops at each sentence's own
end; a trace of `StudentEncoder.pool_padded` would keep its two one-way LSTMs and the reversals by index around them. So
the graph is some thirty nodes, is made in a second, holds no example's shape, and needs no onnxscript.
"""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.encoding.export_folder import INPUTS, OUTPUT
from sentence_distill.student.export.product_quantization import balance_parts, product_quantize

TABLES = ("float32", "float16", "int8", "pq")
# What ONNX Runtime has read since 1.12 (2022); nothing of later ones is needed.
_OPSET = 17
_IR_VERSION = 8
# torch holds a cell's weights as input, forget, cell, output gate; ONNX as input, output, forget, cell.
_GATES = (0, 3, 1, 2)


def build_graph(encoder: StudentEncoder, tables: str = "float32") -> onnx.ModelProto:
    """The network from token ids to the public embedding.

    Its inputs are int64[sentences, tokens] `input_ids` and `attention_mask`, 1 at a sentence's tokens and 0 behind its
    end; its output is float32[sentences, dim] `sentence_embedding`. Both sizes are free, tokens may be 0.

    Args:
        encoder: on the CPU.
        tables: type of the word embeddings; "int8" has a float32 scale for each word, "pq" see `product_quantize`.

    Raises:
        UserError: the word embeddings' width does not fit `tables`.
    """
    graph = _Graph()
    if tables == "pq":
        encoder = balance_parts(encoder)
    with torch.no_grad():
        input_ids, attention_mask = (_time_first(graph, name) for name in INPUTS)
        lengths = graph.add("ReduceSum", attention_mask, graph.constant("time", [0]), keepdims=0)
        states = _word_embeddings(graph, encoder.embedding.weight, input_ids, tables)
        states = _lstm(graph, encoder, states, graph.add("Cast", lengths, to=TensorProto.INT32))
        pooled = _pool(graph, encoder, states, attention_mask, lengths)
        _project(graph, encoder, pooled)
    return graph.model(encoder.config.target_dims[-1])


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """Hold a tensor; the same name is the same tensor. Numbers are int64 unless `dtype` says otherwise."""
        array = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value, dtype or np.int64)
        self._constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node with one output; return the output's name."""
        output = output or f"{operator}_{len(self._nodes)}"
        # Quantisation makes names of new nodes and tensors from the names of nodes.
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def model(self, dim: int) -> onnx.ModelProto:
        """All of it, checked."""
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["sentences", "tokens"]) for name in INPUTS]
        outputs = [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["sentences", dim])]
        graph = helper.make_graph(self._nodes, "student", inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph,
            producer_name="sentence-distill",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
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


def _word_embeddings(graph: _Graph, weight: torch.Tensor, input_ids: str, tables: str) -> str:
    """float32[tokens, sentences, embedding_dim]; only the rows that are read are converted."""
    if tables == "float32":
        return graph.add("Gather", graph.constant("words", weight), input_ids)
    if tables == "float16":
        rows = graph.add("Gather", graph.constant("words", weight.half()), input_ids)
        return graph.add("Cast", rows, to=TensorProto.FLOAT)
    if tables == "pq":
        return _from_centres(graph, weight, input_ids)
    scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    rounded = graph.constant("words", torch.round(weight / scales).to(torch.int8))
    rows = graph.add("Cast", graph.add("Gather", rounded, input_ids), to=TensorProto.FLOAT)
    return graph.add("Mul", rows, graph.add("Gather", graph.constant("words_scales", scales), input_ids))


def _from_centres(graph: _Graph, weight: torch.Tensor, input_ids: str) -> str:
    codes, centres = product_quantize(weight)
    numbers = graph.add("Gather", graph.constant("words", codes, np.uint8), input_ids)
    numbers = graph.add("Cast", numbers, to=TensorProto.INT32)
    # All centres are one table, those of a word's second part behind those of its first.
    firsts = graph.constant("words_parts", np.arange(len(centres)) * centres.shape[1], np.int32)
    table = graph.constant("words_centres", centres.reshape(-1, centres.shape[2]), np.float16)
    parts = graph.add("Cast", graph.add("Gather", table, graph.add("Add", numbers, firsts)), to=TensorProto.FLOAT)
    return graph.add("Reshape", parts, graph.constant("join_parts", [0, 0, weight.shape[1]]))


def _lstm(graph: _Graph, encoder: StudentEncoder, states: str, lengths: str) -> str:
    """float32[tokens, 2, sentences, hidden]: the states of both directions of the last layer."""
    for layer in range(encoder.config.layers):
        if layer:
            by_token = graph.add("Transpose", states, perm=[0, 2, 1, 3])
            states = graph.add("Reshape", by_token, graph.constant("join_directions", [0, 0, -1]))
        ends = (f"l{layer}", f"l{layer}_reverse")
        weights = []
        for name in ("weight_ih", "weight_hh"):
            both = torch.stack([_onnx_gates(getattr(encoder.lstm, f"{name}_{end}")) for end in ends])
            weights.append(graph.constant(f"{name}_l{layer}", both))
        biases = [
            torch.cat([_onnx_gates(getattr(encoder.lstm, f"{name}_{end}")) for name in ("bias_ih", "bias_hh")])
            for end in ends
        ]
        weights.append(graph.constant(f"bias_l{layer}", torch.stack(biases)))
        states = graph.add(
            "LSTM", states, *weights, lengths, hidden_size=encoder.config.hidden, direction="bidirectional"
        )
    return states


def _onnx_gates(weight: torch.Tensor) -> torch.Tensor:
    """A cell's weights or biases, [4 * hidden, …], with ONNX's order of gates."""
    return weight.unflatten(0, (4, -1))[list(_GATES)].flatten(0, 1)


def _pool(graph: _Graph, encoder: StudentEncoder, states: str, attention_mask: str, lengths: str) -> str:
    """float32[sentences, pooled_dim]; a sentence without tokens pools to zeros."""
    time = graph.constant("time", [0])
    inside = graph.add("Unsqueeze", attention_mask, graph.constant("mask_axes", [1, 3]))
    counts = graph.add("Cast", lengths, to=TensorProto.FLOAT)
    counts = graph.add("Unsqueeze", counts, graph.constant("count_axes", [0, 2]))
    one = graph.constant("one_float", 1.0, np.float32)
    parts = []
    for mode in encoder.config.pooling.split("+"):
        if mode == "mean":
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


def _project(graph: _Graph, encoder: StudentEncoder, pooled: str) -> None:
    linear = encoder.projections[-1]
    # MatMul and Add, which ONNX Runtime joins again, because its quantisation leaves Gemm as it is.
    product = graph.add("MatMul", pooled, graph.constant("projection", linear.weight.T))
    bias = graph.constant("projection_bias", linear.bias)
    if not encoder.config.normalize:
        graph.add("Add", product, bias, output=OUTPUT)
        return
    vectors = graph.add("Add", product, bias)
    length = graph.add("ReduceL2", vectors, axes=[1], keepdims=1)
    floor = graph.constant("shortest", 1e-12, np.float32)
    graph.add("Div", vectors, graph.add("Max", length, floor), output=OUTPUT)
