"""Lossless codecs: a layer's int8 codes as bytes, and back.

A layer's bytes start with the levels: their number less one, then the levels themselves, or a bitmap of 256 bits where
that is shorter. `fixed` goes on with ceil(log2 k) bits a weight, `entropy` with the levels' frequencies (a byte each)
and the words of an ANS coder. How many weights there are is known from the layer's shape and not stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import BINS, code_histogram

Codes = NDArray[np.int8]
_BITMAP_BYTES = BINS // 8


class Codec(Protocol):
    """A lossless coder of int8 codes."""

    @property
    def name(self) -> str:
        """What study files call it."""

    def encode(self, codes: Codes) -> bytes:
        """Return the codes' bytes, side information included; any shape, at least one code."""

    def decode(self, data: bytes, count: int) -> Codes:
        """Return the codes, shape (count,); QuantizationError if the bytes are damaged."""

    def size_bytes(self, codes: Codes) -> int:
        """Return exactly len(encode(codes))."""

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return the size from counts, shape (256,), to within a few bytes, without coding anything."""


class FixedCodec:
    """ceil(log2 k) bits a weight."""

    name = "fixed"

    def encode(self, codes: Codes) -> bytes:
        """See `Codec`."""
        levels = _levels(code_histogram(codes))
        bits = _index_bits(len(levels))
        indices = _indices(codes, levels)
        planes = (indices[:, None] >> np.arange(bits - 1, -1, -1)) & 1
        return _encode_levels(levels) + np.packbits(planes.astype(np.uint8)).tobytes()

    def decode(self, data: bytes, count: int) -> Codes:
        """See `Codec`."""
        levels, start = _decode_levels(data)
        bits = _index_bits(len(levels))
        packed = np.frombuffer(data, np.uint8, offset=start)
        if packed.size != -(-count * bits // 8):
            raise QuantizationError(f"{packed.size} bytes of packed weights instead of {-(-count * bits // 8)}")
        planes = np.unpackbits(packed, count=count * bits).reshape(count, bits)
        indices = planes @ (1 << np.arange(bits - 1, -1, -1))
        if bits and indices.max() >= len(levels):
            raise QuantizationError(f"an index exceeds the {len(levels)} levels")
        return levels[indices]

    def size_bytes(self, codes: Codes) -> int:
        """See `Codec`."""
        return int(self.estimate_bytes(code_histogram(codes)))

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """See `Codec`; exact here."""
        levels = _levels(histogram)
        return len(_encode_levels(levels)) + -(-int(np.sum(histogram)) * _index_bits(len(levels)) // 8)


class EntropyCodec:
    """A static ANS coder over the levels' frequencies."""

    name = "entropy"

    def encode(self, codes: Codes) -> bytes:
        """See `Codec`."""
        histogram = code_histogram(codes)
        levels = _levels(histogram)
        head = _encode_levels(levels)
        if len(levels) == 1:
            return head
        frequencies = _encode_frequencies(histogram[levels.astype(int) + 128])
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(_indices(codes, levels).astype(np.int32), _model(frequencies))
        words: NDArray[np.uint32] = coder.get_compressed()
        return head + frequencies.tobytes() + words.astype("<u4").tobytes()

    def decode(self, data: bytes, count: int) -> Codes:
        """See `Codec`."""
        levels, start = _decode_levels(data)
        if len(levels) == 1:
            if len(data) != start:
                raise QuantizationError(f"{len(data) - start} bytes too many")
            return np.repeat(levels, count)
        words = start + len(levels)
        if len(data) < words or (len(data) - words) % 4:
            raise QuantizationError("the coded weights end in the middle of a word")
        frequencies = np.frombuffer(data, np.uint8, len(levels), start)
        try:
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4", offset=words).astype(np.uint32))
            indices: NDArray[np.int32] = coder.decode(_model(frequencies), count)
        except (ValueError, AssertionError) as error:
            raise QuantizationError(f"the coded weights are damaged: {error}") from error
        if not coder.is_empty():
            raise QuantizationError("the coded weights are damaged: something is left behind the last one")
        return levels[indices]

    def size_bytes(self, codes: Codes) -> int:
        """See `Codec`."""
        return len(self.encode(codes))

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """See `Codec`: first-order entropy and side information."""
        counts = histogram[histogram > 0].astype(float)
        bits = float((counts * np.log2(counts.sum() / counts)).sum())
        return len(_encode_levels(_levels(histogram))) + len(counts) + bits / 8


CODECS: Mapping[str, Codec] = MappingProxyType({codec.name: codec for codec in (FixedCodec(), EntropyCodec())})


def _levels(histogram: NDArray[np.int64]) -> Codes:
    found = np.flatnonzero(histogram)
    if not found.size:
        raise QuantizationError("there are no codes to encode")
    return (found - 128).astype(np.int8)


def _indices(codes: Codes, levels: Codes) -> NDArray[np.uint8]:
    """Return each code's index among the levels, shape (n,)."""
    table = np.zeros(BINS, np.uint8)
    table[levels.view(np.uint8)] = np.arange(len(levels), dtype=np.uint8)
    return np.frombuffer(codes.tobytes().translate(table.tobytes()), np.uint8)


def _index_bits(levels: int) -> int:
    return math.ceil(math.log2(levels))


def _encode_levels(levels: Codes) -> bytes:
    head = bytes([len(levels) - 1])
    if len(levels) <= _BITMAP_BYTES:
        return head + levels.tobytes()
    bitmap = np.zeros(BINS, np.uint8)
    bitmap[levels.astype(int) + 128] = 1
    return head + np.packbits(bitmap).tobytes()


def _decode_levels(data: bytes) -> tuple[Codes, int]:
    """Return the levels and the position behind them."""
    count = data[0] + 1 if data else 0
    end = 1 + min(count, _BITMAP_BYTES)
    if not count or len(data) < end:
        raise QuantizationError("the levels are cut off")
    if count <= _BITMAP_BYTES:
        levels = np.frombuffer(data, np.int8, count, 1)
    else:
        bitmap = np.unpackbits(np.frombuffer(data, np.uint8, _BITMAP_BYTES, 1))
        levels = (np.flatnonzero(bitmap) - 128).astype(np.int8)
    if len(levels) != count or (np.diff(levels.astype(int)) <= 0).any():
        raise QuantizationError("the levels are damaged: they must rise and be as many as announced")
    return levels, end


# A frequency in one byte: 4 bits of exponent, 4 of mantissa. The mantissa's step of 1/16 to 1/32 costs less than
# 0.0003 bits a weight; counts are scaled so that the largest has the largest exponent.
_LARGEST = 31 << 15


def _encode_frequencies(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    scaled = np.maximum(counts * _LARGEST // counts.max(), 16)
    exponent = np.floor(np.log2(scaled)).astype(np.int64) - 4
    mantissa = (scaled + (1 << exponent >> 1)) >> exponent  # rounded, 16..32
    exponent, mantissa = np.where(mantissa == 32, [exponent + 1, mantissa // 2], [exponent, mantissa])
    code: NDArray[np.uint8] = np.minimum(exponent << 4 | mantissa - 16, 255).astype(np.uint8)
    return code


def _model(frequencies: NDArray[np.uint8]) -> constriction.stream.model.Categorical:
    """Make the coder's model; the probabilities are quotients of integers and so the same on every machine."""
    weights = (16 + (frequencies & 15).astype(np.int64)) << (frequencies >> 4).astype(np.int64)
    return constriction.stream.model.Categorical(weights / weights.sum(), perfect=False)
