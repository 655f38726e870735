"""Packed files: unpacked bit for bit, as small as counted, and refused with the layer's name once a byte is wrong."""

import lzma
import struct
import zlib
from dataclasses import replace
from itertools import accumulate

import numpy as np
import pytest
from targets import counted_with

from autonuq.compress.candidate import Candidate
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.outputs import fake_quant_pair, pack, unpack, write_fake_quant
from autonuq.compress.packed_file import MAGIC, VERSION, PackedLayer, load_packed, write_packed
from autonuq.compress.quantized import default_config, quantize
from autonuq.errors import QuantizationError
from autonuq.graph.files import expected_blobs, load_graph
from autonuq.graph.passes import QuantizedBlobs, insert_quantizers
from autonuq.graph.record import Factors
from autonuq.quant.codecs import CODEC_NAMES, PLAIN, make_codec

MIXED = """
name: "mixed"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }
layer { name: "größe/1" type: "Convolution" bottom: "data" top: "plain" param { name: "shared" } param { name: "b" }
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "same" type: "Convolution" bottom: "plain" top: "same" param { name: "shared" } param { name: "b" }
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "grouped" type: "Convolution" bottom: "same" top: "grouped"
        convolution_param { num_output: 6 kernel_size: 3 group: 2 bias_term: false } }
layer { name: "prelu" type: "PReLU" bottom: "grouped" top: "grouped" }
layer { name: "dilated" type: "Convolution" bottom: "grouped" top: "dilated"
        convolution_param { num_output: 5 kernel_size: 3 pad: 2 dilation: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "dilated" top: "up"
        convolution_param { num_output: 3 kernel_size: 4 stride: 2 } }
layer { name: "float" type: "Convolution" bottom: "up" top: "float" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "bn" type: "BatchNorm" bottom: "float" top: "normal" }
layer { name: "pool" type: "Pooling" bottom: "normal" top: "pool" pooling_param { pool: AVE kernel_size: 7 } }
layer { name: "zero" type: "InnerProduct" bottom: "pool" top: "zero" inner_product_param { num_output: 7 } }
layer { name: "more" type: "InnerProduct" bottom: "pool" top: "more" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "Softmax" bottom: "zero" top: "loss" }
"""


def mixed(folder):
    """Make every kind of layer that a file must hold: float, uniform, NUQ, shared, without weights, without bias."""
    (folder / "mixed.prototxt").write_text(MIXED)
    graph = load_graph(folder / "mixed.prototxt")
    rng = np.random.default_rng(1)
    blobs = {
        name: [rng.laplace(scale=0.2, size=shape).astype(np.float32) for shape in shapes]
        for name, shapes in expected_blobs(graph).items()
    }
    blobs["same"] = blobs["größe/1"]
    blobs["zero"][0][:] = 0
    blobs["prelu"][0][:3] = np.array([0x80000000, 0x7FC12345, 1], np.uint32).view(np.float32)  # -0, a NaN, a denormal
    blobs["bn"][1:] = [np.abs(blobs["bn"][1]), np.ones(1, np.float32)]
    graph = graph.with_layers(layer.with_(blobs=blobs[layer.name]) for layer in graph.layers)
    return quantize(graph, replace(default_config(graph, skip_layers=["float"]), do_fusion=False))


def tiny_model(folder):
    graph = load_graph(folder / "tiny.prototxt", folder / "tiny.caffemodel")
    return quantize(graph, default_config(graph))


@pytest.fixture(params=CODEC_NAMES)
def codec(request):
    return request.param


@pytest.fixture(params=[tiny_model, mixed], ids=["tiny", "mixed"])
def model(request, codec, tiny):
    """Return a network with factors as a calibration could leave them; one in three has a shift N."""
    found = counted_with(request.param(tiny), codec)
    rng = np.random.default_rng(2)
    factors = {
        name: replace(
            own,
            scale_d=float(np.float32(rng.uniform(0.001, 0.1))),
            offset_d=int(rng.integers(-128, 128)),
            shift_bit=tuple(rng.integers(0, 17, len(own.scale_w)).tolist()) if index % 3 == 2 else (),
        )
        for index, (name, own) in enumerate(found.factors.items())
    }
    return replace(found, factors=factors)


@pytest.fixture
def packed(model, tiny):
    """Write fake-quant pair and packed file of the smallest plan; return (candidate, pair, packed file)."""
    points = dict(build_network_points(model, tiny / "no_record.txt"))
    plan = {name: len(points[name].codes) - 1 for name in model.nuq_layers}
    pair, path = fake_quant_pair(f"{tiny}/written"), tiny / "written.nuq"
    candidate = Candidate(model, points, plan)
    write_fake_quant(candidate, pair)
    pack(candidate, path)
    return candidate, pair, path


def test_unpacked_pair_is_the_written_one_byte_for_byte(packed, tiny):
    _, pair, path = packed
    unpacked = unpack(load_packed(path), f"{tiny}/new/folder/unpacked")
    assert unpacked == fake_quant_pair(f"{tiny}/new/folder/unpacked")
    assert unpacked.model.read_bytes() == pair.model.read_bytes()
    written, read = load_graph(pair.model, pair.weights), load_graph(unpacked.model, unpacked.weights)
    for one, other in zip(written.layers, read.layers, strict=True):
        assert [(b.shape, b.tobytes()) for b in one.blobs] == [(b.shape, b.tobytes()) for b in other.blobs], one.name
    assert unpacked.weights.read_bytes() == pair.weights.read_bytes()


@pytest.mark.parametrize("origin", ["", "study a, trial 3: lost 0.3 ± 0.1 points", "study a\nlayer { }, trial 3"])
def test_origin_is_read_back_and_is_no_part_of_the_prototxt(packed, origin):
    candidate, pair, path = packed
    pack(candidate, path, origin)
    network = load_packed(path)
    assert network.origin == " ".join(origin.splitlines())
    assert network.prototxt.encode() == pair.model.read_bytes()


def test_streams_are_what_was_counted(packed, model, codec):
    candidate, _, path = packed
    layers = load_packed(path).layers
    assert list(layers) == list(model.factors)
    for name, layer in layers.items():
        assert layer.factors.scale_d == model.factors[name].scale_d
        assert layer.factors.offset_d == model.factors[name].offset_d
        assert layer.factors.shift_bit == model.factors[name].shift_bit
        if name in model.weights:
            codes = candidate.codes(name)
            used = PLAIN if (codec, name) == ("ascend", "grouped") else codec  # no chip compresses groups
            assert layer.stream == make_codec(used, codes.shape).encode(codes)
            assert len(layer.stream) == candidate.points[name].curve.rates_bytes[candidate.plan.get(name, 0)]
            assert (layer.codec, layer.channel_axis) == (used, model.weights[name].channel_axis)
        else:
            assert (layer.codec, layer.stream) == ("", b"")


def test_size_is_what_was_counted_and_little_else(packed, model):
    """Besides the streams: prototxt, scales, float blobs, and at most 60 bytes a layer."""
    _, pair, path = packed
    layers = load_packed(path).layers
    floats = sum(
        4 * sum(blob.size for blob in layer.blobs[layer.name in model.weights :]) for layer in model.graph.layers
    )
    scales = sum(4 * len(factors.scale_w) + len(factors.shift_bit) for factors in model.factors.values())
    counted = sum(len(layer.stream) for layer in layers.values()) + floats + scales
    left = path.stat().st_size - counted
    assert 0 < left < len(zlib.compress(pair.model.read_bytes())) + 60 * len(model.graph.layers)


def sections_of(model, data):
    """Return (layer, end) of every section of a packed file, in order; "" stands for the network's."""
    ends, position = [], 24
    while position < len(data):
        position += 12 + struct.unpack_from("<Q", data, position)[0]
        ends.append(position)
    names = [layer.name for layer in model.graph.layers if layer.blobs or layer.name in model.factors]
    return list(zip(["", *names], ends, strict=True))


SLOW_WHERE_LARGE = pytest.mark.parametrize(
    "model", [tiny_model, pytest.param(mixed, marks=pytest.mark.slow)], indirect=True, ids=["tiny", "mixed"]
)


def layer_at(sections, position):
    return next(name for name, end in sections if position < end) if position >= 24 else ""


@SLOW_WHERE_LARGE
def test_every_damaged_byte_is_refused_where_it_is(packed, model, tiny):
    *_, path = packed
    data = path.read_bytes()
    sections = sections_of(model, data)
    rng = np.random.default_rng(4)
    edges = {0, 7, 8, 11, 12, 20, 24, *(end + offset for _, end in sections for offset in range(-5, 9))}
    sample = sorted({p for p in edges if p < len(data)} | set(rng.integers(0, len(data), 150).tolist()))
    damaged = tiny / "damaged.nuq"
    for position in sample:
        for flip in (1 << int(rng.integers(8)), 0xFF):
            damaged.write_bytes(data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])
            with pytest.raises(QuantizationError) as error:
                load_packed(damaged)
            assert error.value.path == damaged
            assert (error.value.layer or "") == layer_at(sections, position), position


@SLOW_WHERE_LARGE
def test_every_truncation_is_refused_where_the_file_ends(packed, model, tiny):
    *_, path = packed
    data = path.read_bytes()
    sections = sections_of(model, data)
    cut = tiny / "cut.nuq"
    for size in sorted({*range(0, len(data), 61), *(end for _, end in sections[:-1]), len(data) - 1}):
        cut.write_bytes(data[:size])
        with pytest.raises(QuantizationError, match="truncated|no packed network") as error:
            load_packed(cut)
        assert error.value.path == cut
        assert (error.value.layer or "") == layer_at(sections, size)


def test_more_bytes_are_refused(packed, tiny):
    *_, path = packed
    longer = tiny / "longer.nuq"
    longer.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(QuantizationError, match="instead of"):
        load_packed(longer)


def with_section(data, index, change, name):
    """Return a packed file whose section `index` is changed, with every checksum and length right."""
    starts = [24, *accumulate(_lengths(data), initial=24)][1:]
    body = change(data[starts[index] + 8 : starts[index + 1] - 4])
    head = struct.pack("<Q", len(body)) + body
    section = head + struct.pack("<I", zlib.crc32(head, zlib.crc32(name.encode())))
    rest = data[24 : starts[index]] + section + data[starts[index + 1] :]
    preamble = struct.pack("<8sIQ", MAGIC, VERSION, 24 + len(rest))
    return preamble + struct.pack("<I", zlib.crc32(preamble)) + rest


def _lengths(data):
    position = 24
    while position < len(data):
        yield 12 + struct.unpack_from("<Q", data, position)[0]
        position += 12 + struct.unpack_from("<Q", data, position)[0]


def replaced(old, new):
    def change(body):
        assert old in body
        return body.replace(old, new, 1)

    return change


# What another writer could get wrong in the section of tiny's `conv` (8 outputs of 2x3x3), and what the message says.
CONTENTS = {
    "kind": (lambda body: b"\7" + body[1:], "unknown kind, 7"),
    "axis": (lambda body: body[:6] + b"\1" + body[7:], "8 scales along axis 1"),
    "no axis": (lambda body: body[:6] + b"\xff" + body[7:], "8 scales along axis None"),
    "scale_d": (lambda body: body[:1] + struct.pack("<f", -1) + body[5:], "finite and positive"),
    "scale": (lambda body: body[:11] + struct.pack("<f", np.nan) + body[15:], "finite and positive"),
    "codec": (replaced(b"entropy", b"atrophy"), "coded by 'atrophy'"),
    "other codec": (replaced(b"\7\0\0\0entropy", b"\5\0\0\0fixed"), "fixed codec"),
    "no codec": (replaced(b"\7\0\0\0entropy", b"\0\0\0\0"), "coded by ''"),
    "shape": (replaced(struct.pack("<4I", 8, 2, 3, 3), struct.pack("<4I", 8, 2, 9, 1)), "of shape \\(8, 2, 9, 1\\)"),
    "count": (lambda body: body[:7] + struct.pack("<I", 1 << 31) + body[11:], "too few"),
    "short": (lambda body: body[:-1], "too few"),
    "long": (lambda body: body + b"\0", "1 bytes more"),
    "empty": (lambda body: b"", "too few"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(("model", "codec"), [(tiny_model, "entropy")], indirect=True, ids=[""])
def test_contents_that_do_not_fit_are_refused(packed, tiny, name):
    *_, path = packed
    change, words = CONTENTS[name]
    path.write_bytes(with_section(path.read_bytes(), 1, change, "conv"))
    with pytest.raises(QuantizationError, match=words) as error:
        load_packed(path)
    assert error.value.path == path
    assert error.value.layer == "conv"


@pytest.mark.parametrize(("model", "codec"), [(tiny_model, "entropy")], indirect=True, ids=[""])
def test_network_that_cannot_be_used_is_refused(packed, tiny):
    *_, path = packed
    data, text = path.read_bytes(), load_packed(path).prototxt
    other = text.replace("num_output: 10", "num_output: 11")
    for change, words in (
        (lambda body: b"?" * len(body), "decompressed"),
        (lambda body: body + b"?", "followed by something else"),
        (lambda body: body[:-20], "incomplete"),
        (lambda body: lzma.compress(b"layer {", lzma.FORMAT_ALONE), "cannot be used"),
        (
            lambda body: lzma.compress(other.encode(), lzma.FORMAT_ALONE),
            "fc",
        ),
    ):
        path.write_bytes(with_section(data, 0, change, ""))
        with pytest.raises(QuantizationError, match=words):
            load_packed(path)


@pytest.mark.parametrize(("model", "codec"), [(tiny_model, "entropy")], indirect=True, ids=[""])
def test_other_files_are_refused(packed, tiny):
    *_, path = packed
    preamble = struct.pack("<8sIQ", MAGIC, VERSION + 1, path.stat().st_size)
    path.write_bytes(preamble + struct.pack("<I", zlib.crc32(preamble)) + path.read_bytes()[24:])
    with pytest.raises(QuantizationError, match="version 2"):
        load_packed(path)
    with pytest.raises(QuantizationError, match="no packed network"):
        load_packed(tiny / "tiny.caffemodel")
    with pytest.raises(QuantizationError, match="missing.nuq: cannot be read"):
        load_packed(tiny / "missing.nuq")


BOMB = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: %d bias_term: false } }
"""


def bomb(path, outputs, codec="fixed", stream=b"\0\0"):
    """Write a packed file of a few hundred bytes whose one layer has a single level, and any number of weights."""
    floats = struct.pack("<fbB", 1.0, 0, 255) + struct.pack("<If", 1, 1.0) + struct.pack("<I", 0)
    arrays = struct.pack("<I", len(codec)) + codec.encode() + struct.pack("<3I", 2, outputs, 4)
    bodies = {
        "": lzma.compress((BOMB % outputs).encode(), lzma.FORMAT_ALONE),
        "fc": b"\1" + floats + arrays + struct.pack("<I", len(stream)) + stream,
    }
    return written(path, bodies)


def written(path, bodies):
    data = b""
    for name, body in bodies.items():
        framed = struct.pack("<Q", len(body)) + body
        data += framed + struct.pack("<I", zlib.crc32(framed, zlib.crc32(name.encode())))
    preamble = struct.pack("<8sIQ", MAGIC, VERSION, 24 + len(data))
    path.write_bytes(preamble + struct.pack("<I", zlib.crc32(preamble)) + data)
    return path


def test_a_layer_of_one_level_is_read_up_to_a_size_and_refused_before_it_is_made(tmp_path):
    (layer,) = load_packed(bomb(tmp_path / "small.nuq", 1 << 18)).graph.layers[1:]
    assert layer.blobs[0].shape == (1 << 18, 4)
    with pytest.raises(QuantizationError, match=r"bomb\.nuq: 2,147,483,644 weights in \d+ bytes are more than"):
        load_packed(bomb(tmp_path / "bomb.nuq", (1 << 29) - 1))


def test_a_stream_of_ascend_is_as_long_as_its_weights_need(tmp_path):
    with pytest.raises(QuantizationError, match=r"layer 'fc': 2 bytes cannot be 16,?000,?000 weights"):
        load_packed(bomb(tmp_path / "a.nuq", 4_000_000, "ascend"))


def test_a_prototxt_that_unpacks_to_thousands_of_times_is_refused(tmp_path):
    text = lzma.compress(b"#" * (50 << 20), lzma.FORMAT_ALONE, preset=0)
    with pytest.raises(QuantizationError, match=r"a\.nuq: its prototxt is longer than the [\d,]+ bytes that"):
        load_packed(written(tmp_path / "a.nuq", {"": text}))


def test_a_network_that_would_look_like_a_bomb_is_not_written(tmp_path):
    (tmp_path / "zero.prototxt").write_text(BOMB % 6_000_000)
    graph = load_graph(tmp_path / "zero.prototxt")
    zeros = np.broadcast_to(np.float32(0), (6_000_000, 4))
    graph = graph.with_layers(layer.with_(blobs=[zeros] if layer.name == "fc" else []) for layer in graph.layers)
    factors = Factors(scale_d=1.0, scale_w=(1.0,), offset_w=(0,))
    with pytest.raises(QuantizationError, match=r"zero\.nuq: 24,000,003 weights in"):
        write_packed(
            insert_quantizers(graph, {"fc": QuantizedBlobs((zeros,), factors)}),
            {"fc": PackedLayer(factors, "fixed", None, b"\0\0")},
            tmp_path / "zero.nuq",
        )


def test_a_prototxt_of_other_text_is_refused(tmp_path):
    text = lzma.compress(b"# \xff\nname: 'a'\n", lzma.FORMAT_ALONE)
    with pytest.raises(QuantizationError, match="no UTF-8 text"):
        load_packed(written(tmp_path / "a.nuq", {"": text}))
