"""Prototxt and caffemodel files, read into a `Graph` and written from one.

The weights of a loaded graph are views of the caffemodel's bytes: one read, no copy, no Python lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from autonuq.atomic import replace_file, replace_text
from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.model import TEST, Array, Graph, Layer, Shape
from autonuq.graph.upgrade import upgrade_net
from autonuq.graph.wire import (
    DELIMITED,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    WireError,
    decode_varints,
    delimited,
    encode_varints,
    fixed_run,
    read_field,
    read_fields,
)

# Field numbers of caffe.proto that are read and written without the generated module.
_NET_LAYERS_V1, _NET_LAYER = 2, 100
_LAYER_NAME, _LAYER_BLOBS = {_NET_LAYERS_V1: 4, _NET_LAYER: 1}, {_NET_LAYERS_V1: 6, _NET_LAYER: 7}
_V1_LAYER_V0, _V0_NAME, _V0_BLOBS = 1, 1, 50  # a V0 layer is a message inside a V1 one
_BLOB_LEGACY, _BLOB_SHAPE = (1, 2, 3, 4), 7
_BLOB_DATA, _BLOB_DOUBLE, _BLOB_INT8, _BLOB_INT32, _BLOB_UINT64 = 5, 8, 10, 11, 12
_BLOB_KINDS = (_BLOB_DATA, _BLOB_DOUBLE, _BLOB_INT8, _BLOB_INT32, _BLOB_UINT64)
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # NVCaffe's Type of raw_data: DOUBLE, FLOAT, FLOAT16


@dataclass(frozen=True)
class StoredBlob:
    """A blob as a file holds it.

    Attributes
    ----------
    shape : tuple of int
        Four numbers in the legacy spelling.
    legacy : bool
        Spelled num, channels, height, width.
    values : ndarray, shape (count,)
    """

    shape: Shape
    legacy: bool
    values: Array

    def fits(self, expected: Shape) -> bool:
        """Caffe's Blob::ShapeEquals: legacy shapes are padded with ones in front."""
        if self.legacy and len(expected) <= 4:
            return self.shape == (1,) * (4 - len(expected)) + expected
        return self.shape == expected


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
    model_path = Path(model_file)
    net = caffe_pb2.NetParameter()
    try:
        text_format.Parse(_read(model_path).decode(), net)
    except text_format.ParseError as error:
        raise ModelError(_syntax_message(error), path=model_path) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"is not text, so no prototxt: {error}", path=model_path) from error
    net.state.MergeFrom(caffe_pb2.NetState(phase=caffe_pb2.Phase.Name(phase), level=level, stage=stages))
    layers = (Layer(_without_blobs(message)) for message in upgrade_net(net, model_path))
    graph = Graph(net.name, tuple(layers), model_path).validate()
    infer_shapes(graph)
    return graph if weights_file is None else attach_weights(graph, Path(weights_file))


def _syntax_message(error: text_format.ParseError) -> str:
    """Say where a text does not parse, without protobuf's repetition of the whole line."""
    reason = str(error).rpartition("': ")[2].rpartition(" : ")[2].strip()
    return f"syntax error in line {error.GetLine()}, column {error.GetColumn()}: {reason}"


def attach_weights(graph: Graph, weights_path: Path) -> Graph:
    """Return the graph with the blobs of a caffemodel; see `load_graph`.

    Notes
    -----
    Layers that give a parameter the same name (`param { name }`) share one blob: the array of the layer that comes
    last in the file, for Caffe loads them into one place one after the other. A layer that has all its blobs from
    others may be missing in the file.
    """
    stored = dict(load_caffemodel(weights_path))
    order = {name: position for position, name in enumerate(stored)}
    shapes = infer_shapes(graph)
    expected = {layer.name: blob_shapes(graph, layer, shapes) for layer in graph.layers}
    own = {
        layer.name: list(_fitting_blobs(layer, expected[layer.name], stored[layer.name], weights_path))
        for layer in graph.layers
        if expected[layer.name] and layer.name in stored
    }
    shared: dict[str, Array] = {}
    for layer in sorted((layer for layer in graph.layers if layer.name in own), key=lambda layer: order[layer.name]):
        shared.update({name: own[layer.name][index] for index, name in _shared_names(layer).items()})
    return graph.with_layers(
        layer.with_(blobs=_with_shared(graph, layer, expected[layer.name], own.get(layer.name), shared, weights_path))
        if expected[layer.name]
        else layer
        for layer in graph.layers
    )


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
        if blob.shape != shape and not (permissive and blob.size == np.prod(shape, dtype=np.int64)):
            raise graph.error(layer, f"shares '{name}' of shape {blob.shape}, but its own shape is {shape}")
        yield blob.reshape(shape)


def _fitting_blobs(layer: Layer, expected: list[Shape], found: list[StoredBlob], path: Path) -> Iterator[Array]:
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
        if blob.values.size != np.prod(shape, dtype=np.int64):
            raise ModelError(
                f"blob {index} of shape {shape} holds {blob.values.size} values instead of {np.prod(shape)}",
                path=path,
                layer=layer.name,
            )
        yield blob.values.reshape(shape)


def load_caffemodel(path: str | Path) -> list[tuple[str, list[StoredBlob]]]:
    """Read layer names and blobs of a caffemodel, in file order, without copying float data.

    Raises
    ------
    ModelError
        The file is missing, truncated, or no caffemodel; the layer is named where it is known.
    """
    path = Path(path)
    data = memoryview(_read(path))
    layers, name = [], None
    try:
        for field in read_fields(data):
            if field.number in _LAYER_NAME and field.wire_type == DELIMITED:
                name = _layer_name(data, field)
                layers.append((name, _layer_blobs(data, field)))
    except (WireError, UnicodeDecodeError, DecodeError) as error:
        raise ModelError(
            f"is damaged or no caffemodel: {error}" + (f"; the last layer read is '{name}'" if name else ""), path=path
        ) from error
    if not layers:
        raise ModelError("holds no layers, so it is no caffemodel", path=path)
    return layers


def _layer_name(data: memoryview, layer: Field) -> str:
    for number, _, start, end in _layer_bodies(data, layer):
        for field in read_fields(data, start, end):
            if field.number == number and field.wire_type == DELIMITED:
                return bytes(data[field.start : field.end]).decode()
    return ""


def _layer_blobs(data: memoryview, layer: Field) -> list[StoredBlob]:
    return [
        _read_blob(data, field.start, field.end)
        for _, number, start, end in _layer_bodies(data, layer)
        for field in read_fields(data, start, end)
        if field.number == number and field.wire_type == DELIMITED
    ]


def _layer_bodies(data: memoryview, layer: Field) -> Iterator[tuple[int, int, int, int]]:
    """Yield the messages that hold a layer's name and blobs: field numbers of both, start, end."""
    yield _LAYER_NAME[layer.number], _LAYER_BLOBS[layer.number], layer.start, layer.end
    if layer.number == _NET_LAYERS_V1:
        for field in read_fields(data, layer.start, layer.end):
            if field.number == _V1_LAYER_V0 and field.wire_type == DELIMITED:
                yield _V0_NAME, _V0_BLOBS, field.start, field.end


def _read_blob(data: memoryview, position: int, end: int) -> StoredBlob:
    """Read one BlobProto; of several kinds of data the widest known one wins, as in ATC's reader."""
    legacy, dims = [1, 1, 1, 1], None
    parts: dict[int, list[Array]] = {}
    raw_type: int | None = None
    while position < end:
        field = read_field(data, position, end)
        position = field.end
        number, view = field.number, data[field.start : field.end]
        if number in _BLOB_LEGACY and field.wire_type == VARINT:
            legacy[number - 1] = field.value
        elif number == _BLOB_SHAPE and field.wire_type == DELIMITED:
            shape = caffe_pb2.BlobShape.FromString(bytes(view))
            dims = tuple(shape.dim)
        elif number == _BLOB_INT8 and field.wire_type == VARINT:
            raw_type = field.value
        elif number in (_BLOB_DATA, _BLOB_DOUBLE) and field.wire_type in (FIXED32, FIXED64):
            rows, position = fixed_run(data, field, end)
            kind = "<f4" if field.wire_type == FIXED32 else "<f8"
            parts.setdefault(number, []).append(np.ascontiguousarray(rows).view(kind)[:, 0])
        elif number in _BLOB_KINDS and field.wire_type == DELIMITED:
            parts.setdefault(number, []).append(np.frombuffer(view, np.uint8))
    values = _blob_values({number: _joined(chunks) for number, chunks in parts.items()}, raw_type)
    if dims is None:
        return StoredBlob(tuple(legacy), True, values)
    return StoredBlob(dims, False, values)


def _joined(chunks: list[Array]) -> Array:
    return chunks[0] if len(chunks) == 1 else np.concatenate([chunk.view(chunks[0].dtype) for chunk in chunks])


def _blob_values(parts: dict[int, Array], raw_type: int | None) -> Array:
    """Choose and decode the data of a blob: float32 unless it is a deploy model's integer blob."""
    if raw_type is not None and _BLOB_UINT64 in parts and _BLOB_DATA not in parts:
        if raw_type not in _RAW_TYPES:
            raise WireError(f"raw_data of type {raw_type}; only DOUBLE 0, FLOAT 1 and FLOAT16 2 are known")
        return _as(parts[_BLOB_UINT64], _RAW_TYPES[raw_type]).astype(np.float32)
    if _BLOB_DOUBLE in parts:
        return _as(parts[_BLOB_DOUBLE], "<f8").astype(np.float32)
    if _BLOB_INT8 in parts:
        return parts[_BLOB_INT8].view(np.int8)
    if _BLOB_INT32 in parts:
        return decode_varints(parts[_BLOB_INT32].data).astype(np.int64).astype(np.int32)
    if _BLOB_UINT64 in parts:
        return decode_varints(parts[_BLOB_UINT64].data)
    return _as(parts.get(_BLOB_DATA, np.zeros(0, np.uint8)), "<f4")


def _as(raw: Array, kind: str) -> Array:
    if raw.nbytes % np.dtype(kind).itemsize:
        raise WireError(f"{raw.nbytes} bytes of data are no whole number of {np.dtype(kind).name} values")
    return raw.view(kind)


def write_model(graph: Graph, model_file: str | Path, weights_file: str | Path) -> None:
    """Write the pair of files, each atomically."""
    write_prototxt(graph, model_file)
    write_caffemodel(graph, weights_file)


def write_prototxt(graph: Graph, path: str | Path) -> Path:
    """Write the graph's structure in today's format; parameters whose values differ by now are shared no more."""
    net = caffe_pb2.NetParameter(name=graph.name, layer=_written_messages(graph))
    return replace_text(path, text_format.MessageToString(net))


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
    return replace_file(path, _caffemodel_chunks(graph))


def _caffemodel_chunks(graph: Graph) -> Iterator[bytes | memoryview]:
    yield from delimited(1, [graph.name.encode()])
    for layer, message in zip(graph.layers, _written_messages(graph), strict=True):
        body: list[bytes | memoryview] = [message.SerializeToString(deterministic=True)]
        for blob in layer.blobs:
            body += delimited(_LAYER_BLOBS[_NET_LAYER], _blob_chunks(blob))
        yield from delimited(_NET_LAYER, body)


_INTEGER_FIELDS = {"int32": _BLOB_INT32, "uint64": _BLOB_UINT64}


def _blob_chunks(blob: Array) -> list[bytes | memoryview]:
    shape = delimited(_BLOB_SHAPE, [caffe_pb2.BlobShape(dim=blob.shape).SerializeToString()])
    if blob.dtype.kind == "f":
        return shape + delimited(_BLOB_DATA, [_raw(blob, np.dtype("<f4"))])
    if blob.dtype == np.int8:
        return shape + delimited(_BLOB_INT8, [_raw(blob, np.dtype(np.int8))])
    return shape + delimited(_INTEGER_FIELDS[blob.dtype.name], [encode_varints(blob.ravel())])


def _raw(blob: Array, dtype: np.dtype[np.generic]) -> memoryview:
    return np.ascontiguousarray(blob, dtype).reshape(-1).view(np.uint8).data


def _shapes_text(shapes: list[Shape]) -> str:
    return ", ".join(str(shape) for shape in shapes)


def _without_blobs(message: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter:
    message.ClearField("blobs")
    return message


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", path=path) from error
