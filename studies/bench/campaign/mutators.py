"""Ways to damage a file: of any kind, of text, of JSON and TOML, and of zip archives of arrays.

A mutator takes a random generator, a file's bytes, and those of another file of its kind; it returns the damaged bytes.
What it does depends on these alone.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes, bytes], bytes]

MAX_BYTES = 1 << 20
"""No damaged file is larger than this: what small files do is the question."""

BOMB_BYTES = 300 << 20
"""What a bomb unpacks to."""

INTEGERS = (0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 1000, 65535, 65536, 1 << 24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_NUMBERS = (
    *(
        b"0 1 2 3 7 -1 255 256 4096 65536 1000000 2147483647 -2147483648 2147483648 4294967295 9223372036854775807"
    ).split(),
    *(b"18446744073709551616 0.5 -0.0 1e-30 1e38 1e400 -1e400 nan inf -inf 1" + b"0" * 5000).split(),
)
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|[\w.+-]+|[^\s\w]')
_NUMBER = re.compile(rb"[-+]?\d[\d.eE+-]*")


def damaged(rng: Random, data: bytes, other: bytes, mutators: Iterable[Mutator]) -> bytes:
    """Return the data after one or several mutations."""
    ways = tuple(mutators)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(ways)(rng, data, other)[:MAX_BYTES]
    return data


def _place(rng: Random, data: bytes) -> int:
    """Return a position; near the front more often, where structure is denser, and near the end, where zips have it."""
    size = len(data)
    reach = min(size, rng.choice((32, 256, size, size))) or 1
    return size - rng.randrange(reach) - 1 if size and rng.random() < 0.2 else rng.randrange(reach)


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 30, 300, 3000)))


# Any file


def flip_bits(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change some bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40)) if data else 0):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite_run(rng: Random, data: bytes, other: bytes) -> bytes:
    """Overwrite some bytes with one value, or with any."""
    start, end = _span(rng, data)
    run = rng.choice((b"\0", b"\xff", b"\x80", b" ", b"\n")) * (end - start)
    return data[:start] + (run if rng.random() < 0.7 else rng.randbytes(end - start)) + data[end:]


def truncate(rng: Random, data: bytes, other: bytes) -> bytes:
    """Leave out the end."""
    return data[: rng.choice((0, 1, _place(rng, data), len(data) - 1))]


def extend(rng: Random, data: bytes, other: bytes) -> bytes:
    """Add something behind the end, or in front."""
    more = rng.choice((b"\0", b"\n", b"\xff" * 100, data, other, rng.randbytes(50)))
    return data + more if rng.random() < 0.8 else more + data


def splice(rng: Random, data: bytes, other: bytes) -> bytes:
    """Begin as one file and go on as another."""
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def insert_other(rng: Random, data: bytes, other: bytes) -> bytes:
    """Put a piece of another file in."""
    here, (start, end) = _place(rng, data), _span(rng, other)
    return data[:here] + other[start:end] + data[here:]


def delete_chunk(rng: Random, data: bytes, other: bytes) -> bytes:
    """Leave out a piece."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def repeat_chunk(rng: Random, data: bytes, other: bytes) -> bytes:
    """Repeat a piece."""
    start, end = _span(rng, data)
    return data[:start] + data[start:end] * rng.choice((2, 3, 50, 3000)) + data[end:]


def overwrite_integer(rng: Random, data: bytes, other: bytes) -> bytes:
    """Put a number of 1 to 8 bytes in, most often little-endian."""
    size = rng.choice((1, 2, 4, 4, 8))
    value = (rng.choice(INTEGERS) + rng.choice((0, 0, -1, 1))) % (1 << 8 * size)
    start = _place(rng, data) // rng.choice((1, 4)) * rng.choice((1, 4))
    return data[:start] + value.to_bytes(size, rng.choice(("little", "little", "big"))) + data[start + size :]


def overwrite_varint(rng: Random, data: bytes, other: bytes) -> bytes:
    """Put a number in as protobuf and LEB128 spell it, in the place of some bytes or between them."""
    start, value, spelled = _place(rng, data), rng.choice((*INTEGERS, 2**64 - 1)), bytearray()
    while value > 127:
        spelled.append(value & 127 | 128)
        value >>= 7
    spelled.append(value)
    return data[:start] + bytes(spelled) + data[start + rng.choice((0, 1, len(spelled))) :]


BYTES: tuple[Mutator, ...] = (
    *(flip_bits, overwrite_run, truncate, extend, splice, insert_other, delete_chunk, repeat_chunk),
    *(overwrite_integer, overwrite_integer, overwrite_varint),
)

# Text


def change_numbers(rng: Random, data: bytes, other: bytes) -> bytes:
    """Put other numbers in the place of some."""
    found = list(_NUMBER.finditer(data))
    for one in sorted(rng.sample(found, min(len(found), rng.choice((1, 1, 2)))), key=lambda one: -one.start()):
        data = data[: one.start()] + rng.choice(_NUMBERS) + data[one.end() :]
    return data


def change_tokens(rng: Random, data: bytes, other: bytes) -> bytes:
    """Delete, repeat, lengthen or exchange words, strings and signs."""
    found, others = list(_TOKEN.finditer(data)), _TOKEN.findall(other) or [b""]
    for one in sorted(rng.sample(found, min(len(found), rng.choice((1, 1, 2, 4)))), key=lambda one: -one.start()):
        text = one.group()
        long = text[:1] + text[1:-1] * rng.choice((2, 300, 5000)) + text[-1:]
        new = rng.choice((b"", text + b" " + text, rng.choice(found).group(), rng.choice(others), long, b'""'))
        data = data[: one.start()] + new + data[one.end() :]
    return data


def change_lines(rng: Random, data: bytes, other: bytes) -> bytes:
    """Delete, repeat, exchange or import lines."""
    lines, others = data.split(b"\n"), other.split(b"\n")
    here, there = rng.randrange(len(lines)), rng.randrange(len(lines))
    new = rng.choice(([], [lines[here]] * 2, [lines[there]], [lines[here]] * 500, [rng.choice(others), lines[here]]))
    return b"\n".join([*lines[:here], *new, *lines[here + 1 :]])


def nest(rng: Random, data: bytes, other: bytes) -> bytes:
    """Open a bracket many times."""
    opening = rng.choice((b"{", b"[", b"(", b"a {", b'{"a":', b"[[", b"a.", b"-", b'record { key: "a" value {'))
    here = _place(rng, data)
    return data[:here] + opening * rng.choice((2, 100, 1000, 20000)) + data[here:]


def change_encoding(rng: Random, data: bytes, other: bytes) -> bytes:
    """Write the text in another encoding, with a mark in front, or with characters that no text has."""
    text, here = data.decode("utf-8", "replace"), _place(rng, data)
    odd = rng.choice((b"\xff", b"\0", b"\xc3\x28", b"\xed\xa0\x80", b"\x1b[31m", "\u2028\u202e".encode(), b"\r"))
    whole = (b"\xef\xbb\xbf" + data, text.encode("utf-16"), text.encode("utf-32"), data[:here] + odd + data[here:])
    return rng.choice(whole)


TEXT: tuple[Mutator, ...] = (
    *(change_numbers, change_numbers, change_tokens, change_tokens, change_tokens, change_lines, change_lines),
    *(nest, change_encoding),
)

# JSON and TOML: what stays well-formed, but has values of any kind in any place

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 8, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "a", "1", "true", "\0", "../../a", "/", "a\nb", "ä" * 300, "x" * 5000, "conv1", "%s{}", "[bold]"),
    *([], [[]], [1], ["a"], [None], [0.5, 2], ["a", 1], {}, {"a": 1}, {"": {}}, [{}], [[1, 2], [3]], list(range(500))),
)


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [place]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += _places(inner, (*place, key))
    return found


def change_value(rng: Random, document: Any, other: Any = None) -> Any:
    """Return a document of dicts and lists after one value was replaced, removed, renamed or added in it."""
    place = rng.choice(_places(document))
    taken = other
    for key in rng.choice(_places(other)):
        taken = taken[key]
    new = rng.choice((*_VALUES, taken, taken))
    if not place:
        return new if rng.random() < 0.3 else document
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    what = rng.randrange(5)
    if what == 0:
        del holder[place[-1]]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(("a", "", "x" * 3000, f"{place[-1]}x", "\n"))] = holder.pop(place[-1])
    elif what == 2:
        add_to = holder[place[-1]]
        if isinstance(add_to, dict):
            add_to[rng.choice(("a", str(place[-1])))] = new
        elif isinstance(add_to, list):
            add_to.append(new)
    else:
        holder[place[-1]] = new
    return document


def change_json(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change a value of JSON; what is none stays as it is."""
    try:
        document, others = json.loads(data), json.loads(other)
        return json.dumps(change_value(rng, document, others)).encode()
    except (ValueError, RecursionError):
        return data


def change_toml(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change a value of TOML; what is none stays as it is, and what tomllib takes the square of its size for."""
    if data.count(b".") + other.count(b".") > 500:
        return data
    try:
        document, others = tomllib.loads(data.decode()), tomllib.loads(other.decode())
        changed = change_value(rng, document, others)
        if not isinstance(changed, dict):
            return data
        return "".join(f"{json.dumps(key)} = {_as_toml(value)}\n" for key, value in changed.items()).encode()
    except (ValueError, RecursionError):
        return data


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_as_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return "1979-05-27T07:32:00Z" if value is None else json.dumps(value, default=str)


# Zip archives of arrays

_NPY_SHAPES = (
    "()",
    "(0,)",
    "(1,)",
    "(-1,)",
    "(3, 4)",
    "(1000000000,)",
    "(4294967296, 4294967296)",
    "(2, 1e3)",
    "1",
    "(",
    "None",
)
_NPY_KINDS = (
    "|u1",
    "<f4",
    "<f8",
    ">i2",
    "|O",
    "<U9",
    "<M8[s]",
    "|V8",
    "<c16",
    "|b1",
    "<f2",
    "x",
    "",
    "|u1,<f4",
    "<U99999999",
)


def npy(rng: Random, data: bytes) -> bytes:
    """Return an array's file with another header; data that are no such file stay."""
    if data[:6] != b"\x93NUMPY" or len(data) < 10:
        return data
    (length,) = struct.unpack_from("<H", data, 8)
    header, rest = data[10 : 10 + length], data[10 + length :]
    shape, kind = rng.choice(_NPY_SHAPES).encode(), rng.choice(_NPY_KINDS).encode()
    new = rng.choice(
        (
            re.sub(rb"'shape': \([^)]*\)", b"'shape': " + shape, header),
            re.sub(rb"'descr': '[^']*'", b"'descr': '" + kind + b"'", header),
            header.replace(b"False", rng.choice((b"True", b"0", b"None", b"(" * 300))),
            b"{" * rng.choice((1, 90, 2000)) + header,
            header.replace(b"'", b'"""', 1),
            b"[" + header.strip() + b"]",
            rng.randbytes(20) + header[20:],
        )
    )
    version = rng.choice((b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    size = struct.pack("<H" if version == b"\1\0" else "<I", min(len(new), 65535))
    return data[:6] + version + size + new + (rest if rng.random() < 0.8 else pickled())


def pickled() -> bytes:
    """Return a pickle that would run something."""
    return b"cbuiltins\nbreakpoint\n(tR."


def change_members(rng: Random, data: bytes, other: bytes) -> bytes:
    """Rewrite a zip with changed members: headers, names, compression, bombs; what is no zip stays as it is."""
    members = _members(data)
    if not members:
        return data
    name = rng.choice(list(members))
    inner = members[name]
    what = rng.randrange(7)
    if what < 3:
        members[name] = npy(rng, inner)
    elif what == 3:
        members[rng.choice(("a.npy", "images", "x" * 3000, "../../a.npy", "images.npy.npy"))] = members.pop(name)
    elif what == 4 and rng.random() < 0.1:
        return zip_bomb(name)
    elif what == 4:
        members[name] = inner[: rng.choice((0, 6, 8, 10, 60, 130))] + bytes(rng.choice((0, 10, 1000)))
    elif what == 5:
        members |= _members(other)
    else:
        members[name] = damaged(rng, inner, inner, BYTES)
    return _zipped(members, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


def change_zip_fields(rng: Random, data: bytes, other: bytes) -> bytes:
    """Change a field of a zip's headers: flags, method, sizes, offsets, checksum, lengths of names."""
    places = [found.start() for found in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06|PK\x06\x06", data)]
    if not places:
        return data
    start = rng.choice(places) + rng.choice((4, 6, 8, 10, 14, 16, 18, 20, 22, 24, 26, 28, 30, 42))
    value = rng.choice((1, 8, 9, 12, 14, 93, 99, 0xFFFF, 0xFFFFFFFF, 0x800, *INTEGERS)) & 0xFFFFFFFF
    size = 2 if value < 0x10000 and rng.random() < 0.6 else 4
    return data[:start] + value.to_bytes(4, "little")[:size] + data[start + size :]


@cache
def zip_bomb(name: str) -> bytes:
    """Return a small zip whose one member is a large array of zeros; whoever forks children makes it before."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % BOMB_BYTES
    member = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(BOMB_BYTES)
    return _zipped({name: member}, zipfile.ZIP_DEFLATED)


def _members(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                return {}
            return {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # noqa: BLE001 - whatever a damaged zip raises: it is left as it is
        return {}


def _zipped(members: dict[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


ZIP: tuple[Mutator, ...] = (*[change_members] * 6, *[change_zip_fields] * 4)
