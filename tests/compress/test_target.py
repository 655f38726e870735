"""What a chip stores of each layer: counted, packed, listed for its compiler, and said."""

from dataclasses import replace

import numpy as np
import pytest
from chip_network import REAL, write_chip_network
from targets import counted_with

from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import (
    aimed,
    codecs_of,
    compressed_layers,
    describe_chip,
    floor_bytes,
    say_unsearched,
    uncompressed_layers,
)
from autonuq.compress.operating_points import build_network_points, describe_layers
from autonuq.compress.outputs import fake_quant_pair, pack, unpack, write_fake_quant, write_nuq_layers
from autonuq.compress.packed_file import load_packed
from autonuq.compress.quantized import default_config, quantize
from autonuq.graph.files import load_graph
from autonuq.quant.atc import compressed_bytes, device_layout
from autonuq.quant.atc.chips import DDR_RATES
from autonuq.quant.points import Tuning

PLAIN = {"small": 9 * 16 * 32, "grouped": 32 * 16, "fc": 16 * 128}
"""Bytes on the device: inputs in blocks of 32, outputs in blocks of 16; a weight is a byte where there are groups."""


def model_of(folder, name="tiny", **target):
    graph = load_graph(folder / f"{name}.prototxt", folder / f"{name}.caffemodel")
    found = aimed(counted_with(quantize(graph, default_config(graph)), **target))
    factors = {layer: replace(own, scale_d=0.03, offset_d=-3) for layer, own in found.factors.items()}
    return replace(found, factors=factors)


def candidate_of(model, folder, share=0.7):
    points = dict(build_network_points(model, folder / "none.txt", tuning=Tuning(steps=8)))
    return Candidate(model, points, {name: int(share * (len(found.codes) - 1)) for name, found in points.items()})


def atc_bytes(codes):
    """Return the bytes of a layer by the compressor itself; the judge keeps them up to 0.8 of the plain ones."""
    weights = device_layout(codes, "conv" if codes.ndim == 4 else "fc")
    fractal = max(part for part in range(512, 32769, 512) if weights.size % part == 0)
    size = compressed_bytes(weights, fractal_bytes=fractal)
    return size if size <= 0.8 * weights.size else weights.size


@pytest.mark.parametrize("marks", ["compiler", "all"])
def test_what_is_counted_is_what_the_device_holds_and_what_is_packed(marks, chip_network):
    model = model_of(chip_network, chip="ascend310", marks=marks)
    candidate = candidate_of(model, chip_network)
    compressed = {"large"} if marks == "compiler" else {"small", "large", "fc"}
    counted = {name: found.curve.rates_bytes[candidate.plan[name]] for name, found in candidate.points.items()}
    for name in model.weights:
        assert counted[name] == (atc_bytes(candidate.codes(name)) if name in compressed else PLAIN[name]), name
    pair, path = fake_quant_pair(f"{chip_network}/net"), chip_network / "net.nuq"
    write_fake_quant(candidate, pair)
    pack(candidate, path)
    packed = load_packed(path)
    assert {name: len(packed.layers[name].stream) for name in model.weights} == counted
    unpacked = unpack(packed, f"{chip_network}/again")
    assert unpacked.model.read_bytes() == pair.model.read_bytes()
    assert unpacked.weights.read_bytes() == pair.weights.read_bytes()
    listed = write_nuq_layers(candidate, f"{chip_network}/net").read_text().split(";")
    plain = {layer.layer: layer.device_bytes for layer in describe_chip(model).layers}
    assert listed == [name for name in model.weights if name in compressed and counted[name] < plain[name]]
    assert "large" in listed


def test_zeros_take_least_and_layers_that_are_not_compressed_all_the_same(chip_network):
    model = model_of(chip_network, chip="ascend310")
    zeros = atc_bytes(np.zeros_like(model.weights["large"].codes))
    assert floor_bytes(model) == sum(PLAIN.values()) + zeros
    assert floor_bytes(model) < sum(
        points.curve.rates_bytes[0] for points in candidate_of(model, chip_network).points.values()
    )


def test_layers_that_are_left_alone_have_one_point_and_a_reason(chip_network):
    model = model_of(chip_network, chip="ascend310")
    assert model.nuq_layers == ("large",)
    candidate = candidate_of(model, chip_network)
    described = {layer.name: layer for layer in describe_layers(model, candidate.points)}
    reasons = {
        "small": "not compressed on ascend310: 288 bytes of weights, not over 3000",
        "fc": "not compressed on ascend310: fully connected: only newer compilers mark it",
    }
    for name in PLAIN:
        assert described[name].treatment == "uniform"
        assert described[name].rates_bytes == (PLAIN[name],) and described[name].curve_levels == (256,)
        assert (candidate.codes(name) == model.weights[name].codes).all()
        assert described[name].reason == reasons.get(name, described[name].reason)
    assert "group" in described["grouped"].reason
    assert described["large"].treatment == "nuq" and not described["large"].reason
    assert len(described["large"].rates_bytes) > 3


@pytest.mark.parametrize("chip", DDR_RATES)
def test_a_real_size_is_marked_on_every_chip(chip, tmp_path):
    write_chip_network(tmp_path, "real", REAL)
    model = model_of(tmp_path, "real", chip=chip)
    assert model.nuq_layers == ("large",)
    described = {layer.layer: layer for layer in describe_chip(model).layers}
    assert described["large"].is_compressed and described["large"].load > 1
    assert [name for name, layer in described.items() if layer.is_compressed] == ["large"]
    codes = model.weights["large"].codes
    assert codecs_of(model)["large"].size_bytes(codes) == atc_bytes(codes) == codes.size
    assert codecs_of(model)["large"].size_bytes(codes // 16 * 16) == atc_bytes(codes // 16 * 16) < 0.8 * codes.size


def test_a_file_s_marks_beat_the_prediction(chip_network):
    model = model_of(chip_network, chip="ascend310", marked=("small", "grouped"))
    assert model.nuq_layers == ("small",)
    left = uncompressed_layers(model)
    assert left.keys() == {"large", "grouped", "fc"}
    assert left["large"] == "not compressed on ascend310: its compiler's file does not mark it"
    assert left["grouped"] == "the chip compresses no groups"
    everything = model_of(chip_network, chip="ascend310", marks="all", marked=("small",))
    assert everything.nuq_layers == ("small", "large", "fc")


def test_without_marks_nothing_is_searched(chip_network, monkeypatch):
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", 10**9)
    model = model_of(chip_network, chip="ascend910")
    assert model.nuq_layers == () and compressed_layers(Candidate(model)) == ()
    assert "ascend910 loads every layer as int8, so there is nothing to search" in say_unsearched(model)
    assert 'marks = "all"' in say_unsearched(model)
    assert not say_unsearched(model_of(chip_network, chip="ascend910", marks="all"))


def test_other_reasons_for_searching_nothing_are_said(chip_network):
    """Nobody is told to say what was said, or that a layer is left alone which is not."""
    graph = load_graph(chip_network / "tiny.prototxt", chip_network / "tiny.caffemodel")
    config = default_config(graph)
    uniform = {name: replace(own, weights=replace(own.weights, algorithm="arq")) for name, own in config.layers.items()}
    grouped, every = {"grouped": uniform["grouped"]}, counted_with(quantize(graph, config), "fixed")
    for layers, target, words in (
        (uniform, {"chip": "ascend310"}, "no layer that ascend310 compresses is to carry a codebook"),
        (grouped, {"chip": "ascend310", "marks": "all"}, "as int8, so there is nothing to search: all of them have gr"),
        (grouped, {"codec": "ascend"}, "no layer can carry a codebook"),
    ):
        model = aimed(counted_with(quantize(graph, replace(config, layers=layers)), **target))
        assert words in say_unsearched(model)
    assert say_unsearched(every) == ""


def test_no_chip_is_described_without_one(chip_network):
    model = model_of(chip_network, codec="ascend")
    assert describe_chip(model) is None and uncompressed_layers(model) == {}
    assert model.nuq_layers == ("small", "large", "fc")
    codes = model.weights["grouped"].codes
    assert codecs_of(model)["grouped"].size_bytes(codes) == codes.size


def test_a_codebook_that_is_asked_for_is_listed_whatever_the_chip_marks(chip_network):
    """AMCT's static calls give `fc` 16 levels where the configuration says so; their list names it."""
    model = quantize_with_a_cluster(model_of(chip_network, chip="ascend310"), "fc")
    assert "fc" in compressed_layers(Candidate(model))


def quantize_with_a_cluster(model, name):
    clustered = replace(model.factors[name], cluster=tuple(range(-8, 8)))
    return replace(model, factors={**model.factors, name: clustered})


def random_network(rng):
    """Make up layers of any shape: groups, kernels that are not square, odd channels."""
    side, channels = int(rng.integers(5, 9)), int(rng.integers(1, 40))
    text = f'layer {{ name: "data" type: "Input" top: "a" input_param {{ shape {{ dim: 1 dim: {channels} '
    text += f"dim: {side} dim: {side} }} }} }}\n"
    bottom = "a"
    for number in range(4):
        groups = int(rng.choice([1, 1, 2, 3]))
        outputs, top = groups * int(rng.integers(1, 30)), f"conv{number}"
        groups = groups if channels % groups == 0 else 1
        kind = "Deconvolution" if number == 2 else "Convolution"
        text += f'layer {{ name: "{top}" type: "{kind}" bottom: "{bottom}" top: "{top}" convolution_param {{ '
        text += f"num_output: {outputs} group: {groups} kernel_h: {rng.integers(1, 4)} kernel_w: {rng.integers(1, 4)} "
        text += "pad: 1 } }\n"
        bottom, channels = top, outputs
    text += f'layer {{ name: "fc" type: "InnerProduct" bottom: "{bottom}" top: "fc" '
    return text + f"inner_product_param {{ num_output: {rng.integers(1, 50)} }} }}\n"


@pytest.mark.parametrize("seed", range(12))
def test_bytes_of_any_network(seed, tmp_path, monkeypatch):
    """Whatever the shapes: what is counted is what is encoded and decodes, marked or not."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", int(rng.integers(1, 2000)))
    write_chip_network(tmp_path, "any", random_network(rng))
    for marks in ("compiler", "all"):
        model = model_of(tmp_path, "any", chip=str(rng.choice(list(DDR_RATES))), marks=marks)
        left, described = uncompressed_layers(model), {layer.layer: layer for layer in describe_chip(model).layers}
        for name, uniform in model.weights.items():
            codec = codecs_of(model)[name]
            for codes in (uniform.codes, uniform.codes // 32 * 32, np.zeros_like(uniform.codes)):
                data = codec.encode(codes)
                assert len(data) == codec.size_bytes(codes)
                assert (codec.decode(data, codes.size) == codes.ravel()).all()
                assert len(data) <= described[name].device_bytes
                assert name not in left or len(data) == described[name].device_bytes
            assert described[name].is_compressed == (name not in left)
            assert described[name].device_bytes >= uniform.codes.size
