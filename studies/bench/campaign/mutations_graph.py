"""Prototxts and caffemodels: damaged alone and together, read, folded and written back.

Of a pair either file is damaged, or both; they travel as one, the text in front. A good answer names one of the two.
What loads has its weights written back, which must give the same bytes.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from google.protobuf import text_format
from layers import TYPES, random_layer
from mutations import Parser
from mutators import BYTES, INTEGERS, TEXT, Mutator

from autonuq.errors import ModelError
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph
from autonuq.graph.passes import capabilities, fold_batch_norm
from autonuq.graph.wire import DELIMITED, VARINT, Change, Field, WireError, delimited, read_fields, splice, varint

_ROOT = Path(__file__).parents[3]
_BETWEEN = b"\n\0caffemodel\0\n"
_MAX_BYTES = (1 << 17, 1 << 19)  # of a damaged text, which protobuf takes a second for, and of weights
_NUMBERS = (*INTEGERS, 2**64 - 1)
_MESSAGES = {(2,), (100,), (2, 6), (100, 7), (2, 1), (2, 1, 50), (100, 7, 7), (2, 6, 7), (2, 1, 50, 7)}


def _pairs(folder: Path) -> list[bytes]:
    """Return the networks that are damaged."""
    files = sorted((_ROOT / "tests/golden/caffe").glob("*.prototxt"))
    found = [(path.read_bytes(), path.with_suffix(".caffemodel").read_bytes()) for path in files]
    return [_BETWEEN.join(pair) for pair in (*found, _v1_pair(), (_odd_shapes(), b""))]


def _odd_shapes() -> bytes:
    """Make a network of blobs with zero to five axes, for layers to be added to."""
    shapes = [(4,), (2, 4), (2, 4, 3), (2, 4, 6, 6), (2, 4, 3, 3, 2), (1,)]
    tops = " ".join(f'top: "i{index}"' for index in range(len(shapes)))
    dims = " ".join(f"shape {{ {' '.join(f'dim: {dim}' for dim in shape)} }}" for shape in shapes)
    return f"""
layer {{ name: "data" type: "Input" {tops} input_param {{ {dims} }} }}
layer {{ name: "s" type: "Reduction" bottom: "i0" top: "s" reduction_param {{ axis: 0 }} }}
""".encode()


def _v1_pair() -> tuple[bytes, bytes]:
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


def _add_layer(rng: Random, data: bytes, other: bytes) -> bytes:
    """Append a layer of any type with random settings."""
    tops = [name.decode() for name in re.findall(rb'top: *"(\w+)"', data)] or ["data"]
    bottoms = [rng.choice(tops) for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4)))]
    layer = random_layer(rng, rng.choice(TYPES), bottoms, rng.choice((0.0, 0.3, 1.0)))
    return data + b"\nlayer { " + text_format.MessageToString(layer, as_one_line=True).encode() + b" }\n"


def _change_field(rng: Random, data: bytes, other: bytes) -> bytes:
    """Delete, repeat, move or rewrite one field of a random message."""
    try:
        path = _random_path(rng, data)
    except WireError:
        return data
    if not path:
        return data
    target = path[-1]
    change = Change(target.key, target.end, [_new_field(rng, data, target, other)])
    view = memoryview(data)
    for outer in reversed(path[:-1]):
        change = Change(outer.key, outer.end, delimited(outer.number, splice(view, outer.start, outer.end, [change])))
    return b"".join(splice(view, 0, len(data), [change]))


def _random_path(rng: Random, data: bytes) -> list[Field]:
    path: list[Field] = []
    start, end = 0, len(data)
    view = memoryview(data)
    while True:
        fields = list(read_fields(view, start, end))
        if not fields:
            return path
        path.append(rng.choice(fields))
        if tuple(field.number for field in path) not in _MESSAGES or rng.random() < 0.15:
            return path
        start, end = path[-1].start, path[-1].end


def _new_field(rng: Random, data: bytes, field: Field, other: bytes) -> bytes:
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
        return varint(field.number << 3 | VARINT) + varint(rng.choice(_NUMBERS))
    if field.wire_type != DELIMITED:
        return varint(field.number << 3 | field.wire_type) + varint(rng.choice(_NUMBERS))
    if kind == 5:
        return varint(field.number << 3 | DELIMITED) + varint(rng.choice(_NUMBERS)) + value
    body = rng.choice([b"", value[:-1], value + b"\0", b"\xff\xfe", varint(rng.choice(_NUMBERS)) * 3, b"\x08\x01" * 60])
    return b"".join(delimited(field.number, [body]))


_TEXT: tuple[Mutator, ...] = (*TEXT, *BYTES, *[_add_layer] * 12)
_MODEL: tuple[Mutator, ...] = (*BYTES, *[_change_field] * 8)


def _damage(parts: tuple[int, ...], rng: Random, data: bytes, other: bytes) -> bytes:
    """Damage the text (0), the weights (1), or one of them, of a pair."""
    pair, others = list(_parts(data)), _parts(other)
    which = rng.choice(parts)
    pair[which] = rng.choice((_TEXT, _MODEL)[which])(rng, pair[which], others[which])[: _MAX_BYTES[which]]
    return _BETWEEN.join(pair)


def _parts(pair: bytes) -> tuple[bytes, bytes]:
    text, _, model = pair.partition(_BETWEEN)
    return text, model


def _read_pair(path: Path) -> None:
    """Load a pair, ask what can be quantized, fold it, and write the weights back."""
    text, model = _parts(path.read_bytes())
    files = path.with_name("net.prototxt"), path.with_name("net.caffemodel")
    for file, data in zip(files, (text, model), strict=True):
        file.write_bytes(data)
    try:
        graph = load_graph(*files) if model else load_graph(files[0])
        capabilities(graph)
        if model:
            fold_batch_norm(graph)
    except ModelError as error:
        if error.path not in files:
            raise AssertionError("the error names neither file") from error
        raise
    if model:
        _check_round_trip(files[1])


def _check_round_trip(path: Path) -> None:
    """Write the weights back; equal values must give the same bytes."""
    stored, back = load_caffemodel(path), path.with_name("back.caffemodel")
    stored.write(back, {name: [blob.values for blob in blobs] for name, blobs in stored.items()})
    if back.read_bytes() != path.read_bytes():
        raise AssertionError("the file did not come back")


PARSERS = [
    Parser(name, ".pair", _pairs, _read_pair, (partial(_damage, parts),), only_own=True, names_file=False)
    for name, parts in (("prototxt", (0,)), ("caffemodel", (1,)), ("prototxt and caffemodel", (0, 1)))
]
