"""Older spellings of a network, turned into today's.

Caffe's own rules (upgrade_proto), in its order: V0 layers inside V1 ones become V1 layers and V0's padding layers
become a `pad`; V1 `layers` with an enumerated type become `layer` with a type name, their data transformation moves
to `transform_param`; BatchNorm's three parameter specs lose their learning rates; top-level `input` fields become an
`Input` layer; layers whose rules exclude the phase are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

_ACRONYMS = frozenset({"BN", "CRF", "ELU", "LSTM", "PSROI", "RNN", "ROI", "SPP"})

_V0_IRREGULAR = {
    "conv": "CONVOLUTION",
    "images": "IMAGE_DATA",
    "innerproduct": "INNER_PRODUCT",
    "multinomial_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
}
_V0_TYPES = frozenset(
    ["accuracy", "bnll", "concat", "conv", "data", "dropout", "euclidean_loss", "flatten", "hdf5_data", "hdf5_output"]
    + ["im2col", "images", "infogain_loss", "innerproduct", "lrn", "multinomial_loss", "pool", "relu", "sigmoid"]
    + ["softmax", "softmax_loss", "split", "tanh", "window_data"]
)
# V0 parameter -> V0 layer type -> where V1 keeps it ('*' is any type). What a type does not have is dropped, as in
# Caffe.
_V0_PARAMETERS: dict[str, dict[str, str]] = {
    "num_output": {"conv": "convolution_param.num_output", "innerproduct": "inner_product_param.num_output"},
    "biasterm": {"conv": "convolution_param.bias_term", "innerproduct": "inner_product_param.bias_term"},
    "weight_filler": {"conv": "convolution_param.weight_filler", "innerproduct": "inner_product_param.weight_filler"},
    "bias_filler": {"conv": "convolution_param.bias_filler", "innerproduct": "inner_product_param.bias_filler"},
    "pad": {"conv": "convolution_param.pad", "pool": "pooling_param.pad"},
    "kernelsize": {"conv": "convolution_param.kernel_size", "pool": "pooling_param.kernel_size"},
    "group": {"conv": "convolution_param.group"},
    "stride": {"conv": "convolution_param.stride", "pool": "pooling_param.stride"},
    "pool": {"pool": "pooling_param.pool"},
    "dropout_ratio": {"dropout": "dropout_param.dropout_ratio"},
    "local_size": {"lrn": "lrn_param.local_size"},
    "alpha": {"lrn": "lrn_param.alpha"},
    "beta": {"lrn": "lrn_param.beta"},
    "k": {"lrn": "lrn_param.k"},
    "concat_dim": {"concat": "concat_param.concat_dim"},
    "scale": {"*": "transform_param.scale"},
    "meanfile": {"*": "transform_param.mean_file"},
    "cropsize": {"*": "transform_param.crop_size"},
    "mirror": {"*": "transform_param.mirror"},
    "source": {
        "data": "data_param.source",
        "hdf5_data": "hdf5_data_param.source",
        "images": "image_data_param.source",
        "window_data": "window_data_param.source",
        "infogain_loss": "infogain_loss_param.source",
    },
    "batchsize": {
        "data": "data_param.batch_size",
        "hdf5_data": "hdf5_data_param.batch_size",
        "images": "image_data_param.batch_size",
        "window_data": "window_data_param.batch_size",
    },
    "rand_skip": {"data": "data_param.rand_skip", "images": "image_data_param.rand_skip"},
    "shuffle_images": {"images": "image_data_param.shuffle"},
    "new_height": {"images": "image_data_param.new_height"},
    "new_width": {"images": "image_data_param.new_width"},
    "det_fg_threshold": {"window_data": "window_data_param.fg_threshold"},
    "det_bg_threshold": {"window_data": "window_data_param.bg_threshold"},
    "det_fg_fraction": {"window_data": "window_data_param.fg_fraction"},
    "det_context_pad": {"window_data": "window_data_param.context_pad"},
    "det_crop_mode": {"window_data": "window_data_param.crop_mode"},
    "hdf5_output_param": {"hdf5_output": "hdf5_output_param"},
}

_TRANSFORMED = {"Data": "data_param", "ImageData": "image_data_param", "WindowData": "window_data_param"}


def upgrade_v0_layers(layers: list[caffe_pb2.V1LayerParameter], path: Path | None) -> list[caffe_pb2.V1LayerParameter]:
    """Turn V0 layers into V1 ones.

    Raises
    ------
    ModelError
        A type is unknown, or a padding layer stands before anything but a lone convolution or pooling.
    """
    makers: dict[str, caffe_pb2.V1LayerParameter] = {}
    result = []
    for old in layers:
        if old.layer.type != "padding":
            new = _upgrade_v0_layer(old, path)
            for index, bottom in enumerate(old.bottom):
                maker = makers.get(bottom)
                if maker is not None and maker.layer.type == "padding":
                    _absorb_padding(new, index, maker, path)
            result.append(new)
        makers.update(dict.fromkeys(old.top, old))
    return result


def _absorb_padding(
    layer: caffe_pb2.V1LayerParameter, index: int, padding: caffe_pb2.V1LayerParameter, path: Path | None
) -> None:
    kinds = caffe_pb2.V1LayerParameter
    if layer.type not in (kinds.CONVOLUTION, kinds.POOLING) or len(layer.bottom) != 1 or len(padding.bottom) != 1:
        raise ModelError("only a convolution or pooling with one input can be padded", path=path, layer=layer.name)
    if layer.type == kinds.CONVOLUTION:
        layer.convolution_param.pad[:] = [padding.layer.pad]
    else:
        layer.pooling_param.pad = padding.layer.pad
    layer.bottom[index] = padding.bottom[0]


def _upgrade_v0_layer(old: caffe_pb2.V1LayerParameter, path: Path | None) -> caffe_pb2.V1LayerParameter:
    inner = old.layer
    if inner.type not in _V0_TYPES:
        raise ModelError(f"V0 layer type '{inner.type}' has no counterpart today", path=path, layer=inner.name)
    kind = _V0_IRREGULAR.get(inner.type, inner.type.upper())
    new = caffe_pb2.V1LayerParameter(
        name=inner.name,
        type=kind,
        bottom=old.bottom,
        top=old.top,
        blobs_lr=inner.blobs_lr,
        weight_decay=inner.weight_decay,
    )
    for descriptor, value in inner.ListFields():
        places = _V0_PARAMETERS.get(descriptor.name, {})
        place = places.get(inner.type) or places.get("*")
        if place:
            _set_field(new, place, value)
    return new


def _set_field(message: caffe_pb2.V1LayerParameter, place: str, value: object) -> None:
    *parents, name = place.split(".")
    target = getattr(message, parents[0]) if parents else message
    field = getattr(target, name)
    if hasattr(field, "CopyFrom"):
        field.CopyFrom(value)
    elif hasattr(field, "append"):
        field.append(value)
    else:
        setattr(target, name, value)


def v1_type_name(number: int) -> str:
    """Return today's type name of a V1 layer type, '' if there is none."""
    known = caffe_pb2.V1LayerParameter.LayerType.DESCRIPTOR.values_by_number
    if number not in known or number == 0:
        return ""
    return _type_name(known[number].name)


def _type_name(name: str) -> str:
    """Return today's spelling of a name of V1's enumeration."""
    return _V1_IRREGULAR.get(name) or "".join(word.capitalize() for word in name.split("_"))


def _fork_type_name(name: str) -> str:
    """Return the type name that a fork would give to a name of its enumeration: `ROI_POOLING` is ROIPooling."""
    words = name.split("_")
    spelled = (word if word in _ACRONYMS else word.capitalize() for word in words)
    return _V1_IRREGULAR.get(name) or "".join(spelled)


def upgrade_v1_layer(old: caffe_pb2.V1LayerParameter) -> caffe_pb2.LayerParameter:
    """Turn one V1 layer into today's format."""
    new = caffe_pb2.LayerParameter(name=old.name, type=v1_type_name(old.type))
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    new.loss_weight.extend(old.loss_weight)
    new.include.extend(old.include)
    new.exclude.extend(old.exclude)
    lists: dict[str, Sequence[object]] = {
        "name": old.param,
        "share_mode": old.blob_share_mode,
        "lr_mult": old.blobs_lr,
        "decay_mult": old.weight_decay,
    }
    for index in range(max(len(values) for values in lists.values())):
        spec = new.param.add()
        for name, values in lists.items():
            if index < len(values):
                setattr(spec, name, values[index])
    for descriptor, value in old.ListFields():
        if descriptor.name.endswith("_param"):
            getattr(new, descriptor.name).CopyFrom(value)
    if new.type in _TRANSFORMED:
        _move_transformation(new, getattr(new, _TRANSFORMED[new.type]))
    return new


def _move_transformation(
    layer: caffe_pb2.LayerParameter,
    source: caffe_pb2.DataParameter | caffe_pb2.ImageDataParameter | caffe_pb2.WindowDataParameter,
) -> None:
    for name in ("scale", "mean_file", "crop_size", "mirror"):
        if source.HasField(name):
            setattr(layer.transform_param, name, getattr(source, name))
            source.ClearField(name)


def _upgrade_batch_norm(layer: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter:
    """Three parameter specs are how statistics used to be kept from learning."""
    if layer.type == "BatchNorm" and len(layer.param) == 3:
        for spec in layer.param:
            spec.lr_mult = spec.decay_mult = 0
    return layer


def upgrade_layers(
    net: caffe_pb2.NetParameter, path: Path | None, types: Mapping[int, str]
) -> list[caffe_pb2.LayerParameter]:
    """Return all layers of a network in today's format, in the file's order.

    Parameters
    ----------
    types : mapping of int to str
        Types of V1 layers that Caffe's enumeration lacks, as forks spell them there (`SEG_ACCURACY`), by position.

    Raises
    ------
    ModelError
        Both layer formats are mixed, a V0 or V1 type is unknown, or a layer has both kinds of rules.
    """
    if net.layers and net.layer:
        raise ModelError("mixes 'layer' and 'layers'; Caffe accepts only one of them", path=path)
    old_layers = list(net.layers)
    if has_v0_layers(net):
        old_layers = upgrade_v0_layers(old_layers, path)
    for index, old in enumerate(old_layers):
        if index not in types and not v1_type_name(old.type):
            raise ModelError(f"V1 layer type {old.type} has no counterpart today", path=path, layer=old.name)
    layers = [upgrade_v1_layer(old) for old in old_layers] or list(net.layer)
    for index, name in types.items():
        layers[index].type = _fork_type_name(name)
    for layer in layers:
        if layer.include and layer.exclude:
            raise ModelError("has include and exclude rules; Caffe accepts one kind", path=path, layer=layer.name)
    return [_upgrade_batch_norm(layer) for layer in layers]


def has_v0_layers(net: caffe_pb2.NetParameter) -> bool:
    """Say whether a network has layers inside layers, the oldest spelling."""
    return any(old.HasField("layer") for old in net.layers)


def legacy_inputs(net: caffe_pb2.NetParameter, path: Path | None) -> list[caffe_pb2.LayerParameter]:
    """Return the network's top-level `input` fields as an `Input` layer.

    Raises
    ------
    ModelError
        Their shapes are not complete.
    """
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


def is_included(layer: caffe_pb2.LayerParameter, state: caffe_pb2.NetState) -> bool:
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
