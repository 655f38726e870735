"""Lanes of ATC's compressor: bytes to packets of prefix codes and back, over all lanes at once.

A lane is a row of s bytes that is coded on its own: a header of 40 bytes with the dictionary, packets of 64 bits, an
end mark. Every code is a multiple of three bits, a *unit*; a packet holds 21 units and covers at most `window` bytes.
The most frequent byte, rank 0, has no code of its own but run codes. The bits of a code are written into a packet from
bit 0 upwards; the tables here hold codes with their first bit lowest.

Notation, used by every function here:

==========  =============  ============================================================================
L, s                       lanes, and bytes of each
p                          a place: index into the (L, s + 1) bytes, the last of each row being its end
cost        (L (s + 1),)   units that the byte at p adds if coding started at a run's start; 0 inside run codes
U           (L (s + 1),)   units before p: the exclusive sum of `cost`
place       (U.max(),)     last p with U <= u: the inverse of U
rest        (L (s + 1),)   rank-0 bytes from p on, up to `reach`
fresh       (reach + 1,)   units of a run of so many rank-0 bytes
reach                      rank-0 bytes that fill a packet
==========  =============  ============================================================================

A packet that starts at p emits the rest of p's run as if it started there, then codes as `cost` says. So it ends at
``place[U[p + rest] + 21 - fresh[rest]]``, or at the window's or the lane's end. That is a handful of array look-ups
for the next packet of every lane, and the only thing that is sequential.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.atc.ranking import VALUES

HEADER_BYTES = 40
PACKET_BYTES = 8
PIECE_BYTES = 32
"""Lanes are padded to a multiple of this, and interleaved by it."""

UNIT_BITS = 3
PACKET_UNITS = 21
_END_UNITS = 3
_END = 0b111110111  # 111011111, first bit lowest
_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_CHECK_STEPS = 8  # steps between two looks at whether all lanes are done


@dataclass(frozen=True, eq=False)
class CodeTable:
    """The codes of one compression type.

    Attributes
    ----------
    magic : int
        First byte of a header.
    dictionary : int
        Ranks that have a code; other bytes are escaped.
    in_gap : int
        Dictionary entries that stand before the header's check bytes.
    units, codes : ndarray, shape (dictionary,)
        Of each rank; those of rank 0 are not used.
    runs : tuple of (length, units, code)
        Of rank-0 bytes, from the longest.
    period : ndarray of int64
        What the bytes of a long run cost one after another; repeats.
    """

    magic: int
    dictionary: int
    in_gap: int
    units: NDArray[np.int64]
    codes: NDArray[np.int64]
    runs: tuple[tuple[int, int, int], ...]
    period: NDArray[np.int64]

    @property
    def reach(self) -> int:
        """Rank-0 bytes that fill a packet."""
        return int(np.searchsorted(np.cumsum(np.resize(self.period, VALUES)), PACKET_UNITS, side="right"))

    @property
    def fresh(self) -> NDArray[np.int64]:
        """Units of runs of 0 to `reach` rank-0 bytes."""
        return np.concatenate(([0], np.cumsum(np.resize(self.period, self.reach))))

    def units_of(self, ranking: NDArray[np.uint8]) -> NDArray[np.int8]:
        """Return the units of each byte value, shape (256,), given all values by rank."""
        units = np.full(VALUES, 4, dtype=np.int8)
        units[ranking[: self.dictionary]] = self.units
        return units

    def codes_of(self, ranking: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Return the code of each byte value, first bit lowest, shape (256,)."""
        codes = np.array([_reversed(0xF00 | value, 12) for value in range(VALUES)], dtype=np.uint16)
        codes[ranking[: self.dictionary]] = self.codes
        return codes


def _reversed(code: int, bits: int) -> int:
    return int(f"{code:0{bits}b}"[::-1], 2)


def _table(
    magic: int, in_gap: int, short: list[int], six: range, nine: range, runs: list[tuple[int, int, int]], period: str
) -> CodeTable:
    """Build a table from codes as they are read, first bit highest; rank 0 stands for a code that is never used."""
    coded = [(1, 0), *((1, code) for code in short), *((2, code) for code in six), *((3, code) for code in nine)]
    units = np.array([units for units, _ in coded])
    codes = np.array([_reversed(code, UNIT_BITS * length) for length, code in coded])
    flipped = tuple((count, length, _reversed(code, UNIT_BITS * length)) for count, length, code in runs)
    return CodeTable(magic, len(coded), in_gap, units, codes, flipped, np.array([int(digit) for digit in period]))


LOW_SPARSE = _table(0xA8, 2, [2, 3, 4], range(40, 58), range(464, 478), [(2, 1, 1), (1, 1, 0)], "10")
HIGH_SPARSE = _table(
    0x88, 0, [4], range(41, 58), range(464, 479), [(9, 2, 40), (4, 1, 3), (3, 1, 2), (2, 1, 1), (1, 1, 0)], "100010000"
)
TABLES = (LOW_SPARSE, HIGH_SPARSE)


@dataclass(frozen=True, eq=False)
class Packets:
    """Where the packets of lanes start.

    Attributes
    ----------
    starts : ndarray of int64, shape (steps, L)
        Byte of the lane at which its packets start; s where it has no more.
    counts : ndarray of int64, shape (L,)
        Packets of each lane.
    lengths : ndarray of int64, shape (L,)
        Bytes of each coded lane; s + 1 if it does not fit into s bytes.
    last_units : ndarray of int64, shape (L,)
        Units in the last packet.
    """

    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    last_units: NDArray[np.int64]


def find_packets(lanes: NDArray[np.uint8], ranking: NDArray[np.uint8], table: CodeTable, window: int) -> Packets:
    """Cut lanes into packets.

    Parameters
    ----------
    lanes : ndarray of uint8, shape (L, s)
    ranking : ndarray of uint8, shape (256,)
        Byte values by rank.
    table : CodeTable
    window : int
        Bytes that a packet covers at most.

    Returns
    -------
    Packets

    Notes
    -----
    **Cost**: O(L s) for U and its inverse, some 10 ns a byte; then about ten operations over arrays of shape (L,) for
    each packet of the longest lane, at most s / 8.
    **Source**: own derivation, see the module.
    """
    count, size = lanes.shape
    cost, rest = _costs(lanes, ranking, table)
    units = np.zeros(cost.size + 1, dtype=np.int32)
    np.cumsum(cost, out=units[1:])
    place = np.repeat(np.arange(cost.size, dtype=np.int32), cost)
    place = np.concatenate((place, np.full(PACKET_UNITS + 1, cost.size, dtype=np.int32)))
    ends = np.arange(count) * (size + 1) + size
    free = PACKET_UNITS - table.fresh
    span = min(window, table.reach)
    now, history = ends - size, []
    for step in range((size - HEADER_BYTES) // PACKET_BYTES):
        if step % _CHECK_STEPS == 0 and np.array_equal(now, ends):
            break
        history.append(now)
        run = rest.take(now)
        last = place.take(units.take(now + run) + free.take(run))
        now = np.minimum(np.minimum(last, now + span), ends)
    starts = np.array(history)
    counts = (starts < ends).sum(axis=0)
    last_starts = starts[counts - 1, np.arange(count)]
    run = rest[last_starts]
    last_units = table.fresh[run] + units[ends] - units[last_starts + run]
    lengths = _lengths(counts, last_units, now < ends, size)
    return Packets(starts - (ends - size), counts, lengths, last_units)


def _costs(
    lanes: NDArray[np.uint8], ranking: NDArray[np.uint8], table: CodeTable
) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
    """Return `cost` and `rest`; a lane's end costs a unit, which keeps the lanes apart."""
    count, size = lanes.shape
    cost = np.ones((count, size + 1), dtype=np.int8)
    np.take(table.units_of(ranking), lanes, out=cost[:, :size], mode="clip")
    zero = np.zeros((count, size + 1), dtype=bool)
    np.equal(lanes, ranking[0], out=zero[:, :size])
    flat, rest = cost.reshape(-1), np.zeros(zero.size, dtype=np.uint8)
    places = np.flatnonzero(zero)
    before, after = _run_places(places, np.zeros(0, dtype=np.int64))
    flat[places] = np.resize(table.period, size)[before]
    rest[places] = np.minimum(after, table.reach)
    return flat, rest


def _run_places(places: NDArray[np.int64], cuts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, for rising places of rank-0 bytes, how many of the run stand before each, and from it on.

    `cuts` are indices into `places` at which a new run starts although there is no gap.
    """
    is_first = np.ones(places.size + 1, dtype=bool)
    np.not_equal(places[1:], places[:-1] + 1, out=is_first[1:-1])
    is_first[cuts] = True
    firsts = np.flatnonzero(is_first)
    lengths = np.diff(firsts)
    before = np.arange(places.size) - np.repeat(firsts[:-1], lengths)
    return before, np.repeat(lengths, lengths) - before


def _lengths(
    counts: NDArray[np.int64], last_units: NDArray[np.int64], unfinished: NDArray[np.bool_], size: int
) -> NDArray[np.int64]:
    closed = HEADER_BYTES + PACKET_BYTES * (counts - 1) + UNIT_BITS * last_units // 8 + 2
    appended = HEADER_BYTES + PACKET_BYTES * counts
    fits_inside = last_units + _END_UNITS <= PACKET_UNITS
    lengths = np.where(fits_inside, closed, np.where(appended < size, appended + 2, size + 1))
    return np.where(unfinished, size + 1, lengths)


def write_lanes(
    lanes: NDArray[np.uint8], packets: Packets, ranking: NDArray[np.uint8], table: CodeTable, *, window: int, tag: int
) -> NDArray[np.uint8]:
    """Code lanes.

    Parameters
    ----------
    lanes : ndarray of uint8, shape (L, s)
        All of which fit.
    packets : Packets
        Theirs.
    ranking, table, window
        As in `find_packets`.
    tag : int
        Second byte of the headers.

    Returns
    -------
    ndarray of uint8, shape (L, s)
        The coded lanes, padded with zeros.
    """
    count, size = lanes.shape
    words = np.zeros((count, size // PACKET_BYTES), dtype="<u8")
    if count == 0:
        return words.view(np.uint8)
    is_packet = np.arange(len(packets.starts)) < packets.counts[:, None]
    lane, step = np.nonzero(is_packet)
    starts = lane * size + packets.starts[step, lane]
    coded, units = _packet_words(lanes, starts, ranking, table)
    spans = np.diff(starts, append=lanes.size)
    is_last = step == packets.counts[lane] - 1
    has_room = units + _END_UNITS <= PACKET_UNITS
    is_filled = np.where(is_last, ~has_room, spans < window)
    used = (UNIT_BITS * units).astype(np.uint64)
    coded |= np.where(is_filled, _ONES << used, np.uint64(0))
    coded |= np.where(is_last & has_room, np.uint64(_END) << used, np.uint64(0))
    head = HEADER_BYTES // PACKET_BYTES
    words[lane, head + step] = coded
    beyond = lane[is_last & ~has_room]
    words[beyond, head + packets.counts[beyond]] = _END
    coded_lanes = words.view(np.uint8)
    coded_lanes[:, :HEADER_BYTES] = _headers(lanes, ranking, table, tag)
    return coded_lanes


def _packet_words(
    lanes: NDArray[np.uint8], starts: NDArray[np.int64], ranking: NDArray[np.uint8], table: CodeTable
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the codes of each packet in one word, and their units."""
    flat = lanes.reshape(-1)
    codes, units = table.codes_of(ranking).take(flat), table.units_of(ranking).take(flat)
    places = np.flatnonzero(flat == ranking[0])
    cuts = np.searchsorted(places, starts)
    before, after = _run_places(places, cuts[cuts < places.size])
    codes[places], units[places] = _run_codes(before, after, table)
    spans = np.diff(starts, append=flat.size)
    total = np.cumsum(units, dtype=np.int64)
    first = total[starts] - units[starts]
    shifts = total - units - np.repeat(first, spans)
    words = np.add.reduceat(codes.astype(np.uint64) << (UNIT_BITS * shifts).astype(np.uint64), starts)
    return words, np.diff(first, append=total[-1])


def _run_codes(
    before: NDArray[np.int64], after: NDArray[np.int64], table: CodeTable
) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Return code and units of each rank-0 byte of runs; bytes that a code before them covers have none.

    The longest code comes first, as often as it fits; of the others one that is shorter than the second comes last.
    """
    (longest, long_units, long_code), *shorter = table.runs
    inside = before % longest
    left = inside + after  # of the run, from the last multiple of the longest code on
    codes = np.zeros(before.size, dtype=np.uint16)
    units = np.zeros(before.size, dtype=np.int8)
    is_long = (inside == 0) & (left >= longest)
    codes[is_long], units[is_long] = long_code, long_units
    step = shorter[0][0]
    is_short = (left < longest) & (inside % step == 0)
    by_length = np.zeros(step + 1, dtype=np.uint16)
    for length, _, code in shorter:
        by_length[length] = code
    codes[is_short], units[is_short] = by_length[np.minimum(after[is_short], step)], 1
    return codes, units


def _headers(lanes: NDArray[np.uint8], ranking: NDArray[np.uint8], table: CodeTable, tag: int) -> NDArray[np.uint8]:
    headers = np.zeros((len(lanes), HEADER_BYTES), dtype=np.uint8)
    headers[:, 0], headers[:, 1] = table.magic, tag
    headers[:, 2 : 2 + table.in_gap] = ranking[: table.in_gap]
    headers[:, 4] = np.bitwise_xor.reduce(lanes[:, 1::2], axis=1)
    headers[:, 5] = np.bitwise_xor.reduce(lanes[:, ::2], axis=1)
    headers[:, 6:] = ranking[table.in_gap : table.dictionary]
    return headers


def header_dictionary(header: NDArray[np.uint8], table: CodeTable) -> NDArray[np.uint8]:
    """Return the dictionary of a lane's header: its byte values by rank."""
    return np.concatenate((header[2 : 2 + table.in_gap], header[6:HEADER_BYTES]))


def read_lanes(
    coded: NDArray[np.uint8], dictionary: NDArray[np.uint8], table: CodeTable, window: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Decode lanes without any check.

    Parameters
    ----------
    coded : ndarray of uint8, shape (L, s)
        Coded lanes, padded with zeros.
    dictionary : ndarray of uint8
        Byte values by rank.
    table, window
        As in `find_packets`.

    Returns
    -------
    values : ndarray of uint8
        The bytes of all lanes, one after another.
    counts : ndarray of int64, shape (L,)
        How many of them each lane has.
    lengths : ndarray of int64, shape (L,)
        Bytes of each coded lane with its end mark; s + 1 where there is none.

    Notes
    -----
    A packet's bits say where it ends, so all packets are decoded at once, a code of each at a time.

    **Cost**: O(L s), 21 passes over the packets.
    """
    words = np.ascontiguousarray(coded[:, HEADER_BYTES:]).view("<u8").astype(np.uint64).reshape(-1)
    meanings = _meanings(TABLES.index(table))
    symbols = np.zeros((words.size, PACKET_UNITS), dtype=np.uint8)
    counts = np.zeros((words.size, PACKET_UNITS), dtype=np.uint8)
    used = np.zeros(words.size, dtype=np.int64)
    found = np.zeros(words.size, dtype=np.int64)
    ended = np.zeros(words.size, dtype=bool)
    alive = np.arange(words.size)
    for code in range(PACKET_UNITS):
        bits = (words[alive] >> (UNIT_BITS * used[alive]).astype(np.uint64)) & np.uint64(0xFFF)
        units, count, rank, is_end = (column[bits] for column in meanings)
        fits = used[alive] + units <= PACKET_UNITS
        ended[alive[fits & is_end]] = True
        goes_on = fits & ~is_end & (count > 0) & (found[alive] < window)
        alive, units, count, rank = alive[goes_on], units[goes_on], count[goes_on], rank[goes_on]
        if alive.size == 0:
            break
        escaped = rank >= VALUES
        symbols[alive, code] = np.where(escaped, rank - VALUES, dictionary[np.where(escaped, 0, rank)])
        counts[alive, code] = count
        used[alive] += units
        found[alive] += count
    per_lane = ended.reshape(len(coded), -1)
    last = per_lane.argmax(axis=1)
    lengths = (
        HEADER_BYTES + PACKET_BYTES * last + UNIT_BITS * used.reshape(per_lane.shape)[np.arange(last.size), last] // 8
    )
    lengths = np.where(per_lane.any(axis=1), lengths + 2, coded.shape[1] + 1)
    counts.reshape(*per_lane.shape, -1)[np.arange(per_lane.shape[1]) > last[:, None]] = 0
    values = np.repeat(symbols.reshape(-1), counts.reshape(-1))
    return values, counts.reshape(len(coded), -1).sum(axis=1, dtype=np.int64), lengths


@cache
def _meanings(kind: int) -> tuple[NDArray[Any], ...]:
    """Return, for the next 12 bits: units, bytes that are meant, rank (256 + byte if escaped), is it the end mark.

    Bits that are no code mean 0 bytes.
    """
    table = TABLES[kind]
    units = np.zeros(1 << 12, dtype=np.int64)
    count = np.zeros(1 << 12, dtype=np.int64)
    rank = np.zeros(1 << 12, dtype=np.int64)
    is_end = np.zeros(1 << 12, dtype=bool)
    codes = [
        (length, code, 1, place) for place, (length, code) in enumerate(zip(table.units, table.codes, strict=True))
    ]
    codes = codes[1:] + [(length, code, run, 0) for run, length, code in table.runs]
    codes += [(4, _reversed(0xF00 | value, 12), 1, VALUES + value) for value in range(VALUES)]
    for length, code, bytes_meant, meant in codes:
        matching = slice(int(code), None, 1 << int(UNIT_BITS * length))
        units[matching], count[matching], rank[matching] = length, bytes_meant, meant
    matching = slice(_END, None, 1 << (UNIT_BITS * _END_UNITS))
    units[matching], is_end[matching] = _END_UNITS, True
    return units, count, rank, is_end
