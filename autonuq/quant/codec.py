"""Lossless codecs: a layer's int8 codes to bytes and back, with every byte of side information counted.

A codec stores which codes occur (the levels, rising, k of them) and each weight's index among them. The number of
weights is not stored; it is known from the layer's shape. No weights are no bytes.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.codebook import BINS, code_histogram, look_up

_ZERO = 128
_CRC_BYTES = 2
_RICE_BITS = 4  # of the field that holds the Rice parameter
_TAIL_BYTES = 3  # about what the padding and the coder's start cost: its first symbol takes up to 24 bits
_MODEL_BITS = 24  # precision of constriction's default coder
_CODED = 1 << 24  # weights that are coded at a time


class Codec(Protocol):
    """A lossless coder of int8 codes.

    Attributes
    ----------
    name : str
        Key in `CODECS`, and in study files.
    entropy_coded : bool
        Whether rare levels cost less than frequent ones, so that entropy-constrained codebooks pay.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def entropy_coded(self) -> bool: ...  # noqa: D102 - see the class

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes of any shape."""

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, ndarray of int8, shape (count,); QuantizationError if the data cannot be theirs."""

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``."""

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return about that, from the count of each code, shape (256,), without any coding."""


@dataclass(frozen=True)
class FixedCodec:
    """Indices of ceil(log2 k) bits each.

    Notes
    -----
    **Format**: k - 1 in one byte; the k levels as int8, rising; the indices, high bit first, padded with zero bits.
    One level takes no bits a weight. Damage to indices shows only where no such index exists.

    **Cost**: O(n); eight indices become one integer of 64 bits, so all passes run over whole words.
    """

    name: str = "fixed"
    entropy_coded: bool = False

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes of any shape."""
        if codes.size == 0:
            return b""
        levels = _levels(code_histogram(_checked(codes)))
        return bytes([levels.size - 1]) + levels.tobytes() + _pack(_indices(codes, levels), _index_bits(levels.size))

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, shape (count,).

        Raises
        ------
        QuantizationError
            The length is wrong, levels do not rise, an index has no level, or padding is not zero.
        """
        if count == 0:
            return _no_codes(data)
        size = data[0] + 1 if data else 0
        if not data or len(data) != self._size(size, count):
            raise QuantizationError(f"{len(data)} bytes cannot be {count} weights in the fixed codec: damaged")
        levels = np.frombuffer(data, dtype=np.int8, count=size, offset=1)
        if np.any(levels[1:] <= levels[:-1]):
            raise QuantizationError("the levels do not rise: the data is damaged")
        indices = _unpack(data[1 + size :], _index_bits(size), count)
        if indices.max() >= size:
            raise QuantizationError("an index has no level: the data is damaged")
        return np.asarray(levels[indices], dtype=np.int8)

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``, from the number of different codes."""
        return int(self.estimate_bytes(code_histogram(_checked(codes))))

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return the size, exactly, from the count of each code, shape (256,)."""
        count = int(histogram.sum())
        return self._size(int(np.count_nonzero(histogram)), count) if count else 0

    def _size(self, levels: int, count: int) -> int:
        return 1 + levels + -(-count * _index_bits(levels) // 8)


@dataclass(frozen=True)
class EntropyCodec:
    """An ANS bitstream within a fraction of a percent of first-order entropy.

    Notes
    -----
    **Format**:

    ==========================  ===========================================================================
    2 bytes                     CRC-16 (CCITT) of the number of weights (8 bytes) and all that follows; this and
                                that number are little-endian
    1 byte                      k - 1
    bits, padded with zeros     the levels, by their rank among all sets of k codes: ceil(log2 C(256, k)) bits;
                                if k > 1: Rice parameter r, 4 bits; k frequencies, Rice coded
    rest                        if k > 1: the words of constriction's ANS coder, little-endian, without the zero
                                bytes at the end
    ==========================  ===========================================================================

    A level that n weights have is stored as y = round(sqrt(n)), at least 1, and modelled with frequency y**2. The
    square root makes the relative error of a frequency as small as its statistical one: it costs about a quarter of
    a bit per level in all. Neighbouring levels have similar y, so the differences are coded: zigzag to a number z,
    then z >> r ones, a zero, and the r low bits of z. Model frequencies are integers that add up to 2**24, so neither
    platform nor library decides on any rounding.

    **Shapes**: 500 weights on 8 levels take some 14 bytes besides their entropy, of which 2 are the checksum.
    **Cost**: O(n) to encode (about 10 ns a weight) and to decode (20 ns).
    **Source**: format, own design; ANS: Duda, arXiv:1311.2540; Rice coding: Rice, JPL 79-22; ranks: the combinatorial
    number system (Knuth, TAOCP 4A, 7.2.1.3).
    """

    name: str = "entropy"
    entropy_coded: bool = True

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes of any shape."""
        if codes.size == 0:
            return b""
        histogram = code_histogram(_checked(codes))
        levels = _levels(histogram)
        roots = _roots(histogram)
        body = bytes([levels.size - 1]) + _side_information(levels, roots)
        if levels.size > 1:
            coder = constriction.stream.stack.AnsCoder()
            indices, model = _indices(codes, levels), _model(roots)
            for start in reversed(range(0, indices.size, _CODED)):  # the coder takes int32, and the last weight first
                coder.encode_reverse(indices[start : start + _CODED].astype(np.int32), model)
            body += coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        return _checksum(codes.size, body) + body

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, shape (count,).

        Raises
        ------
        QuantizationError
            The checksum is wrong, or the bytes are not `count` weights.
        """
        if count == 0:
            return _no_codes(data)
        body = data[_CRC_BYTES:]
        if not body or data[:_CRC_BYTES] != _checksum(count, body):
            raise QuantizationError(
                f"the checksum of {count} weights is wrong: the data is damaged, or of other weights"
            )
        levels, roots, start = _parse_side_information(body)
        if levels.size == 1:
            return np.repeat(levels, count)
        stream = body[start:]
        words = np.frombuffer(stream + b"\0" * (-len(stream) % 4), dtype="<u4").astype(np.uint32)
        try:
            coder = constriction.stream.stack.AnsCoder(words)
            model, found = _model(roots), np.empty(count, np.int8)
            for start in range(0, count, _CODED):
                part = found[start : start + _CODED]
                part[:] = levels[coder.decode(model, part.size)]
        except (ValueError, AssertionError) as error:
            raise QuantizationError(f"a layer's weights cannot be decoded: {error}") from error
        if not coder.is_empty():
            raise QuantizationError("a layer's weights leave something undecoded: the data is damaged")
        return found

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``, by encoding: the coder's last word depends on the order."""
        return len(self.encode(codes))

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return about the size, to a few bytes, from the count of each code, shape (256,)."""
        counts = histogram[histogram > 0].astype(np.float64)
        if counts.size == 0:
            return 0.0
        roots = _roots(histogram)
        squares = roots.astype(np.float64) ** 2
        zigzags = _zigzags(roots)
        side = math.log2(math.comb(BINS, counts.size)) + _RICE_BITS + _rice_lengths(zigzags).min()
        return float(_CRC_BYTES + 1 + (side + np.dot(counts, np.log2(squares.sum() / squares))) / 8 + _TAIL_BYTES)


CODECS: Mapping[str, Codec] = MappingProxyType({codec.name: codec for codec in (FixedCodec(), EntropyCodec())})
"""The codecs by name."""


def _checksum(count: int, body: bytes) -> bytes:
    return binascii.crc_hqx(body, binascii.crc_hqx(count.to_bytes(8, "little"), 0)).to_bytes(_CRC_BYTES, "little")


def _checked(codes: NDArray[np.int8]) -> NDArray[np.int8]:
    if codes.dtype != np.int8:
        raise TypeError(f"A codec takes codes of dtype int8. Got {codes.dtype} instead.")
    return codes


def _no_codes(data: bytes) -> NDArray[np.int8]:
    if data:
        raise QuantizationError(f"{len(data)} bytes for no weights: the data is damaged")
    return np.empty(0, dtype=np.int8)


def _levels(histogram: NDArray[np.int64]) -> NDArray[np.int8]:
    levels = np.flatnonzero(histogram) - _ZERO
    return levels.astype(np.int8)


def _indices(codes: NDArray[np.int8], levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    table = np.zeros(BINS, dtype=np.uint8)
    table[levels.astype(np.int64) + _ZERO] = np.arange(levels.size)
    return look_up(codes, table).ravel()


def _index_bits(levels: int) -> int:
    return (levels - 1).bit_length()


def _pack(indices: NDArray[np.uint8], bits: int) -> bytes:
    """Concatenate indices of so many bits, high bit first; eight of them make `bits` bytes."""
    count = indices.size
    groups = np.pad(indices, (0, -count % 8)).reshape(-1, 8)
    words = np.zeros(len(groups), dtype=np.uint64)
    for place in range(8):
        words = (words << np.uint64(bits)) | groups[:, place]
    packed = words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - bits :]
    return packed.tobytes()[: -(-count * bits // 8)]


def _unpack(data: bytes, bits: int, count: int) -> NDArray[np.uint8]:
    """Undo `_pack`."""
    groups = -(-count // 8)
    packed = np.frombuffer(data.ljust(groups * bits, b"\0"), dtype=np.uint8).reshape(groups, bits)
    words = np.pad(packed, ((0, 0), (8 - bits, 0))).view(">u8").astype(np.uint64).reshape(-1)
    indices = np.empty((groups, 8), dtype=np.uint8)
    for place in range(8):
        indices[:, place] = (words >> np.uint64(bits * (7 - place))) & np.uint64((1 << bits) - 1)
    flat = indices.reshape(-1)
    if np.any(flat[count:]):
        raise QuantizationError("the padding is not zero: the data is damaged")
    return flat[:count]


def _roots(histogram: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return y of each level that occurs; the square root is correctly rounded everywhere, by IEEE 754."""
    return np.maximum(np.rint(np.sqrt(histogram[histogram > 0])), 1).astype(np.int64)


def _model(roots: NDArray[np.int64]) -> Any:
    """Return the coder's model with integer frequencies; the most frequent level takes the rounding.

    The library gives each of k symbols 1 and shares out the other 2**24 - k in proportion to what it is given. These
    already add up to that, in float64, so the proportion is exactly 1.
    """
    shared = (1 << _MODEL_BITS) - roots.size
    squares = roots * roots
    shares = squares * shared // squares.sum()
    shares[squares.argmax()] += shared - shares.sum()
    return constriction.stream.model.Categorical(shares.astype(np.float64), perfect=False)


def _zigzags(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    differences = np.diff(roots, prepend=0)
    return np.where(differences < 0, -2 * differences - 1, 2 * differences)


def _rice_lengths(zigzags: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bits that the numbers take with each Rice parameter."""
    parameters = np.arange(1 << _RICE_BITS)
    return np.asarray(((zigzags >> parameters[:, None]) + 1 + parameters[:, None]).sum(axis=1))


def _side_information(levels: NDArray[np.int8], roots: NDArray[np.int64]) -> bytes:
    places = (levels.astype(np.int64) + _ZERO).tolist()
    rank = sum(math.comb(place, order) for order, place in enumerate(places, start=1))
    rank_bits = (math.comb(BINS, levels.size) - 1).bit_length()
    bits = f"{rank:0{rank_bits}b}" if rank_bits else ""
    if levels.size > 1:
        zigzags = _zigzags(roots)
        parameter = int(_rice_lengths(zigzags).argmin())
        bits += f"{parameter:0{_RICE_BITS}b}" + "".join(_rice(number, parameter) for number in zigzags.tolist())
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


def _rice(number: int, parameter: int) -> str:
    low = f"{number & ((1 << parameter) - 1):0{parameter}b}" if parameter else ""
    return "1" * (number >> parameter) + "0" + low


def _parse_side_information(body: bytes) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    """Return the levels, their y, and where the coder's words start."""
    size = body[0] + 1
    head = body[1:1024]  # 32 bytes of levels, at most 256 numbers of at most 18 bits
    bits = f"{int.from_bytes(head, 'big'):0{8 * len(head)}b}" if head else ""
    rank_bits = (math.comb(BINS, size) - 1).bit_length()
    try:
        rank = int(bits[:rank_bits], 2) if rank_bits else 0
        levels = _unrank(rank, size)
        roots, end = _parse_roots(bits, rank_bits, size) if size > 1 else (np.ones(1, dtype=np.int64), rank_bits)
    except ValueError as error:
        raise QuantizationError("the side information of a layer's weights is damaged") from error
    return levels, roots, 1 + -(-end // 8)


def _unrank(rank: int, size: int) -> NDArray[np.int8]:
    if rank >= math.comb(BINS, size):
        raise ValueError(rank)
    places, place = [], BINS
    for order in range(size, 0, -1):
        place -= 1
        while math.comb(place, order) > rank:
            place -= 1
        rank -= math.comb(place, order)
        places.append(place)
    return (np.array(places[::-1]) - _ZERO).astype(np.int8)


def _parse_roots(bits: str, start: int, size: int) -> tuple[NDArray[np.int64], int]:
    position = start + _RICE_BITS
    parameter = int(bits[start:position], 2)
    zigzags = np.empty(size, dtype=np.int64)
    for index in range(size):
        stop = bits.index("0", position)
        end = stop + 1 + parameter
        zigzags[index] = (stop - position) << parameter | int(bits[stop:end], 2)
        position = end
    roots = np.cumsum(np.where(zigzags % 2, -(zigzags + 1) // 2, zigzags // 2))
    if np.any(roots < 1):
        raise ValueError(roots)
    return roots, position
