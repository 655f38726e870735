"""Recurrent layers: time along axis 0, independent streams along axis 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autonuq.graph.model import Layer, Shape
from autonuq.graph.shapes.registry import LayerError, define

_STATES = {"RNN": 1, "LSTM": 2}
_GATES = {"RNN": 1, "LSTM": 4}


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer works on.

    Attributes
    ----------
    steps, streams, outputs, gates : int
        Its gates are `gates * outputs` values a step and stream.
    static : bool
        The third bottom is an input that stays the same over time.
    first_state : int or None
        Index of the bottom with the first hidden state; None if the layer starts from zeros.
    states : int
        Hidden states: h, or h and c.
    """

    steps: int
    streams: int
    outputs: int
    gates: int
    static: bool
    first_state: int | None
    states: int


def recurrence(layer: Layer, bottoms: list[Shape]) -> Recurrence:
    """Read a layer's recurrent_param and bottoms: x, cont, [x_static], [h_0, [c_0]]."""
    message = layer.message.recurrent_param
    states = _STATES[layer.type]
    exposed = states if message.expose_hidden else 0
    if message.num_output < 1:
        raise LayerError("num_output must be positive")
    if len(bottoms) not in (2 + exposed, 3 + exposed):
        raise LayerError(f"takes {2 + exposed} bottoms, or {3 + exposed} with a static input, got {len(bottoms)}")
    if len(bottoms[0]) < 3:
        raise LayerError(f"needs an input of 3 axes or more (steps, streams, values), got {bottoms[0]}")
    steps, streams = bottoms[0][:2]
    if bottoms[1] != (steps, streams):
        raise LayerError(f"needs continuation marks of shape {(steps, streams)}, got {bottoms[1]}")
    static = len(bottoms) == 3 + exposed
    if static and (len(bottoms[2]) < 2 or bottoms[2][0] != streams):
        raise LayerError(f"needs a static input of shape ({streams}, values), got {bottoms[2]}")
    state = (1, streams, message.num_output)
    first = len(bottoms) - exposed if exposed else None
    if first is not None and any(shape != state for shape in bottoms[first:]):
        raise LayerError(f"needs hidden states of shape {state}, got {', '.join(map(str, bottoms[first:]))}")
    return Recurrence(steps, streams, message.num_output, _GATES[layer.type], static, first, states)


def _recurrent_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    found = recurrence(layer, bottoms)
    states = [(1, found.streams, found.outputs)] * (found.states if found.first_state is not None else 0)
    return [(found.steps, found.streams, found.outputs), *states]


def _recurrent_blobs(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """W_x, b, [W_static], W_h, and for RNN the output's W_o, b_o: in the order of Caffe's unrolled net."""
    found = recurrence(layer, bottoms)
    rows = found.gates * found.outputs
    shapes: list[Shape] = [(rows, math.prod(bottoms[0][2:])), (rows,)]
    if found.static:
        shapes.append((rows, math.prod(bottoms[2][1:])))
    shapes.append((rows, found.outputs))
    if layer.type == "RNN":
        shapes += [(found.outputs, found.outputs), (found.outputs,)]
    return shapes


def _lstm_unit_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    cell, gates, mark = bottoms
    if len(cell) != 3 or cell[0] != 1 or gates != (*cell[:2], 4 * cell[2]) or mark != cell[:2]:
        raise LayerError(f"needs shapes (1, N, D), (1, N, 4 D) and (1, N), got {', '.join(map(str, bottoms))}")
    return [cell, cell]


define(["LSTMUnit"], _lstm_unit_tops, bottoms=range(3, 4))
define(["RNN", "LSTM"], _recurrent_tops, _recurrent_blobs, range(2, 6))
