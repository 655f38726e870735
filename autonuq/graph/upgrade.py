"""Older spellings of a network, turned into today's.

Caffe's own rules (upgrade_proto): V1 `layers` with an enumerated type become `layer` with a type name, top-level
`input` fields become an `Input` layer, and layers whose rules exclude the phase are dropped.
"""

from __future__ import annotations

from pathlib import Path

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2

_V1_IRREGULAR = {
    "ABSVAL": "AbsVal",
    "BNLL": "BNLL",
    "IM2COL": "Im2col",
    "INFOGAIN_LOSS": "InfogainLoss",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "PRELU": "PReLU",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
    "ARGMAX": "ArgMax",
}


def v1_type_name(number: int) -> str:
    """Return today's type name of a V1 layer type, '' if there is none."""
    known = caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR.values_by_number
    if number not in known or number == 0:
        return ""
    name = known[number].name
    return _V1_IRREGULAR.get(name) or "".join(word.capitalize() for word in name.split("_"))


def upgrade_v1_layer(old: caffe_pb2.V1LayerParameter) -> caffe_pb2.LayerParameter:
    """Turn one V1 layer into today's format."""
    new = caffe_pb2.LayerParameter(name=old.name, type=v1_type_name(old.type))
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    new.loss_weight.extend(old.loss_weight)
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    rates = list(old.blobs_lr)
    decays = list(old.weight_decay)
    for index in range(max(len(rates), len(decays), len(old.param))):
        spec = new.param.add()
        if index < len(old.param):
            spec.name = old.param[index]
        if index < len(rates):
            spec.lr_mult = rates[index]
        if index < len(decays):
            spec.decay_mult = decays[index]
    for descriptor, value in old.ListFields():
        if descriptor.name.endswith("_param"):
            getattr(new, descriptor.name).CopyFrom(value)
    return new


def upgrade_net(net: caffe_pb2.NetParameter, path: Path | None) -> list[caffe_pb2.LayerParameter]:
    """Return the layers that the network's state keeps in today's format, its inputs as an `Input` layer.

    Raises
    ------
    ModelError
        Both layer formats are mixed, or a V0 layer or an unknown V1 type is found.
    """
    if net.layers and net.layer:
        raise ModelError("mixes 'layer' and 'layers'; Caffe accepts only one of them", path=path)
    for old in net.layers:
        if old.HasField("layer"):
            raise ModelError("uses the V0 format; run Caffe's upgrade_net_proto_text", path=path, layer=old.layer.name)
        if not v1_type_name(old.type):
            raise ModelError(f"V1 layer type {old.type} has no counterpart today", path=path, layer=old.name)
    layers = [upgrade_v1_layer(old) for old in net.layers] or list(net.layer)
    kept = [layer for layer in layers if _is_included(layer, net.state)]
    return [*_legacy_inputs(net, path), *kept]


def _legacy_inputs(net: caffe_pb2.NetParameter, path: Path | None) -> list[caffe_pb2.LayerParameter]:
    if not net.input:
        return []
    layer = caffe_pb2.LayerParameter(name="input", type="Input")
    layer.top.extend(net.input)
    if net.input_shape:
        layer.input_param.shape.extend(net.input_shape)
    elif len(net.input_dim) == 4 * len(net.input):
        for index in range(len(net.input)):
            layer.input_param.shape.add().dim.extend(net.input_dim[4 * index : 4 * index + 4])
    else:
        raise ModelError(
            f"has {len(net.input)} inputs but {len(net.input_dim)} 'input_dim' values; four each are needed", path=path
        )
    return [layer]


def _is_included(layer: caffe_pb2.LayerParameter, state: caffe_pb2.NetState) -> bool:
    """Caffe's StateMeetsRule: with include rules one must hold, otherwise no exclude rule may."""
    if layer.include:
        return any(_rule_holds(rule, state) for rule in layer.include)
    return not any(_rule_holds(rule, state) for rule in layer.exclude)


def _rule_holds(rule: caffe_pb2.NetStateRule, state: caffe_pb2.NetState) -> bool:
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )
