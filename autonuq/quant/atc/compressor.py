"""The lossless weight compressor of Ascend's offline compiler ATC: its format, written and read to the byte.

The device's bytes (`layout`) are ranked by how often they occur (`ranking`). They are cut into *fractals* of up
to 32 KiB; a fractal is dealt to the lanes of E engines in blocks of `max_ratio` bytes; each lane is coded on its own
(`packets`), padded to the longest of them rounded up to 32 bytes, and the lanes are interleaved by 32 bytes. A
fractal with a lane that does not fit into its own size is stored raw. An index (`index`) says where fractals are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.index import (
    BLOCK_BYTES,
    ENTRY_BYTES,
    StreamFormat,
    check_parameter,
    read_index,
    refuse,
    write_index,
)
from autonuq.quant.atc.layout import device_layout
from autonuq.quant.atc.packets import PIECE_BYTES, Packets, find_packets, header_dictionary, read_lanes, write_lanes
from autonuq.quant.atc.ranking import VALUES, rank_bytes
from autonuq.quant.codebook import code_histogram

__all__ = ["Compressed", "StreamFormat", "compress", "compressed_bytes", "decompress", "device_layout", "find_index"]

_PORTION_BYTES = 1 << 22  # that is worked on at a time: bounds the memory, and stays near the caches


@dataclass(frozen=True)
class Compressed:
    """Compressed bytes, and what is needed to read them.

    Attributes
    ----------
    data : bytes
        The streams of all fractals; of a loose format as many bytes as were compressed, with zeros in the gaps.
    index : bytes
        8 bytes per fractal if tight, else 2.
    format : StreamFormat
        How they were made.
    """

    data: bytes
    index: bytes
    format: StreamFormat

    @property
    def fractal_sizes(self) -> list[int]:
        """Bytes of each fractal; QuantizationError if the index is no index."""
        lengths, _, _ = read_index(self.index, self.format)
        return [int(length) for length in lengths]

    @property
    def size_bytes(self) -> int:
        """Bytes of all fractals, gaps and index not counted: the size that ATC goes by."""
        return sum(self.fractal_sizes)


def compress(
    data: bytes | NDArray[Any],
    *,
    mode: str = "A",
    max_ratio: int = 64,
    tight: bool = True,
    init_offset: int = 0,
    kind: int = 0,
    fractal_bytes: int,
) -> Compressed:
    """Compress bytes as ATC does.

    Parameters
    ----------
    data : bytes-like or ndarray of int8 or uint8, any shape
        A positive multiple of `fractal_bytes`, in the order of the device (`device_layout`).
    mode : {"A", "B"}
        Four engines, or one.
    max_ratio : {64, 32}
        Bytes that a lane is dealt at a time, and that a packet of 8 bytes covers at most.
    tight : bool
        Whether streams lie back to back.
    init_offset : int
        Bytes that the places in a tight index start at.
    kind : {0, 1}
        Code table for low-sparse or for high-sparse weights. ATC's own is 0.
    fractal_bytes : int
        A multiple of 512, at most 32,768.

    Returns
    -------
    Compressed

    Raises
    ------
    ValueError
        A parameter is out of range, or `data` is empty or no multiple of `fractal_bytes`.

    Notes
    -----
    **Shapes**: 294,912 bytes in fractals of 32,768 are 9 fractals of 4 lanes of 8,192 bytes.
    **Cost**: O(n), some 50 to 100 nanoseconds a byte.

    Examples
    --------
    >>> codes = np.repeat(np.array([-3, 0, 5], np.int8), 512)
    >>> compressed = compress(codes, fractal_bytes=512)
    >>> len(compressed.data), len(compressed.index), compressed.fractal_sizes
    (1152, 24, [384, 384, 384])
    >>> decompress(compressed) == codes.tobytes()
    True
    """
    form = StreamFormat(fractal_bytes, mode, max_ratio, tight, init_offset, kind)
    values = _checked(data, form)
    ranking = _ranking(values)
    lengths, is_coded, rows = [], [], []
    for lanes in _portions(values, form):
        packets, sizes, coded = _sizes(lanes, ranking, form)
        rows.append(_assemble(lanes, packets, coded, ranking, form)[_inside(sizes, form)])
        lengths.append(sizes)
        is_coded.append(coded)
    streams = np.concatenate(rows)
    sizes, coded = np.concatenate(lengths), np.concatenate(is_coded)
    places, index = write_index(sizes, coded, form)
    if not tight:
        spread = np.zeros(values.size, dtype=np.uint8)
        spread[_span_places(places, sizes)] = streams
        streams = spread
    return Compressed(streams.tobytes(), index, form)


def compressed_bytes(
    data: bytes | NDArray[Any], *, mode: str = "A", max_ratio: int = 64, kind: int = 0, fractal_bytes: int
) -> int:
    """Return the `size_bytes` of what `compress` makes of data, without making it.

    The parameters are those of `compress`; the others do not matter.

    Notes
    -----
    **Cost**: O(n), some 20 nanoseconds a byte; 150 MB of memory at most.
    """
    form = StreamFormat(fractal_bytes, mode, max_ratio, kind=kind)
    values = _checked(data, form)
    ranking = _ranking(values)
    return sum(int(_sizes(lanes, ranking, form)[1].sum()) for lanes in _portions(values, form))


def decompress(
    compressed: Compressed,
    *,
    mode: str | None = None,
    max_ratio: int | None = None,
    tight: bool | None = None,
    init_offset: int | None = None,
    kind: int | None = None,
    fractal_bytes: int | None = None,
) -> bytes:
    """Return the bytes that were compressed.

    Parameters
    ----------
    compressed : Compressed
        From `compress`, or built from bytes of a file.
    mode, max_ratio, tight, init_offset, kind, fractal_bytes : optional
        Those of `compress`: what the format must be, where the caller knows it.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        The format is another one than the caller demands.
    QuantizationError
        Data or index are not what `compress` makes of any bytes; the first fractal that is wrong is named.

    Notes
    -----
    What was decoded is compressed again and must give the same data and index. The format has no checksum; damage
    that makes valid data of other bytes, as in a raw fractal, cannot be seen.

    **Cost**: O(n), some three times that of `compress`.
    """
    form = compressed.format
    demanded = {"mode": mode, "max_ratio": max_ratio, "tight": tight, "init_offset": init_offset, "kind": kind}
    for name, value in {**demanded, "fractal_bytes": fractal_bytes}.items():
        check_parameter(
            name, value, f"{getattr(form, name)!r}, as the data's", value is None or value == getattr(form, name)
        )
    lengths, is_coded, places = read_index(compressed.index, form)
    streams = np.frombuffer(compressed.data, dtype=np.uint8)
    ends = places + lengths
    expected = int(ends[-1]) if form.tight else lengths.size * form.fractal_bytes
    if streams.size != expected:
        cut = int(np.argmax(ends > streams.size)) if np.any(ends > streams.size) else lengths.size - 1
        raise QuantizationError(f"fractal {cut}: {streams.size} bytes of data where the index has {expected}")
    rows = np.zeros((lengths.size, form.fractal_bytes), dtype=np.uint8)
    rows[_inside(lengths, form)] = streams[_span_places(places, lengths)]
    values = _read_rows(rows, lengths, is_coded, form).tobytes()
    _compare(compressed, compress(values, **_parameters(form)), places)
    return values


def find_index(data: bytes, fractals: int, form: StreamFormat) -> bytes:
    """Rebuild the index of tight data that came without one.

    Parameters
    ----------
    data : bytes
        The streams, back to back.
    fractals : int
        How many.
    form : StreamFormat
        How they were made; tight.

    Returns
    -------
    bytes

    Raises
    ------
    QuantizationError
        The data does not hold so many fractals.

    Notes
    -----
    A fractal is coded if all of its lanes start like a header and come to an end mark. A raw one that looks like that
    by chance makes `decompress` refuse the data.

    **Cost**: O(n), fractal by fractal, some 10 ms for one of 32 KiB.
    """
    streams = np.frombuffer(data, dtype=np.uint8)
    lengths, is_coded, place = np.zeros(fractals, dtype=np.int64), np.zeros(fractals, dtype=bool), 0
    for fractal in range(fractals):
        row = np.zeros(form.fractal_bytes, dtype=np.uint8)
        part = streams[place : place + form.fractal_bytes]
        row[: part.size] = part
        longest = _longest_lane(row, form)
        is_coded[fractal] = longest <= form.fractal_bytes // form.engines
        coded = -(-longest // PIECE_BYTES) * form.unit_bytes
        lengths[fractal] = coded if is_coded[fractal] else form.fractal_bytes
        place += int(lengths[fractal])
        if place > streams.size:
            raise QuantizationError(f"fractal {fractal}: the data ends within it: truncated or damaged")
    if place != streams.size:
        raise QuantizationError(f"{streams.size - place} bytes follow fractal {fractals - 1}, the last: damaged")
    return write_index(lengths, is_coded, form)[1]


def _longest_lane(row: NDArray[np.uint8], form: StreamFormat) -> int:
    """Return the bytes of a fractal's longest coded lane; more than a lane has if one of them is none."""
    lanes = row.reshape(-1, form.engines, PIECE_BYTES).swapaxes(0, 1).reshape(form.engines, -1)
    magic = form.table.magic, form.fractal_bytes // BLOCK_BYTES
    if np.any(lanes[:, :2] != magic):
        return lanes.shape[1] + 1
    lanes = np.ascontiguousarray(lanes)
    _, _, lengths = read_lanes(lanes, header_dictionary(lanes[0], form.table), form.table, form.max_ratio)
    return int(lengths.max())


def _checked(data: bytes | NDArray[Any], form: StreamFormat) -> NDArray[np.uint8]:
    """Return the bytes of data, shape (n,)."""
    if isinstance(data, np.ndarray) and data.dtype.itemsize != 1:
        raise TypeError(f"ATC's compressor takes bytes, or arrays of int8 or uint8. Got {data.dtype} instead.")
    array = np.ascontiguousarray(data).reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else None
    values = np.frombuffer(data, dtype=np.uint8) if array is None else array
    rule = f"a positive multiple of fractal_bytes, {form.fractal_bytes}"
    check_parameter("data", f"{values.size} bytes", rule, values.size > 0 and values.size % form.fractal_bytes == 0)
    return values


def _parameters(form: StreamFormat) -> dict[str, Any]:
    return {name: getattr(form, name) for name in form.__dataclass_fields__}


def _ranking(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return rank_bytes(np.roll(code_histogram(values.view(np.int8)), -VALUES // 2))


def _portions(values: NDArray[np.uint8], form: StreamFormat) -> Iterator[NDArray[np.uint8]]:
    """Yield the lanes of some fractals at a time, shape (L, s), the lanes of a fractal one after another."""
    fractals = values.reshape(-1, form.fractal_bytes)
    rows = max(1, _PORTION_BYTES // form.fractal_bytes)
    for start in range(0, len(fractals), rows):
        dealt = fractals[start : start + rows].reshape(-1, *_dealt(form))
        yield np.ascontiguousarray(dealt.swapaxes(1, 2)).reshape(-1, form.fractal_bytes // form.engines)


def _dealt(form: StreamFormat) -> tuple[int, int, int]:
    """Return the shape of a fractal as it is dealt: rounds, engines, bytes."""
    return form.fractal_bytes // form.engines // form.max_ratio, form.engines, form.max_ratio


def _sizes(
    lanes: NDArray[np.uint8], ranking: NDArray[np.uint8], form: StreamFormat
) -> tuple[Packets, NDArray[np.int64], NDArray[np.bool_]]:
    """Return the packets of lanes, and the length of each fractal and whether it is coded."""
    packets = find_packets(lanes, ranking, form.table, form.max_ratio)
    longest = packets.lengths.reshape(-1, form.engines).max(axis=1)
    is_coded = longest <= lanes.shape[1]
    coded = -(-longest // PIECE_BYTES) * form.unit_bytes
    return packets, np.where(is_coded, coded, form.fractal_bytes), is_coded


def _assemble(
    lanes: NDArray[np.uint8],
    packets: Packets,
    is_coded: NDArray[np.bool_],
    ranking: NDArray[np.uint8],
    form: StreamFormat,
) -> NDArray[np.uint8]:
    """Return each fractal, interleaved, in a row of its source's length; what is beyond its own length is zero."""
    written = lanes.copy()
    chosen = np.repeat(is_coded, form.engines)
    own = Packets(
        packets.starts[:, chosen], packets.counts[chosen], packets.lengths[chosen], packets.last_units[chosen]
    )
    tag = form.fractal_bytes // BLOCK_BYTES
    written[chosen] = write_lanes(lanes[chosen], own, ranking, form.table, window=form.max_ratio, tag=tag)
    pieces = written.reshape(is_coded.size, form.engines, -1, PIECE_BYTES)
    return np.ascontiguousarray(pieces.swapaxes(1, 2)).reshape(-1, form.fractal_bytes)


def _inside(lengths: NDArray[np.int64], form: StreamFormat) -> NDArray[np.bool_]:
    return np.asarray(np.arange(form.fractal_bytes) < lengths[:, None])


def _span_places(places: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of spans of data, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum())) + np.repeat(places - before, lengths))


def _read_rows(
    rows: NDArray[np.uint8], lengths: NDArray[np.int64], is_coded: NDArray[np.bool_], form: StreamFormat
) -> NDArray[np.uint8]:
    """Return the source of fractals that lie in rows, (n,)."""
    values = np.empty_like(rows)
    dictionary = None
    step = max(1, _PORTION_BYTES // form.fractal_bytes)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        coded = is_coded[part]
        pieces = rows[part].reshape(coded.size, -1, form.engines, PIECE_BYTES).swapaxes(1, 2)
        lanes = pieces.reshape(coded.size, form.engines, -1).copy()
        if np.any(coded):
            if dictionary is None:
                dictionary = header_dictionary(lanes[np.argmax(coded), 0], form.table)
            lanes[coded] = _read_lanes(lanes, coded, dictionary, form, start)
        dealt = lanes.reshape(coded.size, form.engines, -1, form.max_ratio).swapaxes(1, 2)
        values[part] = dealt.reshape(coded.size, -1)
    return values.reshape(-1)


def _read_lanes(
    lanes: NDArray[np.uint8], is_coded: NDArray[np.bool_], dictionary: NDArray[np.uint8], form: StreamFormat, first: int
) -> NDArray[np.uint8]:
    own = lanes[is_coded]
    values, counts, _ = read_lanes(own.reshape(-1, own.shape[2]), dictionary, form.table, form.max_ratio)
    wrong = np.zeros(is_coded.size, dtype=bool)
    wrong[is_coded] = np.any(counts.reshape(-1, form.engines) != own.shape[2], axis=1)
    refuse(wrong, "its packets do not give its bytes", first)
    return values.reshape(own.shape)


def _compare(given: Compressed, expected: Compressed, places: NDArray[np.int64]) -> None:
    """Refuse data that is not what its own contents compress to."""
    for name, entry in (("data", 0), ("index", ENTRY_BYTES[given.format.tight])):
        own, other = (np.frombuffer(getattr(side, name), dtype=np.uint8) for side in (given, expected))
        same = min(own.size, other.size)
        differs = np.append(own[:same] != other[:same], own.size != other.size)
        if np.any(differs):
            place = int(np.argmax(differs))
            fractal = place // entry if entry else int(np.searchsorted(places, place, side="right")) - 1
            where = f"byte {place} of the {name}"
            raise QuantizationError(f"fractal {max(fractal, 0)}, {where}: not what the weights compress to: damaged")
