"""The index of ATC's compressor: of each fractal where it is, how long, and whether it is raw.

====  =======  =====  =====================================================================================
mode  engines  unit   index word, 16 bits, little-endian
====  =======  =====  =====================================================================================
A     4        128    bits 0-8 length in units; 14 offset of 256 bytes; 15 coded
B     1        32     bits 0-9 length in units, modulo 1024; 10 its carry; 13-14 offset of 256 bytes; 15 coded
====  =======  =====  =====================================================================================

A *tight* index has 8 bytes per fractal, the word and at byte 4 the place of the stream in units; streams lie back to
back. A loose one has the words only: fractal k stays in its slot at k times `fractal_bytes`, shifted by an offset that
spreads the load over the memory channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.packets import PIECE_BYTES, TABLES, CodeTable

BLOCK_BYTES = 512
"""A fractal is a multiple of it: one 16 x 32 block of int8 weights."""

MAX_FRACTAL_BYTES = 64 * BLOCK_BYTES

_ENGINES = {"A": 4, "B": 1}
ENTRY_BYTES = {True: 8, False: 2}
_SHIFT_BYTES = 256  # of an offset in a loose index
_CHANNELS_B = 4


@dataclass(frozen=True)
class StreamFormat:
    """What the compressor is told; the parameters of `compress`, checked."""

    fractal_bytes: int
    mode: str = "A"
    max_ratio: int = 64
    tight: bool = True
    init_offset: int = 0
    kind: int = 0

    def __post_init__(self) -> None:
        """Refuse what the compressor refuses."""
        check_parameter("mode", self.mode, "'A' or 'B'", self.mode in _ENGINES)
        check_parameter("max_ratio", self.max_ratio, "64 or 32", self.max_ratio in (64, 32))
        check_parameter("kind", self.kind, "0 (low-sparse) or 1 (high-sparse)", self.kind in (0, 1))
        check_parameter("init_offset", self.init_offset, "an int in [0, 2**39)", 0 <= self.init_offset < 1 << 39)
        in_range = isinstance(self.fractal_bytes, (int, np.integer)) and 0 < self.fractal_bytes <= MAX_FRACTAL_BYTES
        rule = f"a multiple of {BLOCK_BYTES} in [{BLOCK_BYTES}, {MAX_FRACTAL_BYTES}]"
        check_parameter("fractal_bytes", self.fractal_bytes, rule, in_range and self.fractal_bytes % BLOCK_BYTES == 0)

    @property
    def engines(self) -> int:
        """Lanes of a fractal."""
        return _ENGINES[self.mode]

    @property
    def unit_bytes(self) -> int:
        """Bytes that the lengths of fractals are multiples of."""
        return PIECE_BYTES * self.engines

    @property
    def table(self) -> CodeTable:
        """The codes."""
        return TABLES[self.kind]


def check_parameter(name: str, value: object, rule: str, holds: bool) -> None:
    """Refuse misuse of a parameter unless the rule holds."""
    if not holds:
        raise ValueError(f"The '{name}' parameter of ATC's compressor must be {rule}. Got {value!r} instead.")


def write_index(
    lengths: NDArray[np.int64], is_coded: NDArray[np.bool_], form: StreamFormat
) -> tuple[NDArray[np.int64], bytes]:
    """Return where each fractal starts in the data, and the index."""
    units = lengths // form.unit_bytes
    words = is_coded.astype(np.int64) << 15
    words |= units if form.mode == "A" else (units & 0x3FF) | (units >= 1024) << 10
    if form.tight:
        places = np.cumsum(lengths) - lengths
        starts = -(-(places + form.init_offset) // form.unit_bytes)
        check_parameter(
            "init_offset", form.init_offset, "small enough for an index of 32 bits", int(starts[-1]) < 1 << 32
        )
        return places, np.stack((words, starts), axis=1).astype("<u4").tobytes()
    shifts = np.array(_shifts_a(lengths, form) if form.mode == "A" else _shifts_b(lengths, form))
    words |= shifts << (14 if form.mode == "A" else 13)
    return np.arange(lengths.size) * form.fractal_bytes + _SHIFT_BYTES * shifts, words.astype("<u2").tobytes()


def _shifts_a(lengths: NDArray[np.int64], form: StreamFormat) -> list[int]:
    """Return the offset of each fractal in its slot: of those with an odd span every other, if there is room."""
    load, shifts = [0, 0], []
    for length in lengths.tolist():
        is_odd = length // _SHIFT_BYTES % 2 == 1
        shift = int(is_odd and length + _SHIFT_BYTES <= form.fractal_bytes and load[0] > load[1])
        load[shift] += is_odd
        shifts.append(shift)
    return shifts


def _shifts_b(lengths: NDArray[np.int64], form: StreamFormat) -> list[int]:
    """Return the offset of each fractal in its slot: to the channel with the least load among those with room."""
    load, shifts = [0] * _CHANNELS_B, []
    for length in lengths.tolist():
        span = -(-length // _SHIFT_BYTES)
        free = form.fractal_bytes // _SHIFT_BYTES - span
        shift = min(range(min(free, _CHANNELS_B - 1) + 1), key=load.__getitem__)
        for channel in range(_CHANNELS_B):
            load[(shift + channel) % _CHANNELS_B] += len(range(channel, span, _CHANNELS_B))
        shifts.append(shift)
    return shifts


def read_index(index: bytes, form: StreamFormat) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return length of each fractal, whether it is coded, and where it starts in the data."""
    entry = ENTRY_BYTES[form.tight]
    if not index or len(index) % entry:
        raise QuantizationError(f"an index of {len(index)} bytes is not made of entries of {entry}: damaged")
    words = np.frombuffer(index, dtype="<u2").reshape(-1, entry // 2)[:, 0].astype(np.int64)
    lengths = (words & (0x1FF if form.mode == "A" else 0x7FF)) * form.unit_bytes
    is_coded = words >> 15 == 1
    shifts = np.zeros_like(words) if form.tight else words >> 14 & 1 if form.mode == "A" else words >> 13 & 3
    slots = np.cumsum(lengths) - lengths if form.tight else np.arange(words.size) * form.fractal_bytes
    wrong = (lengths + _SHIFT_BYTES * shifts > form.fractal_bytes) | (lengths <= 0)
    wrong |= ~is_coded & (lengths != form.fractal_bytes)
    refuse(wrong, "its length in the index cannot be")
    return lengths, is_coded, slots + _SHIFT_BYTES * shifts


def refuse(wrong: NDArray[np.bool_], why: str, first: int = 0) -> None:
    """Refuse data, shape (fractals,) of which are wrong; the first that is, counted from `first` on, is named."""
    if np.any(wrong):
        raise QuantizationError(f"fractal {first + int(np.argmax(wrong))}: {why}: the data is damaged")
