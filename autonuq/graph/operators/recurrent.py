"""Lowering of RNN and LSTM.

Notes
-----
With s_t the static input's share and cont_t the continuation mark of a stream (0 starts a new sequence):

RNN: h_t = tanh(W_h (cont_t h_{t-1}) + W_x x_t + b + s_t), o_t = tanh(W_o h_t + b_o).

LSTM: (i, f, o, g) = W_h (cont_t h_{t-1}) + W_x x_t + b + s_t; c_t = cont_t sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);
h_t = sigmoid(o) tanh(c_t).

ONNX's own RNN and LSTM operators know no continuation marks, so time is a `Scan`; what does not depend on the state
is computed for all steps at once. Each step costs the engine some tens of microseconds beyond the arithmetic.

Unless the states are exposed, Caffe starts a forward pass where the last one ended. A lowered graph has no memory:
every pass starts from zeros, as Caffe's first does (and every one whose first marks are 0).
"""

from __future__ import annotations

import math

from onnx import NodeProto, TensorProto, helper

from autonuq.graph.model import Layer, Shape
from autonuq.graph.operators.builder import Builder, lowers
from autonuq.graph.shapes.recurrent import Recurrence, recurrence


@lowers("LSTMUnit")
def _lstm_unit(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    """One step from c_{t-1}, gates and marks: c_t, then h_t."""
    old, gates, mark = tensors
    mark = builder.reshape(mark, [*shapes[2], 1])
    i, f, o, g = builder.add_many("Split", gates, count=4, axis=2)
    kept = builder.add("Mul", builder.add("Mul", builder.add("Sigmoid", f), mark), old)
    added = builder.add("Mul", builder.add("Sigmoid", i), builder.add("Tanh", g))
    cell = builder.add("Add", kept, added, label=layer.name)
    return [cell, builder.add("Mul", builder.add("Sigmoid", o), builder.add("Tanh", cell), label=layer.name)]


@lowers("RNN", "LSTM")
def _recurrent(builder: Builder, layer: Layer, tensors: list[str], shapes: list[Shape]) -> list[str]:
    found = recurrence(layer, shapes)
    w_x, b, *rest = builder.weights(layer)
    driven = _driven(builder, tensors[0], w_x, b, found)
    if found.static:
        static = builder.reshape(tensors[2], [found.streams, math.prod(shapes[2][1:])])
        driven = builder.add("Add", driven, builder.add("Gemm", static, rest.pop(0), transB=1))
    marks = builder.reshape(tensors[1], [found.steps, found.streams, 1])
    step = _lstm_step if layer.type == "LSTM" else _rnn_step
    states = step(builder, layer, _first_states(builder, tensors, found), driven, marks, rest, found)
    if layer.type == "RNN":
        states[-1] = builder.add("Tanh", _driven(builder, states[-1], rest[1], rest[2], found), label=layer.name)
    *last, outputs = states
    return [outputs, *(builder.reshape(state, [1, found.streams, found.outputs]) for state in last)]


def _driven(builder: Builder, values: str, weights: str, bias: str, found: Recurrence) -> str:
    """W x_t + b for all steps and streams, shape (steps, streams, rows of W)."""
    rows = builder.reshape(values, [found.steps * found.streams, -1])
    return builder.reshape(builder.add("Gemm", rows, weights, bias, transB=1), [found.steps, found.streams, -1])


def _first_states(builder: Builder, tensors: list[str], found: Recurrence) -> list[str]:
    shape = [found.streams, found.outputs]
    if found.first_state is not None:
        return [builder.reshape(tensor, shape) for tensor in tensors[found.first_state :]]
    zero, size = builder.constant("zero", 0.0), builder.constant("state", shape)
    return [builder.add("Expand", zero, size) for _ in range(found.states)]


def _lstm_step(
    builder: Builder,
    layer: Layer,
    first: list[str],
    driven: str,
    marks: str,
    weights: list[str],
    found: Recurrence,
) -> list[str]:
    name = layer.name
    nodes = [
        helper.make_node("Mul", [f"{name}:h", f"{name}:mark"], [f"{name}:kept"]),
        helper.make_node("Gemm", [f"{name}:kept", weights[0], f"{name}:driven"], [f"{name}:gates"], transB=1),
        helper.make_node("Split", [f"{name}:gates"], [f"{name}:{gate}'" for gate in "ifog"], axis=1),
        *(helper.make_node("Sigmoid", [f"{name}:{gate}'"], [f"{name}:{gate}"]) for gate in "ifo"),
        helper.make_node("Tanh", [f"{name}:g'"], [f"{name}:g"]),
        helper.make_node("Mul", [f"{name}:f", f"{name}:mark"], [f"{name}:forget"]),
        helper.make_node("Mul", [f"{name}:forget", f"{name}:c"], [f"{name}:old"]),
        helper.make_node("Mul", [f"{name}:i", f"{name}:g"], [f"{name}:new"]),
        helper.make_node("Add", [f"{name}:old", f"{name}:new"], [f"{name}:c_next"]),
        helper.make_node("Tanh", [f"{name}:c_next"], [f"{name}:squashed"]),
        helper.make_node("Mul", [f"{name}:o", f"{name}:squashed"], [f"{name}:h_next"]),
    ]
    return _scan(builder, name, nodes, dict(zip("hc", first, strict=True)), driven, marks, found)


def _rnn_step(
    builder: Builder,
    layer: Layer,
    first: list[str],
    driven: str,
    marks: str,
    weights: list[str],
    found: Recurrence,
) -> list[str]:
    name = layer.name
    nodes = [
        helper.make_node("Mul", [f"{name}:h", f"{name}:mark"], [f"{name}:kept"]),
        helper.make_node("Gemm", [f"{name}:kept", weights[0], f"{name}:driven"], [f"{name}:sum"], transB=1),
        helper.make_node("Tanh", [f"{name}:sum"], [f"{name}:h_next"]),
    ]
    return _scan(builder, name, nodes, {"h": first[0]}, driven, marks, found)


def _scan(
    builder: Builder,
    name: str,
    nodes: list[NodeProto],
    states: dict[str, str],
    driven: str,
    marks: str,
    found: Recurrence,
) -> list[str]:
    """Run the step over time and return the last states, then h of every step."""
    state_shape = [None, found.outputs]  # any number of streams
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [*nodes, helper.make_node("Identity", [f"{name}:h_next"], [f"{name}:out"])],
        f"{name}:step",
        [
            *(value(f"{name}:{state}", TensorProto.FLOAT, state_shape) for state in states),
            value(f"{name}:driven", TensorProto.FLOAT, [None, found.gates * found.outputs]),
            value(f"{name}:mark", TensorProto.FLOAT, [None, 1]),
        ],
        [
            *(value(f"{name}:{state}_next", TensorProto.FLOAT, state_shape) for state in states),
            value(f"{name}:out", TensorProto.FLOAT, state_shape),
        ],
    )
    return builder.add_many(
        "Scan",
        *states.values(),
        driven,
        marks,
        count=len(states) + 1,
        label=name,
        body=body,
        num_scan_inputs=2,
    )
