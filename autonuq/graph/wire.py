"""Protobuf's wire format, read in place and written without copies.

A caffemodel is a few kilobytes of structure around megabytes of numbers. A generated protobuf class would copy
the numbers at least once; here the structure is walked and the numbers stay views of the file's bytes.

Source: the public encoding specification of Protocol Buffers (varint, fixed32, fixed64, length-delimited).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
_GROUPS = (3, 4)
_MAX_FIELD = 2**29 - 1
_DECODED_AT_ONCE = 2**16  # bytes of packed numbers; keeps the memory for their intermediate forms small

Chunk = bytes | memoryview


class WireError(ValueError):
    """The bytes are not what the wire format demands; `args[0]` says where."""


class Field(NamedTuple):
    """One field of a message.

    Attributes
    ----------
    number, wire_type : int
    key : int
        Position of the field's key.
    start, end : int
        Positions of its value; `value` holds it for varints.
    value : int
    """

    number: int
    wire_type: int
    key: int
    start: int
    end: int
    value: int


class Change(NamedTuple):
    """What to put in the place of the bytes from `start` to `end`."""

    start: int
    end: int
    chunks: Sequence[Chunk]


def read_varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return the varint at `position` and the position behind it."""
    result = shift = 0
    while position < end:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise WireError(f"a number of more than 10 bytes at byte {position}")
    raise WireError(f"the data end inside a number at byte {end}")


def read_field(data: memoryview, position: int, end: int) -> Field:
    """Return the field whose key is at `position`; its value must end at or before `end`."""
    key, start = read_varint(data, position, end)
    number, wire_type, value = key >> 3, key & 7, 0
    if not 1 <= number <= _MAX_FIELD:
        raise WireError(f"field number {number} at byte {position}")
    if wire_type == VARINT:
        value, stop = read_varint(data, start, end)
    elif wire_type == DELIMITED:
        length, start = read_varint(data, start, end)
        stop = start + length
    elif wire_type in (FIXED32, FIXED64):
        stop = start + (4 if wire_type == FIXED32 else 8)
    else:
        kind = "a group, which no model file has" if wire_type in _GROUPS else f"wire type {wire_type}"
        raise WireError(f"{kind}, at byte {position}")
    if stop > end:
        raise WireError(f"field {number} at byte {position} promises {stop - end} bytes more than there are")
    return Field(number, wire_type, position, start, stop, value)


def read_fields(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message between `start` and `end`."""
    end = len(data) if end is None else end
    while start < end:
        field = read_field(data, start, end)
        yield field
        start = field.end


def fixed_run(data: memoryview, field: Field, end: int) -> tuple[NDArray[np.uint8], int]:
    """Return the raw values of a run of equal unpacked fixed-size fields, and the position behind the run.

    Parameters
    ----------
    field : Field
        First of the run, FIXED32 or FIXED64.

    Returns
    -------
    ndarray of uint8, shape (count, 4 or 8)
        A view with gaps (the keys) between its rows.
    int
        Position of the first field that is not part of the run.

    Notes
    -----
    **Cost**: O(run), whatever lies behind it: keys are compared in blocks that grow. Old files hold every weight in
    a field of its own.
    """
    width, key = field.end - field.key, field.start - field.key
    cells = np.frombuffer(data, np.uint8, count=(end - field.key) // width * width, offset=field.key)
    cells = cells.reshape(-1, width)
    count, block = 1, 16
    while count < len(cells):
        other = np.flatnonzero((cells[count : count + block, :key] != cells[0, :key]).any(axis=1))
        if other.size:
            count += int(other[0])
            break
        count, block = min(count + block, len(cells)), 2 * block
    return cells[:count, key:], field.key + count * width


def decode_varints(data: memoryview) -> NDArray[np.uint64]:
    """Decode packed varints, shape (count,).

    Notes
    -----
    **Cost**: one vectorized pass; besides the result, memory of constant size and one byte for each byte.
    """
    raw = np.frombuffer(data, np.uint8)
    if not raw.size:
        return np.zeros(0, np.uint64)
    last = raw < 0x80
    if not last[-1]:
        raise WireError("packed numbers end in the middle of one")
    result = np.empty(np.count_nonzero(last), np.uint64)
    start = count = 0
    while start < raw.size:
        ends = np.flatnonzero(last[start : start + _DECODED_AT_ONCE])
        if not ends.size:
            raise WireError("a packed number has more than 10 bytes")
        values = _decode_whole(raw[start : start + ends[-1] + 1], ends)
        result[count : count + ends.size] = values
        start, count = start + int(ends[-1]) + 1, count + ends.size
    return result


def _decode_whole(raw: NDArray[np.uint8], ends: NDArray[np.intp]) -> NDArray[np.uint64]:
    """Decode varints whose last bytes are at `ends`."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 9:
        raise WireError("a packed number has more than 10 bytes")
    shift = 7 * (np.arange(raw.size) - np.repeat(starts, ends - starts + 1))
    parts = (raw & 0x7F).astype(np.uint64) << shift.astype(np.uint64)
    return np.asarray(np.bitwise_or.reduceat(parts, starts), np.uint64)


def signed(value: int) -> int:
    """Read a varint as the two's complement of 64 bits that it is for int32 and int64 fields."""
    return (value & (2**64 - 1) ^ 2**63) - 2**63


def encode_varints(values: NDArray[np.integer]) -> bytes:
    """Encode integers as packed varints; negative ones as their 64-bit two's complement."""
    rest = values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
    shift = np.arange(10, dtype=np.uint64) * np.uint64(7)
    groups = (rest[:, None] >> shift) & np.uint64(0x7F)
    length = np.maximum(1, 10 - (groups[:, ::-1] != 0).argmax(axis=1))
    length[~groups.any(axis=1)] = 1
    column = np.arange(10)
    groups[column < length[:, None] - 1] |= np.uint64(0x80)
    return bytes(groups[column < length[:, None]].astype(np.uint8).data)


def varint(value: int) -> bytes:
    """Encode one unsigned integer."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def splice(data: memoryview, start: int, end: int, changes: Iterable[Change]) -> list[Chunk]:
    """Return the bytes from `start` to `end` with some changed, as chunks: what stays is not copied."""
    chunks: list[Chunk] = []
    for change in sorted(changes, key=lambda change: change.start):
        chunks += [data[start : change.start], *change.chunks]
        start = change.end
    return [*chunks, data[start:end]]


def delimited(number: int, chunks: Iterable[Chunk]) -> list[Chunk]:
    """Return the chunks of a length-delimited field around the given chunks, none of them copied."""
    body = list(chunks)
    return [varint(number << 3 | DELIMITED), varint(sum(len(chunk) for chunk in body)), *body]
