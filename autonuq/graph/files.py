"""Prototxt and caffemodel files, read into a `Graph` and written from one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from autonuq.atomic import replace_file, replace_text
from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.caffemodel import Caffemodel, StoredBlob, load_caffemodel, network_chunks, read_bytes
from autonuq.graph.deployed import unpack_parameters
from autonuq.graph.fillers import Filling, fill, fillings
from autonuq.graph.foreign import unquote_foreign
from autonuq.graph.hosted.permission import is_refused
from autonuq.graph.hosted.python_layer import importable
from autonuq.graph.layers import blob_shapes, infer_known_shapes, infer_shapes
from autonuq.graph.model import TEST, Array, Graph, Layer, Shape, named_layers
from autonuq.graph.prototxt import parse_prototxt
from autonuq.graph.text import escape_bytes, serialize
from autonuq.graph.training import explained, refuse_training

_MAX_FILLED = 2**24  # weights out of fillers beside a caffemodel's; interpolation for 60 classes takes 15 million


def load_graph(
    model_file: str | Path,
    weights_file: str | Path | None = None,
    *,
    phase: int = TEST,
    level: int = 0,
    stages: Sequence[str] = (),
) -> Graph:
    """Read a network.

    Parameters
    ----------
    model_file : str or Path
        prototxt, in today's format, V1 or V0.
    weights_file : str or Path, optional
        caffemodel, in any of the formats. Layers that the prototxt lacks are ignored, as in Caffe; one that the file
        lacks keeps what its fillers say, if these are fixed values. Without a file the layers have no blobs.
    phase : {TRAIN, TEST}
    level : int
    stages : sequence of str
        Caffe's NetState: which layers the include and exclude rules keep.

    Raises
    ------
    ModelError
        A file cannot be read or parsed, the structure is wrong, or the weights do not fit the prototxt.

    Notes
    -----
    Reading runs no code of the file's: behind a `Python` layer that may not run, shapes are not known, and layers have
    the blobs that the caffemodel holds.
    """
    path = Path(model_file)
    graph = parse_graph(read_bytes(path), path, phase=phase, level=level, stages=stages)
    return graph if weights_file is None else attach_weights(graph, weights_file)


def parse_graph(text: bytes, path: Path, *, phase: int = TEST, level: int = 0, stages: Sequence[str] = ()) -> Graph:
    """Make a graph without weights from the text of a prototxt; `path` is for messages. See `load_graph`."""
    state = caffe_pb2.NetState(phase=caffe_pb2.Phase.Name(phase), level=level, stage=stages)
    net = parse_prototxt(text, path, state)
    graph = Graph(net.name, named_layers(net.kept), path)
    with explained(graph, net.left_out):
        graph.validate()
    refuse_training(graph)
    with importable(path.parent):  # modules of Python layers
        known_blobs(graph)
    return graph


def attach_weights(graph: Graph, weights: str | Path | Caffemodel) -> Graph:
    """Return the graph with the blobs of a caffemodel, a file or one that is loaded; see `load_graph`.

    Notes
    -----
    Layers that give a parameter the same name (`param { name }`) share one blob: the array of the layer that comes
    last in the file, for Caffe loads them into one place one after the other. A layer that the file lacks keeps its
    blobs if it has some, or gets what its fillers say if these are fixed values.
    """
    stored = weights if isinstance(weights, Caffemodel) else load_caffemodel(weights)
    order = {name: position for position, name in enumerate(stored)}
    known = known_blobs(graph)
    unknown = {layer.name: _stored_shapes(layer, stored) for layer in graph.layers if layer.name not in known}
    expected = known | unknown
    names = stored_names(graph, stored, expected)
    own = {
        layer.name: list(_fitting_blobs(layer, expected[layer.name], stored[names[layer.name]], stored.path))
        for layer in graph.layers
        if layer.name in names
    }
    unfilled = [layer for layer in graph.layers if layer.name not in names and not layer.blobs]
    _refuse_many_filled(graph, {layer.name: expected[layer.name] for layer in unfilled}, stored.path)
    shared: dict[str, Array] = {}
    for layer in sorted((layer for layer in graph.layers if layer.name in own), key=lambda one: order[names[one.name]]):
        blobs = own[layer.name]
        shared.update({name: blobs[index] for index, name in _shared_names(layer).items() if index < len(blobs)})

    def missing(layer: Layer, index: int, filling: Filling, shape: Shape) -> Array:
        if layer.blobs:
            return layer.blobs[index]
        _refuse_unfilled(graph, layer, filling, stored.path)
        return fill(graph, layer, filling, shape, np.random.default_rng(0))  # a fixed filler draws nothing

    filled = _with_blobs(graph, known, own, shared, missing)
    return filled.with_layers(
        layer.with_(blobs=own.get(layer.name, ())) if layer.name in unknown else layer for layer in filled.layers
    )


def fill_weights(graph: Graph, generator: np.random.Generator) -> Graph:
    """Return the graph with the blobs that its fillers make, random ones included: a net without a caffemodel."""

    def filled(layer: Layer, index: int, filling: Filling, shape: Shape) -> Array:
        return fill(graph, layer, filling, shape, generator)

    return _with_blobs(graph, expected_blobs(graph), {}, {}, filled)


def stored_names(graph: Graph, stored: Caffemodel, expected: Mapping[str, list[Shape]] | None = None) -> dict[str, str]:
    """Return under which name the file holds a layer's blobs, by the layer's own name; without those that it lacks.

    Notes
    -----
    Caffe gives a stored layer's blobs to the first layer of its name. Here the others may have theirs under the name
    that the graph gives them, as `write_caffemodel` writes it.
    """
    wanted = expected_blobs(graph) if expected is None else expected
    found: dict[str, str] = {}
    for layer in graph.layers:
        if wanted[layer.name]:
            free = layer.caffe_name not in found.values()
            name = layer.caffe_name if layer.name not in stored and free else layer.name
            if name in stored:
                found[layer.name] = name
    return found


def expected_blobs(graph: Graph) -> dict[str, list[Shape]]:
    """Return the shapes of every layer's own blobs, by its name.

    Raises
    ------
    ModelError
        A layer does not fit its bottoms.
    """
    shapes = infer_shapes(graph)
    return {layer.name: blob_shapes(graph, layer, shapes) for layer in graph.layers}


def known_blobs(graph: Graph, told: Mapping[str, Shape] | None = None) -> dict[str, list[Shape]]:
    """Return what `expected_blobs` does, without layers behind a `Python` layer that may not run."""
    shapes = infer_known_shapes(graph, told)
    known = (layer for layer in graph.layers if all(bottom in shapes for bottom in layer.bottoms))
    return {layer.name: blob_shapes(graph, layer, shapes) for layer in known if not is_refused(layer)}


def _stored_shapes(layer: Layer, stored: Caffemodel) -> list[Shape]:
    """Return the shapes of the blobs that a file has for a layer, in today's spelling."""
    return [
        _without_ones(blob.shape, _AXES.get(layer.type, 1) if index == 0 else 1) if blob.legacy else blob.shape
        for index, blob in enumerate(stored.get(layer.name) or stored.get(layer.caffe_name) or ())
    ]


_AXES = {"InnerProduct": 2, "Convolution": 4, "Deconvolution": 4}
"""How many axes weights have at least; in the legacy spelling ones stand in front of fewer than four."""


def _without_ones(shape: Shape, axes: int) -> Shape:
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape


def _shared_names(layer: Layer) -> dict[int, str]:
    """Return the names under which a layer shares its parameters, by index."""
    return {index: spec.name for index, spec in enumerate(layer.message.param) if spec.name}


def _with_blobs(
    graph: Graph,
    expected: Mapping[str, list[Shape]],
    own: Mapping[str, list[Array]],
    shared: dict[str, Array],
    missing: Callable[[Layer, int, Filling, Shape], Array],
) -> Graph:
    """Give every layer its blobs: shared ones, its own, or what `missing` makes; that is shared, too, from then on."""

    def blobs(layer: Layer) -> Iterator[Array]:
        names, shapes = _shared_names(layer), expected[layer.name]
        for index, (shape, filling) in enumerate(zip(shapes, fillings(layer, shapes), strict=True)):
            name = names.get(index, "")
            if name in shared:
                blob = shared[name]
            else:
                blob = own[layer.name][index] if layer.name in own else missing(layer, index, filling, shape)
                shared.update({name: blob} if name else {})
            permissive = name and layer.message.param[index].share_mode == caffe_pb2.ParamSpec.PERMISSIVE
            if blob.shape != shape and not (permissive and blob.size == math.prod(shape)):
                raise graph.error(layer, f"shares '{name}' of shape {blob.shape}, but its own shape is {shape}")
            yield blob.reshape(shape)

    return graph.with_layers(
        layer.with_(blobs=blobs(layer)) if expected.get(layer.name) else layer for layer in graph.layers
    )


def _refuse_unfilled(graph: Graph, layer: Layer, filling: Filling, path: Path) -> None:
    """Refuse a layer that the caffemodel lacks and whose filler is no answer."""
    lacks = f"needs blobs of weights, but {path} has no layer of this name"
    if layer.given_name is not None:
        lacks += f" (of several layers '{layer.given_name}' the first gets that layer's weights, as in Caffe)"
    remedy = "take a caffemodel that holds it, or rename it as there"
    if not filling.is_given:
        raise graph.error(layer, f"{lacks}; {remedy}")
    if not filling.is_fixed:
        what = f"its {filling.word} '{filling.filler.type}' gives no fixed values"
        raise graph.error(layer, f"{lacks}, and {what}; {remedy}, or give it a constant filler")


def _refuse_many_filled(graph: Graph, missing: Mapping[str, list[Shape]], path: Path) -> None:
    """Refuse layers that the caffemodel lacks where their fillers would make much more than it holds."""
    sizes = {name: sum(map(math.prod, shapes)) for name, shapes in missing.items()}
    if sum(sizes.values()) > _MAX_FILLED + path.stat().st_size:
        raise graph.error(
            max(sizes, key=sizes.__getitem__),
            f"its fillers and others would make {sum(sizes.values()):,} weights that {path} lacks; {_MAX_FILLED:,} and "
            "one for each byte of that file are the most: take a caffemodel that holds them",
        )


def _fitting_blobs(layer: Layer, expected: list[Shape], found: Sequence[StoredBlob], path: Path) -> Iterator[Array]:
    if layer.type == "DeQuant" and len(found) == 1 and found[0].values.dtype == np.uint64:  # of a deploy model
        (packed,) = _fitting_blobs_one_for_one(layer, expected[:1], found, path)
        yield from unpack_parameters(packed)
    else:
        yield from _fitting_blobs_one_for_one(layer, expected, found, path)


def _fitting_blobs_one_for_one(
    layer: Layer, expected: list[Shape], found: Sequence[StoredBlob], path: Path
) -> Iterator[Array]:
    if len(found) != len(expected):
        own_scale = layer.type == "BatchNorm" and len(found) in (4, 5)
        hint = "; say scale_bias (NVIDIA's Caffe) or use_weight_bias (Intel's) in batch_norm_param" if own_scale else ""
        raise ModelError(
            f"has {len(found)} blobs, but the prototxt asks for {len(expected)} ({_shapes_text(expected)}){hint}",
            path=path,
            layer=layer.name,
        )
    for index, (blob, shape) in enumerate(zip(found, expected, strict=True)):
        if not blob.fits(shape):
            raise ModelError(
                f"blob {index} has shape {blob.shape}, but the prototxt asks for {shape}", path=path, layer=layer.name
            )
        if blob.values.size != math.prod(shape):
            raise ModelError(
                f"blob {index} of shape {shape} holds {blob.values.size} values instead of {math.prod(shape)}",
                path=path,
                layer=layer.name,
            )
        yield blob.values.reshape(shape)


def write_model(graph: Graph, model_file: str | Path, weights_file: str | Path) -> None:
    """Write the pair of files, each atomically."""
    write_prototxt(graph, model_file)
    write_caffemodel(graph, weights_file)


def write_prototxt(graph: Graph, path: str | Path) -> Path:
    """Write the graph's structure, as `prototxt_text` spells it."""
    return replace_text(path, prototxt_text(graph))


def prototxt_text(graph: Graph) -> str:
    """Return the graph's structure in today's format; parameters whose values differ by now are shared no more."""
    net = caffe_pb2.NetParameter(name=graph.name, layer=_written_messages(graph))
    return escape_bytes(unquote_foreign(text_format.MessageToString(net)))


def _written_messages(graph: Graph) -> list[caffe_pb2.LayerParameter]:
    """Return the layers' messages without the share names under which blobs differ: readers would merge them."""
    groups: dict[str, list[Array]] = {}
    for layer in graph.layers:
        for index, name in _shared_names(layer).items():
            groups.setdefault(name, []).extend(layer.blobs[index : index + 1])
    split = {name for name, blobs in groups.items() if not all(_same_values(blobs[0], blob) for blob in blobs[1:])}
    return [_unshared(layer.message, split) for layer in graph.layers]


def _same_values(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.size != other.size:
        return False
    same_memory = one.__array_interface__["data"] == other.__array_interface__["data"] and one.strides == other.strides
    return same_memory or np.array_equal(one.ravel(), other.ravel())


def _unshared(message: caffe_pb2.LayerParameter, names: set[str]) -> caffe_pb2.LayerParameter:
    if not any(spec.name in names for spec in message.param):
        return message
    copy = caffe_pb2.LayerParameter()
    copy.CopyFrom(message)
    for spec in copy.param:
        if spec.name in names:
            spec.ClearField("name")
    return copy


def write_caffemodel(graph: Graph, path: str | Path) -> Path:
    """Write structure and blobs in today's format; float data go from their arrays to the file directly."""
    messages = map(serialize, _written_messages(graph))
    blobs = (layer.blobs for layer in graph.layers)
    return replace_file(path, network_chunks(graph.name, zip(messages, blobs, strict=True)))


def _shapes_text(shapes: list[Shape]) -> str:
    return ", ".join(str(shape) for shape in shapes)


@dataclass(frozen=True)
class ModelPair:
    """A prototxt and its caffemodel."""

    model: Path
    weights: Path
