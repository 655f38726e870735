"""Layers of every type with random settings: small ones, and the extremes of each field's type, in networks of one.

What a layer asks for is refused in one line that names it, or it is loaded, folded, lowered and, where it is small, run
and differentiated. The settings come from the schema, so no type and no field is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from mutations import Parser, attack
from mutators import INTEGERS
from rows import Row

from autonuq.compress.needs import study_needs
from autonuq.errors import RuntimeFailure
from autonuq.graph import caffe_pb2
from autonuq.graph.files import expected_blobs, load_graph
from autonuq.graph.gradients import lower_gradients
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.layers import LAYER_TYPES, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities, fold_batch_norm
from autonuq.runtime.limits import pass_bytes
from autonuq.runtime.net import Net
from autonuq.runtime.program import has_host_layers
from autonuq.runtime.session import Session

TYPES = tuple(sorted(set(LAYER_TYPES) - {"Python"}))

_SMALL_BYTES, _FEW_WEIGHTS = 1 << 18, 1 << 14  # what is run
_HUGE_BYTES = 3 << 30  # more than a child may have
_SETTINGS = {
    **dict.fromkeys(("Deconvolution", "Im2col", "ConvolutionDepthwise", "DepthwiseConv"), "convolution_param"),
    **{"DepthwiseConvolution": "convolution_param", "RNN": "recurrent_param", "LSTM": "recurrent_param"},
    **{"SoftmaxWithLoss": "softmax_param", "SigmoidCrossEntropyLoss": "loss_param", "ReLU6": "relu_param"},
    "Normalize": "norm_param",
}
_WINDOW = "num_output: 4 kernel_size: 3 group: 2"
_IMAGE = "2,4,6,6"
_GOOD_LAYERS = {
    "Accuracy": ("top_k: 2", "5,4 5"),
    "ArgMax": ("top_k: 2", _IMAGE),
    "Axpy": ("", "2,4,1,1 2,4,6,6 2,4,6,6"),
    "BatchReindex": ("", "4,3 2"),
    "ContrastiveLoss": ("", "2,3 2,3 2"),
    **dict.fromkeys(("Convolution", "Deconvolution", "Im2col"), (_WINDOW, _IMAGE)),
    **dict.fromkeys(
        ("ConvolutionDepthwise", "DepthwiseConv", "DepthwiseConvolution"), ("num_output: 4 kernel_size: 3", _IMAGE)
    ),
    "Crop": ("axis: 2 offset: 1", "2,4,6,6 2,4,3,3"),
    "DetectionOutput": ("num_classes: 3", "2,32 2,24 1,2,32"),
    "DummyData": ("shape { dim: 2 dim: 3 }", ""),
    "Eltwise": ("", "2,4,6,6 2,4,6,6"),
    "Embed": ("num_output: 3 input_dim: 5", "4"),
    **dict.fromkeys(("EuclideanLoss", "SigmoidCrossEntropyLoss"), ("", "2,3 2,3")),
    "Filter": ("", "4,3 4"),
    "HFMG": ('num_of_bins: 64 object_layer: "a" record_file_path: "record" batch_num: 2', _IMAGE),
    **dict.fromkeys(("HingeLoss", "MultinomialLogisticLoss", "SoftmaxWithLoss"), ("", "5,4 5")),
    "IFMR": (
        'object_layer: "a" record_file_path: "record" search_range_start: 0.7 search_range_end: 1.3 search_step: 0.01 '
        "batch_num: 2 max_percentile: 0.9 min_percentile: 0.9",
        _IMAGE,
    ),
    "InfogainLoss": ("", "5,4 5 4,4"),
    "InnerProduct": ("num_output: 3", _IMAGE),
    "Input": ("shape { dim: 2 dim: 3 }", ""),
    "Interp": ("height: 4 width: 9", _IMAGE),
    **dict.fromkeys(("LSTM", "RNN"), ("num_output: 3", "4,2,5 4,2")),
    "LSTMUnit": ("", "1,2,3 1,2,12 1,2"),
    "MemoryData": ("batch_size: 2 channels: 3 height: 4 width: 4", ""),
    "Parameter": ("shape { dim: 2 dim: 3 }", ""),
    "Permute": ("order: 3", _IMAGE),
    "PSROIPooling": ("output_dim: 1 group_size: 2 spatial_scale: 0.5", "2,4,6,6 3,5"),
    "Pooling": ("pool: AVE kernel_size: 3 stride: 2", _IMAGE),
    "PriorBox": ("min_size: 3 max_size: 5 aspect_ratio: 2", "2,4,6,6 2,3,12,12"),
    "Quant": ('scale: 4 offset: "\\200"', _IMAGE),
    "ROIPooling": ("pooled_h: 2 pooled_w: 2", "2,4,6,6 3,5"),
    "Reorg": ("stride: 2", _IMAGE),
    "Reshape": ("shape { dim: 0 dim: -1 }", _IMAGE),
    "SPP": ("pyramid_height: 2", _IMAGE),
    "ShuffleChannel": ("group: 2", _IMAGE),
    "Slice": ("slice_point: 1", _IMAGE),
    "Tile": ("tiles: 3", _IMAGE),
    "Upsample": ("scale: 2", _IMAGE),
}
"""Settings and shapes of bottoms that fit; other types take an image without settings."""

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (0.0, 1.0, 0.5, -1.0, 2.0, 3.0, 16.0, 1e-30, 1e9, 3e38, -3e38, float("nan"), float("inf"), float("-inf"))
_FILLERS = ("constant", "bilinear", "gaussian", "msra", "positive_unitball", "uniform", "xavier", "x", "")


def fill(rng: Random, message: Message, wildness: float) -> None:
    """Set some fields of a message; a number is an extreme of its type with a probability of `wildness`."""
    message.SetInParent()
    share = rng.choice((0.2, 0.5, 0.8))
    for field in message.DESCRIPTOR.fields:
        if rng.random() > share:
            continue
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5)) if _is_list(field) else 1):
            if field.type == field.TYPE_MESSAGE:
                own = getattr(message, field.name)
                fill(rng, own.add() if _is_list(field) else own, wildness)
            elif _is_list(field):
                getattr(message, field.name).append(_value(rng, field, wildness))
            else:
                setattr(message, field.name, _value(rng, field, wildness))


def _is_list(field: FieldDescriptor) -> bool:
    return isinstance(field.default_value, list)


def _value(rng: Random, field: FieldDescriptor, wildness: float) -> object:
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS) if rng.random() < wildness else rng.choice(_FLOATS[:7])
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        extremes = (*INTEGERS, -1, -2, 2**62, 2**63, 2**64 - 1, low, high)
        value = rng.choice(extremes) if rng.random() < wildness else rng.choice((-1, 0, 1, 1, 1, 2, 2, 3, 4, 5))
        return min(max(value, low), high)
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\x80", b"\0", b"abc"))
    return rng.random() < 0.5 if field.cpp_type == field.CPPTYPE_BOOL else rng.choice(_FILLERS)


def change(rng: Random, message: Message, wildness: float) -> None:
    """Set one field of a message, or of a message in it."""
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    own = getattr(message, field.name)
    if field.type == field.TYPE_MESSAGE:
        change(rng, (rng.choice(own) if own else own.add()) if _is_list(field) else own, wildness)
    elif not _is_list(field):
        setattr(message, field.name, _value(rng, field, wildness))
    elif own and rng.random() < 0.7:
        own[rng.randrange(len(own))] = _value(rng, field, wildness)
    else:
        own.append(_value(rng, field, wildness))


def _own_settings(kind: str) -> str | None:
    """Return the field of a layer that holds the settings of its type, if it has some."""
    known = {field.name.replace("_", ""): field.name for field in caffe_pb2.LayerParameter.DESCRIPTOR.fields}
    return _SETTINGS.get(kind) or known.get(kind.lower() + "param")


def nearly_good_network(rng: Random, kind: str) -> bytes:
    """Return the prototxt of a layer that fits what it reads, but for a few changes."""
    wildness = rng.choice((0.0, 0.3, 1.0))
    settings, shapes = _GOOD_LAYERS.get(kind, ("", _IMAGE))
    net = caffe_pb2.NetParameter(name="nearly")
    for index, text in enumerate(shapes.split()):
        shape = [int(size) for size in text.split(",")]
        if rng.random() < 0.15:
            shape[rng.randrange(len(shape))] = _size(rng, 3 * wildness)
        net.layer.add(name=f"b{index}", type="Input", top=[f"b{index}"]).input_param.shape.add(dim=shape)
    layer = net.layer.add(name="layer", type=kind, bottom=[source.top[0] for source in net.layer])
    counts = {"MemoryData": 2, "Slice": 2, "Silence": 0, "IFMR": 0, "HFMG": 0}
    layer.top.extend(f"t{index}" for index in range(counts.get(kind, rng.choice((1, 1, 1, 2)))))
    if (name := _own_settings(kind)) is not None:
        text_format.Parse(settings, getattr(layer, name))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            change(rng, getattr(layer, name), wildness)
    if not shapes:
        net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[1])
    if "num_output" in settings and rng.random() < 0.3:
        _quantize(net, layer)
    return text_format.MessageToString(net).encode()


def _quantize(net: caffe_pb2.NetParameter, layer: caffe_pb2.LayerParameter) -> None:
    """Put a Quant layer before a layer and a DeQuant layer behind it."""
    quantizer = caffe_pb2.LayerParameter(name="q", type="Quant", bottom=layer.bottom[:1], top=["q"])
    quantizer.quant_param.scale, quantizer.quant_param.offset = 1, b"\x80"
    layer.bottom[0] = "q"
    net.layer.insert(len(net.layer) - 1, quantizer)
    net.layer.add(name="d", type="DeQuant", bottom=layer.top[:1], top=layer.top[:1])


def random_layer(rng: Random, kind: str, bottoms: list[str], wildness: float) -> caffe_pb2.LayerParameter:
    """Return a layer of a type with random settings, its own most of the time, and random tops."""
    layer = caffe_pb2.LayerParameter(name="layer", type=kind, bottom=bottoms)
    layer.top.extend(f"t{index}" for index in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3))))
    if bottoms and rng.random() < 0.1:
        layer.top[:] = bottoms[:1]
    known = [field.name for field in layer.DESCRIPTOR.fields if field.name.endswith("_param") and field.message_type]
    for name in (_own_settings(kind) or rng.choice(known), *rng.sample(known, rng.choice((0, 0, 0, 1, 2)))):
        fill(rng, getattr(layer, name), wildness)
    return layer


def random_network(rng: Random, kind: str) -> bytes:
    """Return the prototxt of a layer and of what it reads, blobs of no axis to five."""
    wildness = rng.choice((0.0, 0.0, 0.1, 0.1, 0.3, 0.7))
    wanted = LAYER_TYPES[kind].bottoms
    count = rng.choice((wanted[0], wanted[0], min(wanted[-1], wanted[0] + 1), rng.randrange(5))) if len(wanted) else 0
    first = [_size(rng, wildness) for _ in range(rng.choice((0, 1, 2, 3, 4, 4, 4, 4, 5)))]
    net = caffe_pb2.NetParameter(name="random")
    bottoms = []
    for index in range(count):
        same, other = first, [_size(rng, wildness) for _ in range(rng.randrange(6))]
        shape = rng.choice((same, same, same, first[:1], first[:2], first[1:], [*first[:1], 1], other))
        source = net.layer.add(name=f"b{index}", type="Input", top=[f"b{index}"])
        source.input_param.shape.add(dim=shape)
        if not shape and rng.random() < 0.7:  # an Input needs axes, but a sum has none
            source.input_param.shape[0].dim.append(3)
            net.layer.add(name=f"s{index}", type="Reduction", bottom=[f"b{index}"], top=[f"s{index}"])
            net.layer[-1].reduction_param.axis = 0
        bottoms.append(net.layer[-1].top[0])
    if not count:
        net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[1])
    net.layer.append(random_layer(rng, kind, bottoms, wildness))
    if rng.random() < 0.3 and net.layer[-1].top:
        behind = random_layer(rng, rng.choice(TYPES), list(net.layer[-1].top[:1]), wildness)
        behind.name = "behind"
        behind.top[:] = [f"{top}'" for top in behind.top]
        net.layer.append(behind)
    return text_format.MessageToString(net).encode()


def _size(rng: Random, wildness: float) -> int:
    extremes = (1, 16, 17, 255, 1000, 65536, 2**20, 2**24, 2**28, 2**31 - 1)
    return rng.choice(extremes) if rng.random() < wildness / 3 else rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 16))


def read_layer(path: Path) -> None:
    """Do with a network's layers what commands do: load, look, fold, lower, run, differentiate."""
    graph = load_graph(path)
    quantizable = [found.name for found in capabilities(graph) if found.quantizable]
    study_needs(graph, quantizable, quantizable, 2).say()
    shapes = infer_shapes(graph)
    taken = pass_bytes(graph, shapes)[1]
    weights = sum(math.prod(shape) for own in expected_blobs(graph).values() for shape in own)
    if taken > _HUGE_BYTES or weights * 4 > _HUGE_BYTES:
        _must_be_refused(path)
    if weights > _FEW_WEIGHTS:
        return
    graph = _with_weights(graph)
    fold_batch_norm(graph)
    if not has_host_layers(graph):
        lower(graph)
        lowered = lower(graph, plan=IntegerPlan(graph))
        if taken < _SMALL_BYTES:
            Session(lowered).run({name: np.zeros(shape, np.float32) for name, shape in lowered.inputs.items()})
    if taken < _SMALL_BYTES:
        Net(path).forward()
        lower_gradients(graph, None, quantizable)


def _must_be_refused(path: Path) -> None:
    try:
        Net(path).forward()
    except RuntimeFailure:
        return
    raise AssertionError("a network that memory does not hold was run")


def _with_weights(graph: Graph) -> Graph:
    wanted = expected_blobs(graph)
    return graph.with_layers(layer.with_(blobs=_blobs(layer.type, wanted[layer.name])) for layer in graph.layers)


def _blobs(kind: str, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Return ones; of a DeQuant layer only the scale is one."""
    return [np.full(shape, kind != "DeQuant" or not index, np.float32) for index, shape in enumerate(shapes)]


@dataclass(frozen=True)
class _Layers(Parser):
    """Makes files of its own in place of damaged ones."""

    types: tuple[str, ...] = TYPES

    def case(self, originals: object, seed: int, index: int) -> bytes:
        kind = self.types[index % len(self.types)]
        rng = Random(f"{seed}:{kind}:{index}")
        return (nearly_good_network if rng.random() < 0.7 else random_network)(rng, kind)


_GOOD = b"""layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 6 dim: 6 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
"""


def run(seconds: float, seed: int, folder: Path, only: str) -> list[Row]:
    """Try random settings of every type, or of those whose name contains `only`; what went wrong stays in `folder`."""
    types = tuple(kind for kind in TYPES if only in kind)
    name = f"random settings of {len(types)} layer types"
    layers = _Layers(name, ".prototxt", lambda _: [_GOOD], read_layer, names_file=False, types=types)
    return attack([layers], seconds, seed, folder)
