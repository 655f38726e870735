"""Whatever a layer's parameters say, shapes come out or a ModelError does; what has shapes is lowered, or refused.

None of it takes more than 2 GB, while the sizes that are tried reach Caffe's limit. The campaign's part `layers`
(`studies/bench/campaign`) tries many more.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.layers import LAYER_TYPES, blob_shapes, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph, Layer

PARAMETERS = {
    field.name: field.message_type
    for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields
    if field.name.endswith("_param") and field.message_type
}
NAMES = {
    "Deconvolution": "convolution_param", "Im2col": "convolution_param", "RNN": "recurrent_param",
    "LSTM": "recurrent_param", "SoftmaxWithLoss": "softmax_param", "SigmoidCrossEntropyLoss": "loss_param",
}  # fmt: skip
SKIPPED = {"Input", "IFMR", "HFMG", "Quant", "AntiQuant", "DeQuant"}
SMALL = st.one_of(st.integers(0, 4), st.sampled_from([-1, -2, -5, 7, 2**31 - 1]))


def parameter_name(kind):
    wanted = kind.lower()
    return NAMES.get(kind) or next((name for name in PARAMETERS if name.replace("_", "") == wanted + "param"), None)


def fill(draw, message):
    """Set some fields to small or absurd values."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            if field.name == "shape" and draw(st.booleans()):
                shape = message.shape
                target = shape.add() if hasattr(shape, "add") else shape
                target.dim.extend(draw(st.lists(SMALL, max_size=4)))
            continue
        if field.type == field.TYPE_STRING or draw(st.integers(0, 2)):
            continue
        if field.enum_type is not None:
            strategy = st.sampled_from([value.number for value in field.enum_type.values])
        elif field.type == field.TYPE_BOOL:
            strategy = st.booleans()
        elif field.type == field.TYPE_FLOAT:
            strategy = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0])
        elif field.type == field.TYPE_UINT32:
            strategy = SMALL.filter(lambda value: value >= 0)
        else:
            strategy = SMALL
        if hasattr(getattr(message, field.name), "extend"):
            getattr(message, field.name).extend(draw(st.lists(strategy, min_size=1, max_size=3)))
        else:
            setattr(message, field.name, draw(strategy))


@st.composite
def graphs(draw, kind):
    message = caffe_pb2.LayerParameter(name="l", type=kind)
    message.top.extend(f"t{index}" for index in range(draw(st.integers(0, 3))))
    bottoms = LAYER_TYPES[kind].bottoms
    count = draw(st.integers(bottoms[0], min(bottoms[-1], 4))) if len(bottoms) else 0
    first = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    layers = []
    for index in range(count):
        shape = draw(st.sampled_from([first, first[:1], first[:2], first[1:] or first]))
        source = caffe_pb2.LayerParameter(name=f"b{index}", type="Input", top=[f"b{index}"])
        source.input_param.shape.add().dim.extend(shape)
        layers.append(Layer(source))
        message.bottom.append(f"b{index}")
    name = parameter_name(kind)
    if name:
        fill(draw, getattr(message, name))
    return Graph("any", (*layers, Layer(message)))


@pytest.mark.parametrize("kind", sorted(set(LAYER_TYPES) - SKIPPED))
def test_any_settings(kind, two_gigabytes):
    @settings(max_examples=60, deadline=None)
    @given(graph=graphs(kind))
    def check(graph):
        try:
            shapes = infer_shapes(graph)
            blobs = blob_shapes(graph, graph.layers[-1], shapes)
            if sum(map(math.prod, blobs)) > 1e6:  # whoever has such weights has a file that holds them
                return
            layer = graph.layers[-1].with_(blobs=[np.ones(shape, np.float32) for shape in blobs])
            lower(graph.with_layers([*graph.layers[:-1], layer]))
        except ModelError:
            pass

    check()
