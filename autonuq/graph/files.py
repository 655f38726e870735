"""Prototxt and caffemodel files, read into a `Graph` and written from one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from autonuq.atomic import replace_file, replace_text
from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.caffemodel import Caffemodel, StoredBlob, load_caffemodel, network_chunks, read_bytes
from autonuq.graph.foreign import quote_foreign, unquote_foreign
from autonuq.graph.hosted.python_layer import importable
from autonuq.graph.hosted.registry import registered_types
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.model import TEST, Array, Graph, Layer, Shape
from autonuq.graph.upgrade import upgrade_net

_SHOWN = 200  # characters of a syntax error: it may quote the whole file


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
        caffemodel, in any of the formats. Layers that the prototxt lacks are ignored, as in Caffe. Without it the
        layers have no blobs.
    phase : {TRAIN, TEST}
    level : int
    stages : sequence of str
        Caffe's NetState: which layers the include and exclude rules keep.

    Raises
    ------
    ModelError
        A file cannot be read or parsed, the structure is wrong, or the weights do not fit the prototxt.
    """
    path = Path(model_file)
    graph = parse_graph(read_bytes(path), path, phase=phase, level=level, stages=stages)
    return graph if weights_file is None else attach_weights(graph, weights_file)


def parse_graph(text: bytes, path: Path, *, phase: int = TEST, level: int = 0, stages: Sequence[str] = ()) -> Graph:
    """Make a graph without weights from the text of a prototxt; `path` is for messages. See `load_graph`."""
    try:
        net = _parse(text.decode())
    except text_format.ParseError as error:
        raise ModelError(_syntax_message(error), path=path) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"is not text, so no prototxt: {error}", path=path) from error
    net.state.MergeFrom(caffe_pb2.NetState(phase=caffe_pb2.Phase.Name(phase), level=level, stage=stages))
    layers = (Layer(_without_blobs(message)) for message in upgrade_net(net, path))
    graph = Graph(net.name, tuple(layers), path).validate()
    _refuse_foreign(graph)
    with importable(path.parent):  # modules of Python layers
        expected_blobs(graph)
    return graph


def _parse(text: str) -> caffe_pb2.NetParameter:
    net = caffe_pb2.NetParameter()
    try:
        text_format.Parse(text, net)
    except text_format.ParseError:
        quoted = quote_foreign(text) if registered_types() else text
        if quoted == text:
            raise
        net.Clear()
        text_format.Parse(quoted, net)
    return net


def _refuse_foreign(graph: Graph) -> None:
    for layer in graph.layers:
        if layer.message.foreign_param and layer.type not in registered_types():
            name = layer.message.foreign_param[0].partition("{")[0].strip(": ")
            raise graph.error(layer, f"type '{layer.type}' has no parameters '{name}'")


def _syntax_message(error: text_format.ParseError) -> str:
    """Say where a text does not parse, without protobuf's repetition of the whole line."""
    reason = str(error).rpartition("': ")[2].rpartition(" : ")[2].strip()
    shown = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]}..."
    return f"syntax error in line {error.GetLine()}, column {error.GetColumn()}: {shown}"


def attach_weights(graph: Graph, weights: str | Path | Caffemodel) -> Graph:
    """Return the graph with the blobs of a caffemodel, a file or one that is loaded; see `load_graph`.

    Notes
    -----
    Layers that give a parameter the same name (`param { name }`) share one blob: the array of the layer that comes
    last in the file, for Caffe loads them into one place one after the other. A layer that has all its blobs from
    others may be missing in the file.
    """
    stored = weights if isinstance(weights, Caffemodel) else load_caffemodel(weights)
    order = {name: position for position, name in enumerate(stored)}
    expected = expected_blobs(graph)
    own = {
        layer.name: list(_fitting_blobs(layer, expected[layer.name], stored[layer.name], stored.path))
        for layer in graph.layers
        if expected[layer.name] and layer.name in stored
    }
    shared: dict[str, Array] = {}
    for layer in sorted((layer for layer in graph.layers if layer.name in own), key=lambda layer: order[layer.name]):
        shared.update({name: own[layer.name][index] for index, name in _shared_names(layer).items()})
    return graph.with_layers(
        layer.with_(blobs=_with_shared(graph, layer, expected[layer.name], own.get(layer.name), shared, stored.path))
        if expected[layer.name]
        else layer
        for layer in graph.layers
    )


def expected_blobs(graph: Graph) -> dict[str, list[Shape]]:
    """Return the shapes of every layer's own blobs, by its name.

    Raises
    ------
    ModelError
        A layer does not fit its bottoms.
    """
    shapes = infer_shapes(graph)
    return {layer.name: blob_shapes(graph, layer, shapes) for layer in graph.layers}


def _shared_names(layer: Layer) -> dict[int, str]:
    """Return the names under which a layer shares its parameters, by index."""
    return {index: spec.name for index, spec in enumerate(layer.message.param) if spec.name}


def _with_shared(
    graph: Graph, layer: Layer, expected: list[Shape], own: list[Array] | None, shared: dict[str, Array], path: Path
) -> Iterator[Array]:
    names = _shared_names(layer)
    for index, shape in enumerate(expected):
        name = names.get(index, "")
        blob = shared.get(name, own[index] if own else None)
        if blob is None:
            raise graph.error(layer, f"needs {len(expected)} blobs of weights, but {path} has no layer of this name")
        permissive = name and layer.message.param[index].share_mode == caffe_pb2.ParamSpec.PERMISSIVE
        if blob.shape != shape and not (permissive and blob.size == math.prod(shape)):
            raise graph.error(layer, f"shares '{name}' of shape {blob.shape}, but its own shape is {shape}")
        yield blob.reshape(shape)


def _fitting_blobs(layer: Layer, expected: list[Shape], found: Sequence[StoredBlob], path: Path) -> Iterator[Array]:
    if len(found) != len(expected):
        raise ModelError(
            f"has {len(found)} blobs, but the prototxt asks for {len(expected)} ({_shapes_text(expected)})",
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
    return unquote_foreign(text_format.MessageToString(net))


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
    messages = (message.SerializeToString(deterministic=True) for message in _written_messages(graph))
    blobs = (layer.blobs for layer in graph.layers)
    return replace_file(path, network_chunks(graph.name, zip(messages, blobs, strict=True)))


def _shapes_text(shapes: list[Shape]) -> str:
    return ", ".join(str(shape) for shape in shapes)


def _without_blobs(message: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter:
    message.ClearField("blobs")
    return message


@dataclass(frozen=True)
class ModelPair:
    """A prototxt and its caffemodel."""

    model: Path
    weights: Path
