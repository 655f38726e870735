"""Load mutated prototxt and caffemodel files: each must give a ModelError that names its file, or load.

    python studies/bench/fuzz_files.py --runs 100000 --seed 0

A run mutates the text, the weights or both of one pair, loads it in this process, asks what can be quantized, folds
it, and writes the weights back, which must give the same bytes. It fails if anything but a ModelError is raised, if it
needs more than two seconds of CPU time, or if the process's peak memory grows by more than eight times the files and
16 MB. Failing pairs are kept in a folder; run `i` of a seed is always the same (`--only i`).
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.passes import capabilities, fold_batch_norm
from autonuq.graph.wire import DELIMITED, VARINT, Change, Field, WireError, delimited, read_fields, splice, varint

ROOT = Path(__file__).parents[2]
LIMIT_S = 2.0
ALLOWED_BYTES, ALLOWED_TIMES = 16 << 20, 8
MAX_BYTES = 4 << 20  # of a mutated file
NUMBERS = ["0", "1", "-1", "2", "3", "7", "255", "65536", "2147483647", "2147483648", "-2147483648", "4294967295"]
NUMBERS += ["9223372036854775807", "18446744073709551615", "1e38", "1e400", "nan", "-inf", "0x7fffffff", "9" * 5000]
HUGE = [0, 1, 2, 31, 127, 128, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
TOKEN = re.compile(rb'"[^"\n]*"|[\w.+-]+|\S')
MESSAGES = {(2,), (100,), (2, 6), (100, 7), (2, 1), (2, 1, 50), (100, 7, 7), (2, 6, 7), (2, 1, 50, 7)}

Random = random.Random


class TooSlowError(BaseException):
    """A run used up its CPU time."""


def pairs() -> list[tuple[str, bytes, bytes]]:
    """Return (name, prototxt, caffemodel) of the networks that are mutated."""
    files = [ROOT / "examples/fashion_lenet/lenet.prototxt", *sorted((ROOT / "tests/golden/caffe").glob("*.prototxt"))]
    found = [(path.stem, path.read_bytes(), path.with_suffix(".caffemodel").read_bytes()) for path in files]
    return [*found, ("v1-spellings", *v1_pair()), ("shapes", odd_shapes(), b"")]


def odd_shapes() -> bytes:
    """Make a network of blobs with zero to five axes, for layers to be added to."""
    shapes = [(4,), (2, 4), (2, 4, 3), (2, 4, 6, 6), (2, 4, 3, 3, 2), (1,)]
    tops = " ".join(f'top: "i{index}"' for index in range(len(shapes)))
    dims = " ".join(f"shape {{ {' '.join(f'dim: {dim}' for dim in shape)} }}" for shape in shapes)
    return f"""
layer {{ name: "data" type: "Input" {tops} input_param {{ {dims} }} }}
layer {{ name: "s" type: "Reduction" bottom: "i0" top: "s" reduction_param {{ axis: 0 }} }}
""".encode()


def v1_pair() -> tuple[bytes, bytes]:
    """Make a V1 network with legacy shapes, unpacked floats, doubles and FP16 raw data."""
    text = b"""
name: "old" input: "data" input_dim: 1 input_dim: 2 input_dim: 6 input_dim: 6
layers { name: "a" type: CONVOLUTION bottom: "data" top: "a" convolution_param { num_output: 3 kernel_size: 3 } }
layers { name: "b" type: RELU bottom: "a" top: "a" }
layers { name: "c" type: INNER_PRODUCT bottom: "a" top: "c" inner_product_param { num_output: 4 } }
layers { name: "d" type: SOFTMAX bottom: "c" top: "d" }
"""
    rng = np.random.default_rng(0)

    def legacy(shape: tuple[int, ...]) -> list[bytes]:
        return [varint(i << 3) + varint(n) for i, n in enumerate((1,) * (4 - len(shape)) + shape, 1)]

    def modern(shape: tuple[int, ...]) -> list[bytes]:
        return list(delimited(7, delimited(1, [b"".join(map(varint, shape))])))

    def unpacked(values: np.ndarray) -> list[bytes]:
        return [b"\x2d" + value.tobytes() for value in values.astype("<f4").ravel()]

    def blob(shape: tuple[int, ...], parts: list[bytes]) -> list[bytes]:
        return list(delimited(6, [*shape_of(shape), *parts]))

    layers = []
    for name, kind, weight, bias in [("a", 4, (3, 2, 3, 3), 3), ("c", 14, (4, 48), 4)]:
        values, biases = rng.normal(size=weight), rng.normal(size=bias)
        shape_of = legacy if name == "a" else modern
        data = unpacked(values) if name == "a" else [b"\x50\x02", *delimited(12, [values.astype("<f2").tobytes()])]
        body = [*delimited(4, [name.encode()]), varint(5 << 3), varint(kind), *blob(weight, data)]
        body += blob((bias,), list(delimited(8, [biases.astype("<f8").tobytes()])))
        layers += delimited(2, body)
    return text, b"".join(layers)


# Mutations of any bytes


def flip_bits(rng: Random, data: bytes, other: bytes) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        out[place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: place(rng, data)]


def cut(rng: Random, data: bytes, other: bytes) -> bytes:
    start = place(rng, data)
    return data[:start] + data[start + rng.choice([1, 2, 5, 50, 500]) :]


def repeat(rng: Random, data: bytes, other: bytes) -> bytes:
    start, size = place(rng, data), rng.choice([1, 2, 5, 50, 500])
    return data[:start] + data[start : start + size] * rng.choice([2, 3, 50]) + data[start + size :]


def insert_other(rng: Random, data: bytes, other: bytes) -> bytes:
    start, size, here = place(rng, other), rng.choice([5, 50, 500, 5000]), place(rng, data)
    return data[:here] + other[start : start + size] + data[here:]


def join_others(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: place(rng, data)] + other[place(rng, other) :]


def insert_bytes(rng: Random, data: bytes, other: bytes) -> bytes:
    here = place(rng, data)
    return data[:here] + rng.choice([b"\xff" * 12, b"\x00" * 3, b"\xc3\x28", rng.randbytes(6)]) + data[here:]


def place(rng: Random, data: bytes) -> int:
    """Return a position; near the front more often, where structure is denser than numbers."""
    if not data:
        return 0
    return rng.randrange(min(len(data), rng.choice([64, 1024, len(data), len(data)])))


BYTES = [flip_bits, truncate, cut, repeat, insert_other, join_others, insert_bytes]

# Mutations of text


def change_tokens(rng: Random, data: bytes, other: bytes) -> bytes:
    tokens = list(TOKEN.finditer(data))
    if not tokens:
        return data
    names = TOKEN.findall(other) + [b'"%s"' % name.encode() for name in LAYER_TYPES]
    for token in sorted(rng.sample(tokens, min(len(tokens), rng.choice([1, 1, 2, 4]))), key=lambda t: -t.start()):
        text = token.group()
        kind = rng.randrange(4)
        new = rng.choice([rng.choice(tokens).group(), rng.choice(names), b"", text + b" " + text])
        if kind and re.fullmatch(rb"[\d.+-]+", text):
            new = rng.choice(NUMBERS).encode()
        elif kind == 1 and text.startswith(b'"'):
            new = rng.choice([t for t in names if t.startswith(b'"')])
        elif kind == 2 and text in b"{}":
            new = text * rng.choice([2, 3000])
        data = data[: token.start()] + new + data[token.end() :]
    return data


def change_numbers(rng: Random, data: bytes, other: bytes) -> bytes:
    found = [token for token in TOKEN.finditer(data) if re.fullmatch(rb"-?[\d.]+", token.group())]
    for token in sorted(rng.sample(found, min(len(found), rng.choice([1, 2, 3]))), key=lambda t: -t.start()):
        data = data[: token.start()] + rng.choice(NUMBERS[:13]).encode() + data[token.end() :]
    return data


def change_lines(rng: Random, data: bytes, other: bytes) -> bytes:
    lines, others = data.split(b"\n"), other.split(b"\n")
    here, there = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        lines.insert(there, lines[here])
    elif kind == 1:
        del lines[here : here + rng.choice([1, 2, 5])]
    elif kind == 2:
        lines[here], lines[there] = lines[there], lines[here]
    elif kind == 3:
        lines[here:here] = others[(start := rng.randrange(len(others))) : start + rng.choice([1, 3, 10])]
    else:
        lines.insert(here, lines[there] * rng.choice([2, 20]))
    return b"\n".join(lines)


def nest(rng: Random, data: bytes, other: bytes) -> bytes:
    opening = rng.choice([b"layer { ", b"layers { layer { ", b"{ ", b"state { ", b"[a.b/c] { ", b"< "])
    here = place(rng, data)
    return data[:here] + opening * rng.choice([2, 100, 5000]) + data[here:]


def add_layer(rng: Random, data: bytes, other: bytes) -> bytes:
    """Append a layer of any type with random parameters."""
    kind = rng.choice(sorted(LAYER_TYPES))
    tops = [name.decode() for name in re.findall(rb'top: *"(\w+)"', data)] or ["data"]
    layer = caffe_pb2.LayerParameter(name="added", type=kind)
    layer.bottom.extend(rng.choice(tops) for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 2, 3, 4])))
    layer.top.extend(f"added{index}" for index in range(rng.choice([0, 1, 1, 1, 1, 2, 3])))
    own = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower() + "_param"
    known = {name: field for name, field in layer.DESCRIPTOR.fields_by_name.items() if name.endswith("_param")}
    field = known.get(own) or rng.choice(list(known.values()))
    fill(rng, getattr(layer, field.name))
    if rng.random() < 0.5 and kind in ("Deconvolution", "Im2col"):
        fill(rng, layer.convolution_param)
    return data + b"\nlayer { " + text_format.MessageToString(layer, as_one_line=True).encode() + b" }\n"


def fill(rng: Random, message: Message) -> None:
    """Set some fields of a message at random."""
    message.SetInParent()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.5:
            continue
        values = [
            random_value(rng, message, field) for _ in range(rng.choice([0, 1, 1, 2, 4]) if is_list(field) else 1)
        ]
        if field.type == field.TYPE_MESSAGE:
            for _ in values:
                fill(rng, getattr(message, field.name).add() if is_list(field) else getattr(message, field.name))
        elif is_list(field):
            getattr(message, field.name).extend(values)
        else:
            setattr(message, field.name, values[0])


def is_list(field: FieldDescriptor) -> bool:
    return isinstance(field.default_value, list)


def random_value(rng: Random, message: Message, field: FieldDescriptor) -> object:
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, 1.0, 0.5, -1.0, 2.0, 1e-30, 1e38, float("nan"), float("inf")])
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        value = rng.choice([*range(-2, 8), *range(1, 5), 16, 64, 1000, 2**16, 2**24, 2**31 - 1, 2**32 - 1, 2**63 - 1])
        return min(max(value, low), high)
    if field.type == field.TYPE_BYTES:
        return rng.choice([b"", b"\x80", b"abc"])
    return rng.random() < 0.5 if field.cpp_type == field.CPPTYPE_BOOL else rng.choice(["", "constant", "x"])


INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
TEXT = [*BYTES, *[add_layer] * 12, *[change_tokens, change_numbers, change_lines] * 4, nest]

# Mutations of a caffemodel that keep the lengths around them right


def change_field(rng: Random, data: bytes, other: bytes) -> bytes:
    """Delete, repeat, move or rewrite one field of a random message."""
    try:
        path = random_path(rng, data)
    except WireError:
        return data
    if not path:
        return data
    target = path[-1]
    change = Change(target.key, target.end, [new_field(rng, data, target, other)])
    view = memoryview(data)
    for outer in reversed(path[:-1]):
        change = Change(outer.key, outer.end, delimited(outer.number, splice(view, outer.start, outer.end, [change])))
    return b"".join(splice(view, 0, len(data), [change]))


def random_path(rng: Random, data: bytes) -> list[Field]:
    path: list[Field] = []
    start, end = 0, len(data)
    view = memoryview(data)
    while True:
        fields = list(read_fields(view, start, end))
        if not fields:
            return path
        path.append(rng.choice(fields))
        if tuple(field.number for field in path) not in MESSAGES or rng.random() < 0.15:
            return path
        start, end = path[-1].start, path[-1].end


def new_field(rng: Random, data: bytes, field: Field, other: bytes) -> bytes:
    whole, value = data[field.key : field.end], data[field.start : field.end]
    kind = rng.randrange(9)
    if kind == 0:
        return b""
    if kind == 1:
        return whole * rng.choice([2, 3, 40])
    if kind == 2:
        return varint(rng.choice([1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 50, 100, 2**29]) << 3 | field.wire_type) + whole[1:]
    if kind == 3:
        return varint(field.number << 3 | rng.randrange(8)) + whole[1:]
    if kind == 4:
        return varint(field.number << 3 | VARINT) + varint(rng.choice(HUGE))
    if field.wire_type != DELIMITED:
        return varint(field.number << 3 | field.wire_type) + varint(rng.choice(HUGE))
    if kind == 5:
        return varint(field.number << 3 | DELIMITED) + varint(rng.choice(HUGE)) + value
    body = rng.choice([b"", value[:-1], value + b"\0", b"\xff\xfe", varint(rng.choice(HUGE)) * 3, b"\x08\x01" * 60])
    return b"".join(delimited(field.number, [body]))


MODEL = [*BYTES, *[change_field] * 8]


def mutate(rng: Random, data: bytes, other: bytes, ways: list[Callable[[Random, bytes, bytes], bytes]]) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = rng.choice(ways)(rng, data, other)[:MAX_BYTES]
    return data


def mutated_pair(seed: str, corpus: list[tuple[str, bytes, bytes]]) -> tuple[bytes, bytes]:
    rng = Random(seed)
    _, text, model = rng.choice(corpus)
    _, other_text, other_model = rng.choice(corpus)
    which = rng.randrange(5)
    if which in (0, 1, 4):
        text = mutate(rng, text, other_text, TEXT)
    if which in (2, 3, 4):
        model = mutate(rng, model, other_model, MODEL)
    return text, model


def exercise(folder: Path) -> str:
    """Load the pair in the folder and use it; return what became of it."""
    paths = folder / "net.prototxt", folder / "net.caffemodel"
    try:
        graph = load_graph(*paths) if paths[1].stat().st_size else load_graph(paths[0])
    except ModelError as error:
        if error.path not in paths:
            raise
        return f"refused: {error.path.suffix[1:]}" + (", layer named" if error.layer is not None else "")
    try:
        capabilities(graph)
        if not paths[1].stat().st_size:
            return "loaded without weights"
        fold_batch_norm(graph)
    except ModelError as error:
        if error.path not in paths:
            raise
        return "loaded, refused later"
    check_round_trip(folder, paths[1])
    return "loaded"


def check_round_trip(folder: Path, path: Path) -> None:
    """Write the weights back; equal values must give the same bytes."""
    stored = load_caffemodel(path)
    stored.write(folder / "back.caffemodel", {name: [blob.values for blob in blobs] for name, blobs in stored.items()})
    if (folder / "back.caffemodel").read_bytes() != path.read_bytes():
        raise AssertionError("the file did not come back")


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """Return the highest resident size since `forget_peak`."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def too_slow(*_: object) -> None:
    raise TooSlowError


def watch(folder: Path, files_bytes: int) -> tuple[str, str, float, int]:
    """Run once; return (outcome, what is wrong or '', CPU seconds, peak memory in bytes beyond the files' size)."""
    outcome, wrong = "failed", ""
    forget_peak()
    before, start = rss_bytes(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        outcome = exercise(folder)
    except TooSlowError:
        wrong = f"took more than {LIMIT_S} s:\n" + traceback.format_exc()
    except Exception:  # the point of the exercise
        wrong = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown = peak_bytes() - before
    if grown > ALLOWED_TIMES * files_bytes + ALLOWED_BYTES:
        wrong += f"memory grew by {grown >> 20} MB for files of {files_bytes:,} bytes"
    return outcome, wrong, time.process_time() - start, grown - files_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--only", type=int, help="repeat one run")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="folder for failing pairs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, too_slow)
    os.fsync = lambda handle: None  # the files need not survive
    corpus = pairs()
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + (1 << 30), resource.RLIM_INFINITY))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        sys.exit(1 if run(given, corpus, Path(name)) else 0)


def run(given: argparse.Namespace, corpus: list[tuple[str, bytes, bytes]], folder: Path) -> int:
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    slowest, largest = (0.0, -1), (0, -1)
    indices = range(given.first, given.first + given.runs) if given.only is None else [given.only]
    began = time.perf_counter()
    for index in indices:
        text, model = mutated_pair(f"{given.seed}:{index}", corpus)
        (folder / "net.prototxt").write_bytes(text)
        (folder / "net.caffemodel").write_bytes(model)
        outcome, wrong, seconds, grown = watch(folder, len(text) + len(model))
        outcomes[outcome] += 1
        slowest, largest = max(slowest, (seconds, index)), max(largest, (grown, index))
        if wrong:
            keep(given.keep, index, text, model, wrong, failures)
    print(f"\n| outcome of {len(indices):,} files | runs |\n|---|---|")
    for outcome, count in outcomes.most_common():
        print(f"| {outcome} | {count:,} |")
    for reason, count in failures.most_common():
        print(f"| FAILED: {reason} | {count:,} |")
    print(f"\nslowest {slowest[0]:.3f} s of CPU time (run {slowest[1]}); most memory beyond the files' size ", end="")
    print(f"{largest[0] / 2**20:.1f} MB (run {largest[1]}); {time.perf_counter() - began:.0f} s in all")
    print(f"seed {given.seed}, Python {platform.python_version()}, NumPy {np.__version__}, ", end="")
    print(f"{os.cpu_count()} x {platform.machine()}")
    return sum(failures.values())


def keep(folder: Path, index: int, text: bytes, model: bytes, wrong: str, failures: Counter[str]) -> None:
    """Store a failing pair and print its traceback, the first time that its last line comes up."""
    frames = re.findall(r'File "[^"]*/(\w+\.py)", line (\d+)', wrong)
    where = " at " + ":".join(frames[-1]) if frames else ""
    reason = re.sub(r"[\d,]+", "N", wrong.strip().splitlines()[-1])[:100] + where
    if not failures[reason]:
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.prototxt").write_bytes(text)
        (folder / f"{index}.caffemodel").write_bytes(model)
        print(f"run {index}: {wrong}", file=sys.stderr)
    failures[reason] += 1


if __name__ == "__main__":
    main()
