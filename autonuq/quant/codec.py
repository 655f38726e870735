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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.ans import MODEL_BITS, decode_ans, encode_ans
from autonuq.quant.codebook import BINS, code_histogram, look_up
from autonuq.quant.contexts import Places, decode_contexts, encode_contexts

_ZERO = 128
_CRC_BYTES = 2
_RICE_BITS = 4  # of the field that holds the Rice parameter
_TAIL_BYTES = 3  # about what the padding and the coder's start cost: its first symbol takes up to 24 bits
_LOG_BITS = 16  # behind the binary point of logarithms that decide on bytes
_LEARNT = 0x2C6E  # added to the checksum of learnt streams; an even number of ones, see `EntropyCodec`
_STEP_BITS = 7  # of the field that holds the step of even levels
_SIZE_BITS = 8  # of the field that holds k - 1
_MAX_HEAD_BYTES = 34  # of a learnt stream: 2 + 8 bits, and 32 bytes of levels
_MANY_WEIGHTS = 1 << 16  # of these a learnt stream, which takes five times as long, must be smaller by
_WORTH = 256  # a part in so many
_FEW_LEVELS = 24  # on more than these it is not tried for so many weights
_MAX_LEARNT_LEVELS = 64  # a weight takes a decision for each level between it and 0


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
class PlainCodec:
    """One byte a weight."""

    name: str = "int8"
    entropy_coded: bool = False

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes of any shape."""
        return _checked(codes).tobytes()

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, shape (count,); QuantizationError if there are not so many."""
        if len(data) != count:
            raise QuantizationError(f"{len(data)} bytes cannot be {count} weights of one byte: damaged")
        return np.frombuffer(data, dtype=np.int8).copy()

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``."""
        return _checked(codes).size

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return the size, exactly, from the count of each code, shape (256,)."""
        return float(histogram.sum())


@dataclass(frozen=True)
class EntropyCodec:
    """A bitstream within a fraction of a percent of first-order entropy, or below it where neighbours tell something.

    Parameters
    ----------
    shape : tuple of int, optional
        Of the layer's weights: (N, C, H, W), (N, K). Without it streams tell nothing by row and column, and those that
        do cannot be decoded.

    Notes
    -----
    **Format**: 2 bytes, the CRC-16 (CCITT) of the number of weights (8 bytes) and all that follows, both little-endian;
    then one of two kinds. In a *learnt* stream the CRC is combined with 0x2C6E by exclusive or. A flipped bit changes
    the CRC in an odd number of places, 0x2C6E has an even number of ones: so no flipped bit makes one kind the other.

    *Counted*:

    ==========================  ===========================================================================
    1 byte                      k - 1
    bits, padded with zeros     the levels, by their rank among all sets of k codes: ceil(log2 C(256, k)) bits;
                                if k > 1: Rice parameter r, 4 bits; k frequencies, Rice coded
    rest                        if k > 1: the words of the ANS coder (`autonuq.quant.ans`), little-endian, without
                                the zero bytes at the end
    ==========================  ===========================================================================

    A level that n weights have is stored as y = round(sqrt(n)), at least 1, and modelled with frequency y**2. The
    square root makes the relative error of a frequency as small as its statistical one: it costs about a quarter of
    a bit per level in all. Neighbouring levels have similar y, so the differences are coded: zigzag to a number z,
    then z >> r ones, a zero, and the r low bits of z. Model frequencies are integers that add up to 2**24: 1 for each
    level and the rest in proportion to y**2, rounded down; the first of the most frequent levels takes what is left.

    *Learnt*, of 2 to 64 levels:

    ==========================  ===========================================================================
    1 bit                       1: weights lie in rows and columns, by the layer's shape; 0: in one column
    1 bit                       1: the levels are even, 0: any
    bits, padded with zeros     if even: step s - 1, 7 bits; number of levels below 0, and above, each in as many
                                bits as 128 // s takes; these, and 0, are the levels, whether they occur or not.
                                If any: k - 1, 8 bits; the levels, by their rank
    rest                        the words of the range coder (`autonuq.quant.contexts`), big-endian, without the zero
                                bytes at the end; its centre is the level nearest to 0, the lower of two
    ==========================  ===========================================================================

    Codes are written as a learnt stream where that takes fewer bytes than the counted one is estimated to, in integers.
    It takes longer, so from 65,537 weights on it is tried with up to 24 levels only, and has to save 1/256. Neither
    platform nor library decides on any rounding.

    **Shapes**: 500 weights on 8 levels, drawn independently, take some 10 bytes besides their entropy, of which 2 are
    the checksum.
    **Cost**: O(n): some 8 ns a weight to encode and to decode a counted stream, three to five times that a learnt one.
    **Source**: format, own design; Rice coding: Rice, JPL 79-22; ranks: the combinatorial number system (Knuth, TAOCP
    4A, 7.2.1.3).
    """

    shape: tuple[int, ...] | None = None
    name: str = "entropy"
    entropy_coded: bool = True

    def encode(self, codes: NDArray[np.int8]) -> bytes:
        """Return the bytes of codes, of the layer's shape if the codec has one."""
        if not self._holds(codes.size):
            raise ValueError(f"A codec for weights of shape {self.shape} got codes of shape {codes.shape}.")
        if codes.size == 0:
            return b""
        histogram = code_histogram(_checked(codes))
        body = self._learnt(codes, histogram)
        if body is not None:
            return _checksum(codes.size, body, _LEARNT) + body
        body = _counted(codes, histogram)
        return _checksum(codes.size, body) + body

    def decode(self, data: bytes, count: int) -> NDArray[np.int8]:
        """Return the codes, shape (count,).

        Raises
        ------
        QuantizationError
            The checksum is wrong, or the bytes are not `count` weights.
        """
        if not self._holds(count):
            raise QuantizationError(f"a layer of shape {self.shape} has not {count} weights")
        if count == 0:
            return _no_codes(data)
        checksum, body = data[:_CRC_BYTES], data[_CRC_BYTES:]
        if body and checksum == _checksum(count, body):
            return _decode_counted(body, count)
        if body and checksum == _checksum(count, body, _LEARNT):
            return self._decode_learnt(body, count)
        raise QuantizationError(f"the checksum of {count} weights is wrong: the data is damaged, or of other weights")

    def size_bytes(self, codes: NDArray[np.int8]) -> int:
        """Return exactly ``len(encode(codes))``, by encoding: what coders write depends on the order."""
        return len(self.encode(codes))

    def estimate_bytes(self, histogram: NDArray[np.int64]) -> float:
        """Return about the size of a counted stream, to a few bytes, from the count of each code, shape (256,)."""
        counts = histogram[histogram > 0].astype(np.float64)
        if counts.size == 0:
            return 0.0
        roots = _roots(histogram)
        squares = roots.astype(np.float64) ** 2
        zigzags = _zigzags(roots)
        side = math.log2(math.comb(BINS, counts.size)) + _RICE_BITS + _rice_lengths(zigzags).min()
        return float(_CRC_BYTES + 1 + (side + np.dot(counts, np.log2(squares.sum() / squares))) / 8 + _TAIL_BYTES)

    def _holds(self, count: int) -> bool:
        return self.shape is None or count == math.prod(self.shape)

    def _places(self, count: int, is_shaped: bool) -> Places:
        if not is_shaped:
            return Places.of_shape((count,))
        if self.shape is None:
            raise QuantizationError("weights that lie in rows and columns cannot be decoded without the layer's shape")
        return Places.of_shape(self.shape)

    def _learnt(self, codes: NDArray[np.int8], histogram: NDArray[np.int64]) -> bytes | None:
        """Return the body of a learnt stream, if it pays."""
        occurring = _levels(histogram)
        is_large = codes.size > _MANY_WEIGHTS
        if not 1 < occurring.size <= (_FEW_LEVELS if is_large else _MAX_LEARNT_LEVELS):
            return None
        levels, description = _described(occurring)
        head = _bytes_of_bits("01"[self.shape is not None] + description)
        counted = _counted_bytes(histogram)
        limit = counted - len(head) - 1 - (counted // _WORTH if is_large else 0)
        places, centre = self._places(codes.size, self.shape is not None), _centre(levels)
        coded = encode_contexts(_indices(codes, levels), levels.size, centre, places, limit) if limit > 0 else None
        return None if coded is None else head + coded

    def _decode_learnt(self, body: bytes, count: int) -> NDArray[np.int8]:
        bits = _Bits(body[:_MAX_HEAD_BYTES])
        try:
            is_shaped = bool(bits.take(1))
            levels, start = _parse_described(bits), bits.used_bytes
        except ValueError as error:
            raise QuantizationError("the side information of a layer's weights is damaged") from error
        numbers = decode_contexts(body[start:], levels.size, _centre(levels), self._places(count, is_shaped))
        return np.asarray(levels[numbers], dtype=np.int8)


CODECS: Mapping[str, Codec] = MappingProxyType({codec.name: codec for codec in (FixedCodec(), EntropyCodec())})
"""The codecs by name."""


def _checksum(count: int, body: bytes, kind: int = 0) -> bytes:
    found = binascii.crc_hqx(body, binascii.crc_hqx(count.to_bytes(8, "little"), 0))
    return (found ^ kind).to_bytes(_CRC_BYTES, "little")


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


def _frequencies(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the model's frequencies; the most frequent level takes the rounding."""
    shared = (1 << MODEL_BITS) - roots.size
    squares = roots * roots
    shares = squares * shared // squares.sum()
    shares[squares.argmax()] += shared - shares.sum()
    return np.asarray(shares + 1)


def _counted(codes: NDArray[np.int8], histogram: NDArray[np.int64]) -> bytes:
    """Return the body of a counted stream."""
    levels, roots = _levels(histogram), _roots(histogram)
    head = bytes([levels.size - 1]) + _side_information(levels, roots)
    if levels.size == 1:
        return head
    words = encode_ans(_indices(codes, levels), _frequencies(roots))
    return head + words.astype("<u4").tobytes().rstrip(b"\0")


def _decode_counted(body: bytes, count: int) -> NDArray[np.int8]:
    levels, roots, start = _parse_side_information(body)
    if levels.size == 1:
        return np.repeat(levels, count)
    stream = body[start:]
    words = np.frombuffer(stream + b"\0" * (-len(stream) % 4), dtype="<u4").astype(np.uint32)
    return np.asarray(levels[decode_ans(words, _frequencies(roots), count)], dtype=np.int8)


def _counted_bytes(histogram: NDArray[np.int64]) -> int:
    """Return the size of a counted stream's body in integers alone, a few bytes too small at most."""
    roots = _roots(histogram)
    counts, frequencies = histogram[histogram > 0].tolist(), _frequencies(roots).tolist()
    costs = [(MODEL_BITS << _LOG_BITS) - _log2(frequency) for frequency in frequencies]
    bits: int = sum(count * cost for count, cost in zip(counts, costs, strict=True)) >> _LOG_BITS
    return 1 + len(_side_information(_levels(histogram), roots)) + bits // 8


def _log2(number: int) -> int:
    """Return the binary logarithm, rounded down, with 16 bits behind the point, by repeated squaring."""
    found: int = number.bit_length() - 1
    mantissa = number << 62 >> found
    for _ in range(_LOG_BITS):
        mantissa = mantissa * mantissa >> 62
        is_over = mantissa >> 63
        found, mantissa = found << 1 | is_over, mantissa >> is_over
    return found


def _centre(levels: NDArray[np.int8]) -> int:
    return int(np.abs(levels.astype(np.int64)).argmin())


def _described(levels: NDArray[np.int8]) -> tuple[NDArray[np.int8], str]:
    """Return the levels of a learnt stream, and the bits that say which they are."""
    step = math.gcd(*levels.tolist())
    below, above = max(0, -int(levels[0]) // step), max(0, int(levels[-1]) // step)
    even = np.arange(-below, above + 1) * step
    bits = f"1{step - 1:0{_STEP_BITS}b}{below:0{_side_bits(step)}b}{above:0{_side_bits(step)}b}"
    any_bits = f"0{levels.size - 1:0{_SIZE_BITS}b}{_rank_bits(levels)}"
    if len(bits) < len(any_bits) and even.size <= _MAX_LEARNT_LEVELS:
        return even.astype(np.int8), bits
    return levels, any_bits


def _side_bits(step: int) -> int:
    return (128 // step).bit_length()


def _parse_described(bits: _Bits) -> NDArray[np.int8]:
    """Undo `_described`."""
    if not bits.take(1):
        size = bits.take(_SIZE_BITS) + 1
        levels = _unrank(bits.take((math.comb(BINS, size) - 1).bit_length()), size)
    else:
        step = bits.take(_STEP_BITS) + 1
        below, above = bits.take(_side_bits(step)), bits.take(_side_bits(step))
        if below * step > 128 or above * step > 127:
            raise ValueError(step)
        levels = (np.arange(-below, above + 1) * step).astype(np.int8)
    if not 1 < levels.size <= _MAX_LEARNT_LEVELS:
        raise ValueError(levels)
    return levels


class _Bits:
    """Bytes read as bits, high bit first."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._position = 0

    def take(self, size: int) -> int:
        """Return the next bits as a number; ValueError if there are none."""
        start, self._position = self._position, self._position + size
        if self._position > len(self._bits):
            raise ValueError(size)
        return int(self._bits[start : self._position] or "0", 2)

    @property
    def used_bytes(self) -> int:
        """Bytes that were read from, the last one whole; ValueError if what is left of it is not zero."""
        end = -(-self._position // 8)
        if "1" in self._bits[self._position : 8 * end]:
            raise ValueError(self._position)
        return end


def _zigzags(roots: NDArray[np.int64]) -> NDArray[np.int64]:
    differences = np.diff(roots, prepend=0)
    return np.where(differences < 0, -2 * differences - 1, 2 * differences)


def _rice_lengths(zigzags: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bits that the numbers take with each Rice parameter."""
    parameters = np.arange(1 << _RICE_BITS)
    return np.asarray(((zigzags >> parameters[:, None]) + 1 + parameters[:, None]).sum(axis=1))


def _side_information(levels: NDArray[np.int8], roots: NDArray[np.int64]) -> bytes:
    bits = _rank_bits(levels)
    if levels.size > 1:
        zigzags = _zigzags(roots)
        parameter = int(_rice_lengths(zigzags).argmin())
        bits += f"{parameter:0{_RICE_BITS}b}" + "".join(_rice(number, parameter) for number in zigzags.tolist())
    return _bytes_of_bits(bits)


def _rank_bits(levels: NDArray[np.int8]) -> str:
    """Return the bits of the levels' rank among all sets of as many codes."""
    places = (levels.astype(np.int64) + _ZERO).tolist()
    rank = sum(math.comb(place, order) for order, place in enumerate(places, start=1))
    size = (math.comb(BINS, levels.size) - 1).bit_length()
    return f"{rank:0{size}b}" if size else ""


def _bytes_of_bits(bits: str) -> bytes:
    """Return bits as bytes, high bit first, padded with zeros."""
    padded = bits + "0" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big") if padded else b""


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
