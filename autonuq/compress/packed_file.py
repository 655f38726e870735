"""The packed file, `.nuq`: a quantized network in the bytes that its ratio counts, and little else.

**Format**, version 1; numbers are little-endian, CRC-32 is zlib's:

=========  =====================================================================================================
preamble   magic 89 4E 55 51 0D 0A 1A 0A; uint32 version; uint64 length of the file; CRC-32 of these 20 bytes
section    of the network: comment lines that say where it comes from, if any, and the fake-quant prototxt as it is
           written, compressed together (LZMA, its `.lzma` container)
sections   one for every layer with blobs and every layer that a DeQuant layer names, in the network's order; but
           none for a DeQuant layer that names a quantized layer: its blobs follow from that one's factors
=========  =====================================================================================================

A section is a uint64 length, so many bytes, and the CRC-32 of the layer's name in UTF-8 (none for the network), the
length and the bytes. An array is a uint32 count and its numbers. The bytes of a layer's section are:

==========================  ====================================================================================
uint8                       1 for a quantized layer, 0 for any other, which has only the last of these rows
float32, int8               scale and offset of the layer's input
uint8                       axis of the weights that the scales run along; 255: there is one scale
array of float32            scales of the weights
array of uint8              shift N of every scale; empty if there are none
array of ASCII              name of the codec; empty if the layer has no weights of its own
array of uint32             shape of the weights; empty if there are none
array of bytes              the codec's stream of the int8 codes: what the study counted
float32, to the end         the other blobs, one after the other; shapes follow from the prototxt
==========================  ====================================================================================

So no byte is without a checksum, damage is found before anything is decoded, and a section cannot be taken for another
layer's.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import replace_file
from autonuq.errors import ModelError, QuantizationError
from autonuq.graph.files import expected_blobs, parse_graph, prototxt_text
from autonuq.graph.model import Graph, Layer, Shape
from autonuq.graph.passes import dequantization_blobs
from autonuq.graph.record import Factors, checked_factors
from autonuq.quant.codecs import CODEC_NAMES, PLAIN, make_codec
from autonuq.quant.uniform import dequantize
from autonuq.reading import reading

SUFFIX = ".nuq"
MAGIC = b"\x89NUQ\r\n\x1a\n"
VERSION = 1

_PREAMBLE = struct.Struct("<8sIQ")
_LENGTH = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<fbB")
_COMMENT = "# "
_FLOAT, _QUANTIZED = b"\0", b"\1"
_NO_AXIS = 255
Chunk = bytes | memoryview
_FREE_TEXT_BYTES, _TEXT_RATIO = 1 << 18, 64
"""Of a prototxt; thousands of layers of one kind, numbered, come to a ratio of 58 and hold no more than that."""
_FREE_WEIGHTS, _WEIGHTS_PER_BYTE = 1 << 24, 128
"""Of a file: a layer of one level takes no bytes at all, but networks that do their work stay far above 1/16 bit."""
_LZMA_BYTES = 1 << 25  # what the decoder may take; the writer's settings need a third of it


@dataclass(frozen=True)
class PackedLayer:
    """What a packed file holds of a quantized layer, beside its bias.

    Attributes
    ----------
    factors : Factors
        With scale_d.
    codec : str
        One of `CODEC_NAMES`; empty for a layer without weights of its own.
    channel_axis : int or None
        Axis of the weights that scale_w runs along; None when there is one scale.
    stream : bytes
        The codec's bytes.
    """

    factors: Factors
    codec: str = ""
    channel_axis: int | None = None
    stream: bytes = b""


@dataclass(frozen=True)
class PackedNetwork:
    """A packed file that was read.

    Attributes
    ----------
    prototxt : str
        Of the fake-quant network.
    graph : Graph
        The same, with blobs.
    layers : mapping of str to PackedLayer
        By name of every quantized layer, in network order.
    origin : str
        Where it comes from and what it lost, in one line; empty if the file does not say.
    """

    prototxt: str
    graph: Graph
    layers: Mapping[str, PackedLayer]
    origin: str


def write_packed(graph: Graph, layers: Mapping[str, PackedLayer], path: str | Path, origin: str = "") -> Path:
    """Write a packed file, atomically.

    Parameters
    ----------
    graph : Graph
        The fake-quant network: as from `insert_quantizers`, with float32 blobs.
    layers : mapping of str to PackedLayer
        Every quantized layer of the graph; a stream decodes to the codes of the graph's weights.
    path : str or Path
        Its folder must exist.
    origin : str, optional
        Where the network comes from and what it lost.

    Raises
    ------
    QuantizationError
        The file would be so small that `load_packed` takes it for one made to fill the memory.
    """
    path = Path(path)
    text = ("".join(f"{_COMMENT}{line}\n" for line in origin.splitlines()) + prototxt_text(graph)).encode()
    packed_text = lzma.compress(text, lzma.FORMAT_ALONE)
    if len(text) > _most_text(len(packed_text)):
        raise QuantizationError(
            f"a prototxt of {len(text):,} bytes packs into {len(packed_text):,}: too few", path=path
        )
    chunks = _section("", [packed_text])
    named = {_dequantized_layer(layer) for layer in graph.layers}
    for layer in graph.layers:
        if _dequantized_layer(layer) not in layers and (layer.blobs or layer.name in named):
            chunks += _section(layer.name, _layer_chunks(layer, layers.get(layer.name)))
    length = _PREAMBLE.size + _CRC.size + sum(len(chunk) for chunk in chunks)
    _check_weights({layer.name: [blob.shape for blob in layer.blobs] for layer in graph.layers}, length, path)
    preamble = _PREAMBLE.pack(MAGIC, VERSION, length)
    return replace_file(path, [preamble, _CRC.pack(zlib.crc32(preamble)), *chunks])


def _most_text(packed_bytes: int) -> int:
    """Return how long a prototxt may be that was packed into so many bytes."""
    return max(_FREE_TEXT_BYTES, _TEXT_RATIO * packed_bytes)


def _check_weights(shapes: Mapping[str, Sequence[Shape]], file_bytes: int, path: Path) -> None:
    """Refuse a network whose weights no file of that size holds, but one that was made to fill the memory."""
    count = sum(math.prod(shape) for blobs in shapes.values() for shape in blobs)
    if count > (most := _FREE_WEIGHTS + _WEIGHTS_PER_BYTE * file_bytes):
        raise QuantizationError(
            f"{count:,} weights in {file_bytes:,} bytes are more than the {most:,} that so small a file can honestly "
            "hold; take the prototxt and caffemodel instead",
            path=path,
        )


def _dequantized_layer(layer: Layer) -> str | None:
    """Return the name of the layer that a DeQuant layer belongs to."""
    return layer.message.dequant_param.object_layer if layer.type == "DeQuant" else None


def _section(layer: str, chunks: Sequence[Chunk]) -> list[Chunk]:
    length = _LENGTH.pack(sum(len(chunk) for chunk in chunks))
    return [length, *chunks, _checksum(layer, length, *chunks)]


def _checksum(layer: str, *chunks: Chunk) -> bytes:
    value = zlib.crc32(layer.encode())
    for chunk in chunks:
        value = zlib.crc32(chunk, value)
    return _CRC.pack(value)


def _layer_chunks(layer: Layer, packed: PackedLayer | None) -> list[Chunk]:
    if packed is None:
        return [_FLOAT, *_float_chunks(layer.blobs)]
    factors, coded = packed.factors, layer.blobs[:1] if packed.codec else ()
    return [
        _QUANTIZED,
        _HEAD.pack(factors.scale_d, factors.offset_d, _NO_AXIS if packed.channel_axis is None else packed.channel_axis),
        *_array(np.asarray(factors.scale_w, "<f4").tobytes(), 4),
        *_array(bytes(factors.shift_bit)),
        *_array(packed.codec.encode("ascii")),
        *_array(b"".join(np.asarray(blob.shape, "<u4").tobytes() for blob in coded), 4),
        *_array(packed.stream),
        *_float_chunks(layer.blobs[len(coded) :]),
    ]


def _array(data: bytes, item_bytes: int = 1) -> tuple[bytes, bytes]:
    return _COUNT.pack(len(data) // item_bytes), data


def _float_chunks(blobs: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    return (np.ascontiguousarray(blob, "<f4").reshape(-1).view(np.uint8).data for blob in blobs)


def load_packed(path: str | Path) -> PackedNetwork:
    """Read and decode a packed file.

    Raises
    ------
    QuantizationError
        The file cannot be read, is no packed file, of a later version, damaged or truncated; file and layer are named.

    Notes
    -----
    **Cost**: one pass for the checksums, and the codec's decoding.
    """
    path = Path(path)
    reader = _Reader(path)
    packed_text = _decompressed(reader)
    with reading(path, QuantizationError, "holds a prototxt that is no UTF-8 text"):
        text = packed_text.decode()
    try:
        graph = parse_graph(packed_text, path)
        expected = expected_blobs(graph)
    except ModelError as error:
        raise QuantizationError(
            f"holds a network that cannot be used: {error.message}", path=path, layer=error.layer
        ) from error
    _check_weights(expected, reader.size_bytes, path)
    named = {_dequantized_layer(layer) for layer in graph.layers}
    packed: dict[str, PackedLayer] = {}
    layers = []
    for layer in graph.layers:
        blobs: tuple[NDArray[np.float32], ...] = ()
        if (owner := _dequantized_layer(layer)) in packed:
            blobs = dequantization_blobs(packed[owner].factors)
            if [blob.shape for blob in blobs] != expected[layer.name]:
                raise QuantizationError("has factors that do not fit the network", path=path, layer=owner)
        elif expected[layer.name] or layer.name in named:
            blobs = _read_layer(reader.section(layer.name), expected[layer.name], packed)
        layers.append(layer.with_(blobs=blobs))
    reader.finish()
    lines = text.splitlines(keepends=True)
    comments = [
        line.removeprefix(_COMMENT).strip() for line in takewhile(lambda line: line.startswith(_COMMENT), lines)
    ]
    return PackedNetwork("".join(lines[len(comments) :]), graph.with_layers(layers), packed, " ".join(comments))


def _decompressed(reader: _Reader) -> bytes:
    section = reader.section("")
    data = section.rest()
    most = _most_text(len(data))
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_BYTES)
    with reading(section.path, QuantizationError, "cannot be decompressed", what="its prototxt"):
        text = decoder.decompress(data, most + 1)
    if len(text) > most:
        raise section.error(f"its prototxt is longer than the {most:,} bytes that {len(data):,} honestly hold")
    if not decoder.eof or decoder.unused_data:
        raise section.error("its prototxt is incomplete, or followed by something else")
    return text


def _read_layer(
    section: _Section, shapes: Sequence[Shape], packed: dict[str, PackedLayer]
) -> tuple[NDArray[np.float32], ...]:
    """Return a layer's blobs; add it to `packed` if it is quantized."""
    kind = bytes(section.take(1))
    if kind == _FLOAT:
        return section.floats(shapes)
    if kind != _QUANTIZED:
        raise section.error(f"is of an unknown kind, {kind[0]}")
    scale_d, offset_d, axis = _HEAD.unpack(section.take(_HEAD.size))
    scales = section.array("<f4")
    found = PackedLayer(
        checked_factors(
            Factors(
                scale_d=scale_d,
                offset_d=offset_d,
                scale_w=tuple(scales.tolist()),
                offset_w=(0,) * scales.size,
                shift_bit=tuple(section.array("u1").tolist()),
            ),
            section.path,
            section.layer,
        ),
        codec=section.array("u1").tobytes().decode("ascii", "replace"),
        channel_axis=None if axis == _NO_AXIS else axis,
    )
    shape = tuple(section.array("<u4").tolist())
    found = replace(found, stream=section.array("u1").tobytes())
    packed[section.layer] = found
    if not found.codec and not shape and not found.stream:
        return section.floats(shapes)
    if not shapes or shape != shapes[0]:
        raise section.error(f"holds weights of shape {shape}, but the network asks for {shapes[:1]}")
    return (_weights(section, found, shape, scales), *section.floats(shapes[1:]))


def _weights(section: _Section, packed: PackedLayer, shape: Shape, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    axis = packed.channel_axis
    if scales.shape != ((1,) if axis is None else shape[axis : axis + 1]):
        raise section.error(f"has {scales.size} scales along axis {axis} of weights of shape {shape}")
    known = (*CODEC_NAMES, PLAIN)
    if packed.codec not in known:
        raise section.error(f"is coded by '{packed.codec}', but the known codecs are {', '.join(known)}")
    with reading(section.path, QuantizationError, "holds weights that are damaged", layer=section.layer):
        try:
            codes = make_codec(packed.codec, shape).decode(packed.stream, math.prod(shape))
        except QuantizationError as error:
            raise section.error(error.message) from error
    return dequantize(codes.reshape(shape), scales, axis)


class _Reader:
    """The sections of a file, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path, QuantizationError, "cannot be read"):
            self._data = memoryview(path.read_bytes())
        self._position = _PREAMBLE.size + _CRC.size
        if bytes(self._data[: len(MAGIC)]) != MAGIC:
            raise QuantizationError(f"is no packed network ({SUFFIX}), or its first bytes are damaged", path=path)
        if len(self._data) < self._position:
            raise QuantizationError("ends within its first bytes: the file is truncated", path=path)
        preamble = self._data[: _PREAMBLE.size]
        if self._data[_PREAMBLE.size : self._position] != _CRC.pack(zlib.crc32(preamble)):
            raise QuantizationError("the checksum of its first bytes is wrong: the file is damaged", path=path)
        _, version, self._length = _PREAMBLE.unpack(preamble)
        self.size_bytes = len(self._data)
        if version != VERSION:
            raise QuantizationError(f"is of version {version}, but this program reads {VERSION}", path=path)

    def section(self, layer: str) -> _Section:
        """Return the next section, which must be the layer's, once its checksum is right."""
        start = self._position + _LENGTH.size
        end = start + (_LENGTH.unpack_from(self._data, self._position)[0] if start <= len(self._data) else 0)
        self._position = end + _CRC.size
        section = _Section(self.path, layer, self._data[start:end])
        if self._position > len(self._data):
            if len(self._data) < self._length:
                raise section.error(f"the file ends here, after {len(self._data)} of {self._length} bytes: truncated")
            raise section.error("goes beyond the end of the file: the file is damaged")
        if self._data[end : self._position] != _checksum(layer, self._data[start - _LENGTH.size : end]):
            raise section.error("the checksum is wrong: the file is damaged")
        return section

    def finish(self) -> None:
        """Refuse a file that goes on, or is not as long as it says."""
        if not self._position == self._length == len(self._data):
            raise QuantizationError(
                f"has {len(self._data)} bytes instead of {self._position}: the file is damaged", path=self.path
            )


class _Section:
    """The bytes of one layer, read from their beginning to their end."""

    def __init__(self, path: Path, layer: str, data: memoryview) -> None:
        self.path, self.layer = path, layer
        self._data, self._position = data, 0

    def error(self, message: str) -> QuantizationError:
        """Make an error that names the file and the layer; the network's own section has none."""
        return QuantizationError(message, path=self.path, layer=self.layer or None)

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        start, self._position = self._position, self._position + size
        if self._position > len(self._data):
            raise self.error(f"{len(self._data)} bytes are too few for its contents")
        return self._data[start : self._position]

    def rest(self) -> memoryview:
        """Return all bytes that are left."""
        return self.take(len(self._data) - self._position)

    def array(self, dtype: str) -> NDArray[Any]:
        """Return the next array, aligned and in the machine's byte order."""
        (count,) = _COUNT.unpack(self.take(_COUNT.size))
        stored = np.dtype(dtype)
        return np.frombuffer(self.take(count * stored.itemsize), stored).astype(stored.newbyteorder("="))

    def floats(self, shapes: Sequence[Shape]) -> tuple[NDArray[np.float32], ...]:
        """Return the blobs that the rest must be."""
        blobs = tuple(
            np.frombuffer(self.take(4 * math.prod(shape)), "<f4").astype(np.float32).reshape(shape) for shape in shapes
        )
        if left := len(self.rest()):
            raise self.error(f"has {left} bytes more than blobs of shape {', '.join(map(str, shapes))} take")
        return blobs
