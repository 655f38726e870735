"""ATC's compressor against recorded answers of the original, its inverse, and damaged data."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autonuq.errors import QuantizationError
from autonuq.quant import atc
from autonuq.quant.atc.chips import is_kept, judge_fractal_bytes
from autonuq.quant.atc.layout import device_bytes, restore_layout
from autonuq.quant.atc.ranking import _heap_sort, rank_bytes

GOLDEN = Path(__file__).parents[2] / "golden" / "atc"
RECORDED = json.loads((GOLDEN / "golden.json").read_text())
SIZE_PARAMETERS = ("mode", "max_ratio", "kind", "fractal_bytes")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def device_data(name):
    codes = np.load(GOLDEN / f"{name}.npy")
    if RECORDED[name]["layout"] == "flat":
        return codes.tobytes() + b"\0" * (-codes.nbytes % 512)
    return atc.device_layout(codes, "conv" if RECORDED[name]["layout"] == "conv" else "fc").tobytes()


def parameters(result):
    return {
        "mode": result["mode"],
        "max_ratio": result["max_ratio"],
        "tight": result["tight"],
        "init_offset": result["init_offset"],
        "kind": result["type"],
        "fractal_bytes": result["fractal"],
    }


def size_parameters(given):
    return {name: given[name] for name in SIZE_PARAMETERS}


def readable(name, result):
    tight = "tight" if result["tight"] else "loose"
    return (
        f"{name}-{result['mode']}-{result['max_ratio']}-{tight}-{result['init_offset']}"
        f"-type{result['type']}-{result['fractal']}"
    )


every_recorded = pytest.mark.parametrize(
    ("name", "result"),
    [
        pytest.param(name, result, id=readable(name, result))
        for name, entry in RECORDED.items()
        for result in entry["results"]
    ],
)


@every_recorded
def test_recorded_answers(name, result):
    data = device_data(name)
    found = atc.compress(data, **parameters(result))
    sizes = found.fractal_sizes
    assert sizes[:80] == result.get("fractal_sizes", sizes[:80])
    assert sizes[:40] == result.get("fractal_sizes_head", sizes[:40])
    assert sha256(np.array(sizes, dtype="<u4").tobytes()) == result["sizes_sha256"]
    assert found.size_bytes == result["size"]
    assert len(found.data) == result["data_len"]
    assert sha256(found.data) == result["data_sha256"]
    assert sha256(found.index) == result["index_sha256"]
    assert atc.compressed_bytes(data, **size_parameters(parameters(result))) == result["size"]
    assert atc.decompress(found, **parameters(result)) == data


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_layouts_and_judgements(name):
    data, entry = device_data(name), RECORDED[name]
    assert len(data) == entry["device_bytes"]
    assert sha256(data) == entry["device_sha256"]
    size = atc.compressed_bytes(data, fractal_bytes=judge_fractal_bytes(len(data)))
    assert np.float32(size) / np.float32(len(data)) == np.float32(entry["judge"]["ratio_f32"])
    assert is_kept(size, len(data)) == entry["judge"]["kept_at_0.8"]


def test_ranking_is_that_of_the_recorded_sort(monkeypatch):
    heaps = []

    def watched(*arguments):
        heaps.append(arguments)
        _heap_sort(*arguments)

    monkeypatch.setattr("autonuq.quant.atc.ranking._heap_sort", watched)
    recorded = np.load(GOLDEN / "sort.npz")
    for counts, ranking in zip(recorded["counts"], recorded["rankings"], strict=True):
        assert np.array_equal(rank_bytes(counts), ranking)
    assert heaps, "no row came to the heap sort"


@st.composite
def compressions(draw):
    """Data with runs of one byte between others, and parameters."""
    fractal_bytes = 512 * draw(st.sampled_from([1, 2, 3, 5, 8, 13, 64]))
    size = fractal_bytes * draw(st.integers(1, 4 if fractal_bytes < 8192 else 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(0, 256, draw(st.sampled_from([1, 2, 3, 4, 5, 16, 23, 36, 37, 64, 256])))
    shares = rng.dirichlet(np.full(values.size, draw(st.sampled_from([0.1, 1.0, 10.0]))))
    data = rng.choice(values, size, p=shares)
    is_run = rng.random(size) < draw(st.sampled_from([0.0, 0.02, 0.1]))
    for start in np.flatnonzero(is_run):
        data[start : start + rng.integers(1, 140)] = values[0]
    options = {
        "mode": draw(st.sampled_from("AB")),
        "max_ratio": draw(st.sampled_from([64, 32])),
        "tight": draw(st.booleans()),
        "init_offset": draw(st.sampled_from([0, 1, 127, 25600])),
        "kind": draw(st.sampled_from([0, 1])),
        "fractal_bytes": fractal_bytes,
    }
    return data.astype(np.uint8).tobytes(), options


@settings(max_examples=200, deadline=None)
@given(compressions())
def test_decompressing_gives_the_data_back(case):
    data, options = case
    found = atc.compress(data, **options)
    assert atc.decompress(found) == data
    assert atc.compressed_bytes(data, **size_parameters(options)) == found.size_bytes
    assert len(found.data) == (found.size_bytes if options["tight"] else len(data))
    assert all(0 < size <= options["fractal_bytes"] for size in found.fractal_sizes)


@settings(max_examples=40, deadline=None)
@given(compressions())
def test_sizes_are_those_of_a_coder_that_goes_symbol_by_symbol(case):
    data, options = case
    sizes = atc.compress(data, **options).fractal_sizes
    assert sizes == plain_sizes(data, **size_parameters(options))


def plain_sizes(data, *, mode, max_ratio, kind, fractal_bytes):
    """Code lane by lane and symbol by symbol, as the description has it."""
    engines = {"A": 4, "B": 1}[mode]
    ranking = rank_bytes(np.bincount(np.frombuffer(data, np.uint8), minlength=256)).tolist()
    bounds = [(4, 3), (22, 6), (36, 9)] if kind == 0 else [(2, 3), (19, 6), (34, 9)]
    bits = {value: next((b for end, b in bounds if rank < end), 12) for rank, value in enumerate(ranking)}
    runs = [(2, 3), (1, 3)] if kind == 0 else [(9, 6), (4, 3), (3, 3), (2, 3), (1, 3)]
    sizes = []
    for start in range(0, len(data), fractal_bytes):
        fractal = data[start : start + fractal_bytes]
        lanes = [
            b"".join(fractal[i : i + max_ratio] for i in range(max_ratio * e, fractal_bytes, max_ratio * engines))
            for e in range(engines)
        ]
        lengths = [plain_length(lane, bits, ranking[0], runs, max_ratio) for lane in lanes]
        sizes.append(fractal_bytes if None in lengths else 32 * engines * -(-max(lengths) // 32))
    return sizes


def plain_length(lane, bits, most_frequent, runs, window):
    """Return the bytes of a coded lane, or None."""
    place = packets = used = 0
    while place < len(lane):
        if 40 + 8 * packets >= len(lane):
            return None
        packets, used, end = packets + 1, 0, min(place + window, len(lane))
        while place < end:
            run = 0
            while place + run < end and lane[place + run] == most_frequent:
                run += 1
            codes = [(n, b) for n, b in runs if n <= run] if run else [(1, bits[lane[place]])]
            if run >= 9 and codes[0][0] == 9 and used + codes[0][1] > 64:
                codes = codes[1:]
            if used + codes[0][1] > 64:
                break
            place, used = place + codes[0][0], used + codes[0][1]
    if used <= 54:
        return 40 + 8 * (packets - 1) + used // 8 + 2
    return None if 40 + 8 * packets >= len(lane) else 40 + 8 * packets + 2


def example(**options):
    rng = np.random.default_rng(3)
    data = np.rint(rng.normal(0, 4, 8192)).astype(np.int8)
    return data, atc.compress(data, **{"fractal_bytes": 2048, **options})


@pytest.mark.parametrize("mode", "AB")
@pytest.mark.parametrize("tight", [True, False])
def test_any_flipped_bit_of_coded_data_is_seen(mode, tight):
    data, found = example(mode=mode, tight=tight)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(found.data), 150, replace=False).tolist():
        damaged = bytearray(found.data)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(QuantizationError, match=r"fractal \d+"):
            atc.decompress(atc.Compressed(bytes(damaged), found.index, found.format))


@pytest.mark.parametrize("mode", "AB")
@pytest.mark.parametrize("tight", [True, False])
def test_any_flipped_bit_of_the_index_is_seen(mode, tight):
    _, found = example(mode=mode, tight=tight)
    for bit in range(8 * len(found.index)):
        damaged = bytearray(found.index)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(QuantizationError, match=r"fractal \d+"):
            atc.decompress(atc.Compressed(found.data, bytes(damaged), found.format))


def test_truncated_data_names_the_fractal_that_is_cut():
    _, found = example()
    start = sum(found.fractal_sizes[:2])
    with pytest.raises(QuantizationError, match="fractal 2"):
        atc.decompress(atc.Compressed(found.data[: start + 5], found.index, found.format))
    with pytest.raises(QuantizationError, match="fractal 3"):
        atc.decompress(atc.Compressed(found.data + b"\0", found.index, found.format))
    for index in (b"", found.index[:-1]):
        with pytest.raises(QuantizationError, match="index"):
            atc.decompress(atc.Compressed(found.data, index, found.format))


def test_a_lane_without_its_end_is_refused():
    data, found = example()
    emptied = found.data[:40] + b"\0" * (len(found.data) - 40)
    with pytest.raises(QuantizationError, match="fractal 0"):
        atc.decompress(atc.Compressed(emptied, found.index, found.format))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mode", {"mode": "C"}),
        ("max_ratio", {"max_ratio": 16}),
        ("kind", {"kind": 2}),
        ("init_offset", {"init_offset": -1}),
        ("init_offset", {"init_offset": 1 << 39}),
        ("init_offset", {"init_offset": 1 << 38, "mode": "B"}),
        ("fractal_bytes", {"fractal_bytes": 0}),
        ("fractal_bytes", {"fractal_bytes": 513}),
        ("fractal_bytes", {"fractal_bytes": 33280}),
        ("data", {"fractal_bytes": 1536}),
    ],
)
def test_misuse_names_the_parameter(name, options):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        atc.compress(bytes(4096), **{"fractal_bytes": 512, **options})


def test_nothing_and_wide_arrays_cannot_be_compressed():
    with pytest.raises(ValueError, match="'data' parameter"):
        atc.compress(b"", fractal_bytes=512)
    with pytest.raises(TypeError, match="int8"):
        atc.compress(np.zeros(512, np.float32), fractal_bytes=512)


def test_data_of_another_format_than_demanded_is_refused():
    with pytest.raises(ValueError, match="'max_ratio' parameter"):
        atc.decompress(example()[1], max_ratio=32)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (17, 3, 2, 3), (16, 32, 1, 1), (33, 65, 1, 2), (5, 70), (100, 31)])
def test_device_layout(shape):
    codes = np.random.default_rng(1).integers(-128, 128, shape).astype(np.int8)
    outputs, inputs, height, width = (*shape, 1, 1)[:4]
    tall = -(-outputs // 16)
    expected = np.zeros(512 * -(-inputs // 32) * height * width * tall, np.int8)
    for (n, c, h, w), code in np.ndenumerate(codes.reshape(outputs, inputs, height, width)):
        expected[(((c // 32 * height + h) * width + w) * tall + n // 16) * 512 + n % 16 * 32 + c % 32] = code
    found = atc.device_layout(codes, "conv" if len(shape) == 4 else "fc")
    assert np.array_equal(found, expected)
    assert device_bytes(shape) == expected.size
    assert np.array_equal(restore_layout(found.tobytes(), shape), codes)


def test_device_layout_refuses_other_arrays():
    with pytest.raises(ValueError, match="'kind' parameter"):
        atc.device_layout(np.zeros((1, 1), np.int8), "nd")
    with pytest.raises(ValueError, match="'codes' parameter"):
        atc.device_layout(np.zeros((1, 1), np.int8), "conv")
    with pytest.raises(TypeError, match="int8"):
        atc.device_layout(np.zeros((1, 1)), "fc")
