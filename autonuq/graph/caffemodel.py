"""The binary model file: its bytes, an index of its layers, and a way to write it back.

The weights are views of the file's bytes: one read, no copy, no Python lists. What nobody changed is written as it
was read, byte for byte: unknown fields, training settings, old spellings.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from autonuq.atomic import replace_file
from autonuq.errors import ModelError
from autonuq.graph.model import MAX_AXES, Array, Shape
from autonuq.graph.text import decode_text, encode_text
from autonuq.graph.wire import (
    DELIMITED,
    FIXED32,
    FIXED64,
    VARINT,
    Change,
    Chunk,
    Field,
    WireError,
    decode_varints,
    delimited,
    encode_varints,
    fixed_run,
    read_field,
    read_fields,
    signed,
    splice,
)

# Field numbers of caffe.proto that are read and written without the generated module.
_NET_NAME, _NET_LAYERS_V1, _NET_LAYER = 1, 2, 100
_LAYER_NAME, _LAYER_BLOBS = {_NET_LAYERS_V1: 4, _NET_LAYER: 1}, {_NET_LAYERS_V1: 6, _NET_LAYER: 7}
_V1_LAYER_V0, _V0_NAME, _V0_BLOBS = 1, 1, 50  # a V0 layer is a message inside a V1 one
_BLOB_LEGACY, _BLOB_SHAPE, _SHAPE_DIM = (1, 2, 3, 4), 7, 1
_BLOB_DATA, _BLOB_DOUBLE, _BLOB_INT8, _BLOB_INT32, _BLOB_UINT64 = 5, 8, 10, 11, 12
_BLOB_KINDS = (_BLOB_DATA, _BLOB_DOUBLE, _BLOB_INT8, _BLOB_INT32, _BLOB_UINT64)
_UNPACKED = {(_BLOB_DATA, FIXED32): "<f4", (_BLOB_DOUBLE, FIXED64): "<f8"}
_RAW_TYPES = {0: "<f8", 1: "<f4", 2: "<f2"}  # NVCaffe's Type of raw_data: DOUBLE, FLOAT, FLOAT16
_INTEGER_FIELDS = {"int32": _BLOB_INT32, "uint64": _BLOB_UINT64}
_MAX_PIECES = 1000  # writers put a blob's numbers side by side: one piece, packed or not
_MAX_BLOBS = 1000
_NO_CHANGES: Mapping[str, Sequence[Array]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as a file holds it.

    Attributes
    ----------
    shape : tuple of int
        As written, four numbers in the legacy spelling; what it promises need not be there.
    legacy : bool
        Spelled num, channels, height, width.
    values : ndarray, shape (count,)
        Read-only: float32, or int8, int32 and uint64 in a deploy model.
    field : Field
        Where in the file the blob stands.
    data : tuple of (int, int)
        Start and end of each piece of its values, keys included.
    """

    shape: Shape
    legacy: bool
    values: Array
    field: Field
    data: tuple[tuple[int, int], ...]

    def fits(self, expected: Shape) -> bool:
        """Caffe's Blob::ShapeEquals: legacy shapes are padded with ones in front."""
        if self.legacy and len(expected) <= 4:
            return self.shape == (1,) * (4 - len(expected)) + expected
        return self.shape == expected


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """Where a layer stands in the file; `inner` are the V0 layers inside it."""

    field: Field
    inner: tuple[Field, ...]
    blobs: tuple[StoredBlob, ...]


class Caffemodel(Mapping[str, tuple[StoredBlob, ...]]):
    """Layer name -> blobs of a caffemodel in any of the three formats; of two layers of a name the last one counts.

    One without blobs does not count beside one that has some: networks give a layer and its activation one name.

    Parameters
    ----------
    path : Path
        For messages.
    data : bytes or memoryview
        The file.

    Raises
    ------
    ModelError
        The bytes are damaged or no caffemodel; the layer is named where it is known.
    """

    def __init__(self, path: Path, data: bytes | memoryview) -> None:
        self.path = path
        self._data = memoryview(data)
        self._layers: dict[str, _StoredLayer] = {}
        try:
            for field in read_fields(self._data):
                if field.number in _LAYER_NAME and field.wire_type == DELIMITED:
                    self._add_layer(field)
        except WireError as error:
            last = f"; the last whole layer is '{next(reversed(self._layers))}'" if self._layers else ""
            raise ModelError(f"is damaged or no caffemodel: {error}{last}", path=path) from error
        if not self._layers:
            raise ModelError("holds no layers, so it is no caffemodel", path=path)

    def __getitem__(self, name: str) -> tuple[StoredBlob, ...]:
        return self._layers[name].blobs

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def write(self, path: str | Path, blobs: Mapping[str, Sequence[Array]] = _NO_CHANGES) -> Path:
        """Write the file again, some layers with other values; atomically.

        Parameters
        ----------
        path : str or Path
            May be the file that this was read from.
        blobs : mapping of str to sequence of ndarray
            Every blob of the layers concerned, as many values as before. Where all values are the same the file's
            bytes stay; otherwise only the data of the blob change, float ones to float32.

        Raises
        ------
        ModelError
            The file has no such layer.
        ValueError
            A layer has other blobs or sizes than the file.

        Notes
        -----
        **Cost**: compares blobs whose arrays are not the file's own; nothing is copied but what must be converted.
        """
        changes = [self._changed_layer(name, arrays) for name, arrays in blobs.items()]
        return replace_file(path, splice(self._data, 0, len(self._data), [c for c in changes if c is not None]))

    def _add_layer(self, field: Field) -> None:
        name, inner, parts = "", [], []
        try:
            for part in read_fields(self._data, field.start, field.end):
                if part.wire_type != DELIMITED:
                    continue
                if part.number == _LAYER_NAME[field.number]:
                    name = _text(self._data, part)
                elif part.number == _LAYER_BLOBS[field.number]:
                    parts.append(part)
                elif part.number == _V1_LAYER_V0 and field.number == _NET_LAYERS_V1:
                    inner.append(part)
            for part in (part for body in inner for part in read_fields(self._data, body.start, body.end)):
                if part.number == _V0_NAME and part.wire_type == DELIMITED:
                    name = name or _text(self._data, part)
                elif part.number == _V0_BLOBS and part.wire_type == DELIMITED:
                    parts.append(part)
            if len(parts) > _MAX_BLOBS:
                raise WireError(f"{len(parts)} blobs; no layer type has more than {_MAX_BLOBS}")
            blobs = tuple(_read_blob(self._data, part) for part in parts)
        except WireError as error:
            if not name:
                raise
            raise ModelError(f"is damaged: {error}", path=self.path, layer=name) from error
        if not blobs and name in self._layers:
            return
        self._layers.pop(name, None)  # the names stand in the order in which the blobs that count are read
        self._layers[name] = _StoredLayer(field, tuple(inner), blobs)

    def _changed_layer(self, name: str, arrays: Sequence[Array]) -> Change | None:
        if name not in self._layers:
            raise ModelError("is not in the file", path=self.path, layer=name)
        layer = self._layers[name]
        found, wanted = ([array.size for array in each] for each in (arrays, [blob.values for blob in layer.blobs]))
        if found != wanted:
            raise ValueError(f"layer '{name}' has blobs of {wanted} values, got blobs of {found}")
        changes = [
            _within(self._data, blob.field, _changed_data(blob, array))
            for blob, array in zip(layer.blobs, arrays, strict=True)
            if not _same(blob.values, array)
        ]
        for inner in layer.inner:
            own = [change for change in changes if inner.start <= change.start < inner.end]
            if own:
                changes = [change for change in changes if change not in own] + [_within(self._data, inner, own)]
        return _within(self._data, layer.field, changes) if changes else None


def load_caffemodel(path: str | Path) -> Caffemodel:
    """Read a caffemodel without copying float data.

    Raises
    ------
    ModelError
        The file is missing, truncated, or no caffemodel; the layer is named where it is known.
    """
    path = Path(path)
    try:
        data = _read_into_spare(path)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", path=path) from error
    return Caffemodel(path, data.data)


# Memory of the last caffemodel that nobody uses any more, for the next one: fresh memory costs several times as much
# as reading the file, and every trial of a study reads one of the same size.
_spare: deque[Array] = deque(maxlen=1)


def release_file_memory() -> None:
    """Let go of the memory that the next caffemodel would have taken."""
    _spare.clear()


def _read_into_spare(path: Path) -> Array:
    """Read a file into the spare memory if it fits well, else into new memory; NumPy's comes in huge pages."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            memory = _spare.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if not size <= memory.size <= 2 * size:
            memory = np.empty(size, np.uint8)
        if not size:
            return memory
        # When this array and all views of it are gone, the memory is spare. Made from a memoryview because NumPy's
        # views of views refer to the memory at the bottom.
        data = np.frombuffer(memory.data, np.uint8, size)
        weakref.finalize(data, _spare.append, memory)
        filled = 0
        while count := file.readinto(memory.data[filled:size]):
            filled += count
        return data[:filled]


def read_bytes(path: Path) -> bytes:
    """Read a file, or raise ModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", path=path) from error


def network_chunks(name: str, layers: Iterable[tuple[bytes, Sequence[Array]]]) -> Iterator[Chunk]:
    """Encode a network in today's format from its layers' serialized messages and blobs; float data are not copied."""
    yield from delimited(_NET_NAME, [encode_text(name)])
    for message, blobs in layers:
        body: list[Chunk] = [message]
        for blob in blobs:
            dims = delimited(_SHAPE_DIM, [encode_varints(np.array(blob.shape, np.int64))])
            body += delimited(_LAYER_BLOBS[_NET_LAYER], [*delimited(_BLOB_SHAPE, dims), *_data_chunks(blob)])
        yield from delimited(_NET_LAYER, body)


def _data_chunks(blob: Array) -> list[Chunk]:
    if blob.dtype.kind == "f":
        return delimited(_BLOB_DATA, [_raw(blob, np.dtype("<f4"))])
    if blob.dtype == np.int8:
        return delimited(_BLOB_INT8, [_raw(blob, np.dtype(np.int8))])
    return delimited(_INTEGER_FIELDS[blob.dtype.name], [encode_varints(blob.ravel())])


def _raw(blob: Array, dtype: np.dtype[np.generic]) -> memoryview:
    return np.ascontiguousarray(blob, dtype).reshape(-1).view(np.uint8).data


def _changed_data(blob: StoredBlob, array: Array) -> list[Change]:
    """Put the new values where the first old ones stood."""
    first, *others = blob.data or ((blob.field.end, blob.field.end),)
    return [Change(*first, _data_chunks(array)), *(Change(start, end, []) for start, end in others)]


def _within(data: memoryview, outer: Field, changes: list[Change]) -> Change:
    """Turn changes inside a message into one of the whole message, whose length may differ now."""
    return Change(outer.key, outer.end, delimited(outer.number, splice(data, outer.start, outer.end, changes)))


def _same(old: Array, new: Array) -> bool:
    """Tell whether two arrays hold the same bits once they are of the file's type."""
    if old.dtype != new.dtype and (old.dtype.kind, new.dtype.kind) != ("f", "f"):
        return False
    new = np.ascontiguousarray(new, old.dtype).reshape(-1)
    if new.__array_interface__["data"][0] == old.__array_interface__["data"][0]:
        return True
    bits = f"u{old.itemsize}"
    return np.array_equal(old.view(bits), new.view(bits))


def _text(data: memoryview, field: Field) -> str:
    return decode_text(bytes(data[field.start : field.end]))


def _read_blob(data: memoryview, blob: Field) -> StoredBlob:
    """Read one BlobProto; of several kinds of data the widest known one wins, as in ATC's reader."""
    legacy, has_legacy = [0, 0, 0, 0], False
    dims: list[int] = []
    raw_type: int | None = None
    parts: dict[int, list[Array]] = {}
    spans = []
    position = blob.start
    while position < blob.end:
        field = read_field(data, position, blob.end)
        position, number = field.end, field.number
        if number in _BLOB_LEGACY and field.wire_type == VARINT:
            legacy[number - 1], has_legacy = signed(field.value), True
        elif number == _BLOB_SHAPE and field.wire_type == DELIMITED:
            dims += _read_dims(data, field)
        elif number in _BLOB_KINDS:
            if number == _BLOB_INT8 and field.wire_type == VARINT:
                raw_type = field.value
            elif (kind := _UNPACKED.get((number, field.wire_type))) is not None:
                rows, position = fixed_run(data, field, blob.end)
                parts.setdefault(number, []).append(np.ascontiguousarray(rows).view(kind)[:, 0])
            elif field.wire_type == DELIMITED:
                parts.setdefault(number, []).append(np.frombuffer(data[field.start : field.end], np.uint8))
            else:
                continue
            spans.append((field.key, position))
            if len(spans) > _MAX_PIECES:
                raise WireError(f"a blob at byte {blob.start} has its data in more than {_MAX_PIECES} pieces")
    if len(dims) > MAX_AXES:
        raise WireError(f"a blob at byte {blob.start} has a shape of more than {MAX_AXES} axes")
    values = _blob_values({number: _joined(chunks) for number, chunks in parts.items()}, raw_type)
    values.flags.writeable = False
    return StoredBlob(tuple(legacy if has_legacy else dims), has_legacy, values, blob, tuple(spans))


def _read_dims(data: memoryview, shape: Field) -> Iterable[int]:
    """Read a BlobShape; one that is far too long is cut, the caller refuses it."""
    dims: list[int] = []
    for field in read_fields(data, shape.start, shape.end):
        if field.number == _SHAPE_DIM and field.wire_type == VARINT:
            dims.append(signed(field.value))
        elif field.number == _SHAPE_DIM and field.wire_type == DELIMITED:
            if field.end - field.start > 10 * MAX_AXES:
                raise WireError(f"a shape at byte {field.start} has more than {MAX_AXES} axes")
            dims += decode_varints(data[field.start : field.end]).astype(np.int64).tolist()
        if len(dims) > MAX_AXES:
            break
    return dims


def _joined(chunks: list[Array]) -> Array:
    """Return the bytes of all pieces as one array; no copy where there is one."""
    return chunks[0] if len(chunks) == 1 else np.concatenate([chunk.view(np.uint8) for chunk in chunks])


def _blob_values(parts: dict[int, Array], raw_type: int | None) -> Array:
    """Choose and decode the data of a blob: float32 unless it is a deploy model's integer blob."""
    if raw_type is not None and _BLOB_UINT64 in parts and _BLOB_DATA not in parts:
        if raw_type not in _RAW_TYPES:
            raise WireError(f"raw_data of type {raw_type}; only DOUBLE 0, FLOAT 1 and FLOAT16 2 are known")
        return _float32(parts[_BLOB_UINT64], _RAW_TYPES[raw_type])
    if _BLOB_DOUBLE in parts:
        return _float32(parts[_BLOB_DOUBLE], "<f8")
    if _BLOB_INT8 in parts:
        return parts[_BLOB_INT8].view(np.int8)
    if _BLOB_INT32 in parts:
        return decode_varints(parts[_BLOB_INT32].data).astype(np.int64).astype(np.int32)
    if _BLOB_UINT64 in parts:
        return decode_varints(parts[_BLOB_UINT64].data)
    return _float32(parts.get(_BLOB_DATA, np.zeros(0, np.uint8)), "<f4")


def _float32(raw: Array, kind: str) -> Array:
    """Return the numbers in `raw` as float32, a view if they are."""
    if raw.nbytes % np.dtype(kind).itemsize:
        raise WireError(f"{raw.nbytes} bytes of data are no whole number of {np.dtype(kind).name} values")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in Caffe
        return raw.view(kind).astype(np.float32, copy=False)
