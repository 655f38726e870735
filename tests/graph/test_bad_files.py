"""Damaged and hostile model files: each gives a ModelError that names file, layer and fault, and costs little.

The campaign (`studies/bench/campaign`, part `mutations`) does the same to many thousands; what it found is kept here.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autonuq.errors import ModelError
from autonuq.graph.files import load_graph
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.passes import capabilities, fold_batch_norm
from autonuq.graph.wire import delimited, encode_varints, varint

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }\n'
FC = 'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3 } }\n'
HUGE = 2**63 - 1


def relu(name, bottom, top):
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{top}" }}\n'


def shaped(*dims):
    return INPUT.replace("dim: 1 dim: 2 dim: 5 dim: 5", " ".join(f"dim: {dim}" for dim in dims))


PROTOTXTS = {
    "empty": ("", None, "has no input"),
    "not text": (b"\x0a\x04net\xff", None, "is not text"),
    "UTF-16": (INPUT.encode("utf-16"), None, "is UTF-16 text.*save it as UTF-8"),
    "NUL": (INPUT + "\0", None, "is not text, so no prototxt: byte 0x00 at position"),
    "nested layers": ("layer { " * 5000, None, "syntax error in line 1, column 9"),
    "nested braces": (INPUT + "layer { name: " + "{ " * 5000, None, "syntax error in line 2"),
    "nested extensions": ("[a.b/c.d] { " * 5000, None, "syntax error"),
    "string without end": ('layer { name: "' + "a" * 10**6, None, "String missing ending quote"),
    "unknown field": (INPUT.replace("type", "tipe"), None, 'line 1, column 22.*no field named "tipe"'),
    "field given twice": (INPUT.replace("name:", 'name: "a" name:'), None, 'multiple "name" fields'),
    "number out of range": (shaped(2**64), None, "out of range"),
    "number of 5000 digits": (shaped("9" * 5000), None, "syntax error"),
    "negative unsigned": (INPUT + FC.replace("3 }", "-3 }"), None, "out of range"),
    "no type": (INPUT + 'layer { name: "a" bottom: "data" top: "a" }', "a", "needs a name and a type"),
    "unknown type": (INPUT + relu("a", "data", "a").replace("ReLU", "Relu"), "a", "did you mean 'ReLU'"),
    "duplicate top": (INPUT + relu("a", "data", "x") + relu("b", "data", "x"), "b", "'x', which another layer made"),
    "missing bottom": (INPUT + relu("a", "nowhere", "a"), "a", r"'nowhere', which no layer before it makes$"),
    "cycle": (INPUT + relu("a", "c", "b") + relu("b", "b", "c"), "a", "layer 'b' makes it later: a cycle"),
    "own top": (INPUT + relu("a", "a", "a"), "a", "it makes it itself: a cycle"),
    "too few bottoms": (INPUT + FC.replace('bottom: "data"', ""), "fc", "takes 1 bottoms, got 0"),
    "too many tops": (INPUT + FC.replace('top: "fc"', 'top: "a" top: "b"'), "fc", "makes 1 tops, but 2 are named"),
    "data layer": ('layer { name: "a" type: "Data" top: "a" }', "a", "reads a data set"),
    "input without shape": ('layer { name: "a" type: "Input" top: "a" }', "a", "1 tops but 0 shapes"),
    "zero dimension": (shaped(1, 0), "data", r"\[1, 0\]; every dimension must be positive"),
    "negative dimension": (shaped(1, -3), "data", "must be positive"),
    "huge dimension": (shaped(1, HUGE), "data", r"below 2\*\*31"),
    "huge input": (shaped(2**20, 2**20), "data", "exceeds 2147483647 values"),
    "33 axes": (shaped(*[1] * 33), "data", "33 dimensions"),
    "huge layer": (INPUT + FC.replace("3 }", "4294967295 }"), "fc", "exceeds 2147483647 values"),
    "zero outputs": (INPUT + FC.replace("3 }", "0 }"), "fc", "num_output must be positive"),
    "axis outside": (INPUT + FC.replace("3 }", "3 axis: 7 }"), "fc", "axis 7 is outside"),
    "scale beyond": (
        INPUT + 'layer { name: "s" type: "Scale" bottom: "data" top: "s" scale_param { num_axes: 9 } }',
        "s",
        "covers 9 axes",
    ),
    "mixed formats": (INPUT + 'layers { name: "a" type: RELU }', None, "mixes 'layer' and 'layers'"),
    "too few input_dim": ('input: "data" input_dim: 1 input_dim: 2', None, "2 'input_dim' values; four each"),
}


@pytest.mark.parametrize(("text", "layer", "words"), PROTOTXTS.values(), ids=PROTOTXTS)
def test_bad_prototxts(tmp_path, text, layer, words):
    path = tmp_path / "bad.prototxt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=words) as caught:
        load_graph(path)
    assert (caught.value.path, caught.value.layer) == (path, layer)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def field(number, *chunks):
    return b"".join(delimited(number, chunks))


def number(key, value):
    return varint(key << 3) + varint(value)


def blob(*parts):
    return field(7, *parts)


def dims(*shape):
    return field(7, field(1, encode_varints(np.array(shape))))


def fc(*parts, name=b"fc"):
    return field(100, field(1, name), *parts)


WEIGHT = blob(dims(3, 50), field(5, bytes(600)))
BIAS = blob(dims(3), field(5, bytes(12)))
GOOD = fc(WEIGHT, BIAS)

CAFFEMODELS = {
    "empty": (b"", None, "holds no layers"),
    "text": (b'name: "net"', None, "damaged or no caffemodel"),
    "no layer": (field(1, b"net"), None, "holds no layers"),
    "other layers": (field(100, field(1, b"other")), "fc", "no layer of this name"),
    "truncated": (GOOD[:-5], None, "field 100 at byte 0 promises 5 bytes more"),
    "truncated behind a layer": (GOOD + GOOD[:-5], None, "the last whole layer is 'fc'"),
    "length beyond the file": (varint(100 << 3 | 2) + varint(HUGE) + GOOD, None, "promises"),
    "blob beyond its layer": (fc(varint(7 << 3 | 2) + varint(700) + bytes(600)), "fc", "field 7.*promises 100 bytes"),
    "data beyond their blob": (fc(blob(varint(5 << 3 | 2) + varint(20) + bytes(12))), "fc", "promises 8 bytes"),
    "group": (fc(b"\x0b\x0c"), "fc", "a group"),
    "group outside": (b"\x0b\x0c" + GOOD, None, "a group"),
    "field number 0": (fc(b"\x00\x00"), "fc", "field number 0"),
    "wire type 7": (fc(b"\x0f"), "fc", "wire type 7"),
    "endless number": (fc(b"\xff" * 20), "fc", "more than 10 bytes"),
    "other bytes in the name": (fc(WEIGHT, BIAS, name=b"f\xc3\x28"), "fc", "no layer of this name"),
    "one blob": (fc(WEIGHT), "fc", r"has 1 blobs, but the prototxt asks for 2 \(\(3, 50\), \(3,\)\)"),
    "three blobs": (fc(WEIGHT, BIAS, BIAS), "fc", "has 3 blobs"),
    "too many blobs": (fc(blob() * 10_000), "fc", "10000 blobs; no layer type has more"),
    "other shape": (fc(blob(dims(3, 49), field(5, bytes(588))), BIAS), "fc", r"\(3, 49\).*asks for \(3, 50\)"),
    "negative shape": (fc(blob(dims(-3, 50), field(5, bytes(600))), BIAS), "fc", r"\(-3, 50\)"),
    "huge shape": (fc(blob(dims(HUGE, HUGE), field(5, bytes(600))), BIAS), "fc", str(HUGE)),
    "negative legacy shape": (fc(blob(number(1, 2**64 - 3), field(5, bytes(600))), BIAS), "fc", r"\(-3, 0, 0, 0\)"),
    "no shape": (fc(blob(field(5, bytes(600))), BIAS), "fc", r"has shape \(\)"),
    "shape of 33 axes": (fc(blob(dims(*[1] * 33)), BIAS), "fc", "more than 32 axes"),
    "shape of a million axes": (fc(blob(dims(*[1] * 10**6)), BIAS), "fc", "more than 32 axes"),
    "shape in 40 pieces": (fc(blob(dims(1) * 40), BIAS), "fc", "more than 32 axes"),
    "damaged shape": (fc(blob(field(7, field(1, b"\x80"))), BIAS), "fc", "end in the middle"),
    "no data": (fc(blob(dims(3, 50)), BIAS), "fc", r"\(3, 50\) holds 0 values instead of 150"),
    "too few data": (fc(blob(dims(3, 50), field(5, bytes(596))), BIAS), "fc", "holds 149 values"),
    "too many data": (fc(blob(dims(3, 50), field(5, bytes(600)) * 2), BIAS), "fc", "holds 300 values"),
    "half a float": (fc(blob(dims(3, 50), field(5, bytes(599))), BIAS), "fc", "599 bytes .* float32"),
    "half a double": (fc(blob(dims(3, 50), field(8, bytes(1199))), BIAS), "fc", "1199 bytes .* float64"),
    "packed and unpacked": (fc(blob(dims(3), field(5, bytes(3)), b"\x2d" + bytes(4))), "fc", "7 bytes"),
    "unknown raw type": (fc(blob(dims(3), number(10, 9), field(12, bytes(6)))), "fc", "raw_data of type 9"),
    "data in many pieces": (fc(blob(dims(3), (b"\x2d" + bytes(4) + b"\x40\x01") * 2000), BIAS), "fc", "1000 pieces"),
    "float field of 8 bytes": (fc(blob(dims(3, 50), b"\x29" + bytes(8)), BIAS), "fc", "holds 0 values"),
}


@pytest.fixture
def prototxt(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(INPUT + FC)
    return path


@pytest.mark.parametrize(("data", "layer", "words"), CAFFEMODELS.values(), ids=CAFFEMODELS)
def test_bad_caffemodels(prototxt, tmp_path, data, layer, words):
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=words) as caught:
        load_graph(prototxt, path)
    assert caught.value.layer == layer
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_good_one_loads(prototxt, tmp_path):
    (tmp_path / "good.caffemodel").write_bytes(GOOD)
    assert [each.shape for each in load_graph(prototxt, tmp_path / "good.caffemodel").by_name["fc"].blobs] == [
        (3, 50),
        (3,),
    ]


@pytest.mark.parametrize("which", ["prototxt", "caffemodel"])
def test_missing_files_and_folders(prototxt, tmp_path, which):
    for path in (tmp_path / "nothing", tmp_path):
        files = [path] if which == "prototxt" else [prototxt, path]
        with pytest.raises(ModelError, match="cannot be read") as caught:
            load_graph(*files)
        assert caught.value.path == path


# cost

PROMISES = {
    "input of 2**30 values": (shaped(2**15, 2**15), GOOD),
    "weights of 2**31 - 1 values": (INPUT + FC.replace("3 }", "42949672 }"), fc(blob(dims(42949672, 50)), BIAS)),
    "huge legacy shape": (INPUT + FC, fc(blob(*(number(axis, 2**31 - 1) for axis in range(1, 5))), BIAS)),
    "many small numbers": (INPUT + FC, fc(blob(dims(3, 50), field(11, bytes(10**6))), BIAS)),
    "many unpacked pieces": (INPUT + FC, fc(blob(dims(3), (b"\x2d" + bytes(4) + b"\x40\x01") * 20_000), BIAS)),
    "many layers": (INPUT + FC, field(100, b"") * 20_000 + GOOD),
}


@pytest.mark.parametrize(("text", "data"), PROMISES.values(), ids=PROMISES)
def test_a_file_costs_no_more_than_it_holds(tmp_path, text, data):
    model, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    model.write_text(text)
    weights.write_bytes(data)
    load_or_refuse(model, weights)  # imports and caches
    tracemalloc.start()
    load_or_refuse(model, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * (len(text) + len(data)) + 2**20


def load_or_refuse(model, weights):
    """Load a pair and use it; only a ModelError of one of the files is let pass."""
    try:
        graph = load_graph(model, weights)
        capabilities(graph)
        fold_batch_norm(graph)
    except ModelError as error:
        assert error.path in (model, weights)
        return False
    return True


# mutations

QUIET = settings(
    max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
POSITIONS = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(st.tuples(POSITIONS, st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4)


def edited(data, edits):
    """Replace some bytes from each position on by others."""
    for position, removed, added in edits:
        start = int(position * len(data))
        data = data[:start] + added + data[start + removed :]
    return data


@QUIET
@given(edits=EDITS)
def test_any_edit_of_a_caffemodel_loads_or_is_refused(tiny, edits):
    path = tiny / "edited.caffemodel"
    path.write_bytes(edited((tiny / "tiny.caffemodel").read_bytes(), edits))
    load_or_refuse(tiny / "tiny.prototxt", path)


@QUIET
@given(edits=EDITS)
def test_any_edit_of_a_prototxt_loads_or_is_refused(tiny, edits):
    path = tiny / "edited.prototxt"
    path.write_bytes(edited((tiny / "tiny.prototxt").read_bytes(), edits))
    load_or_refuse(path, tiny / "tiny.caffemodel")


WORDS = st.sampled_from(
    [
        *(f'"{name}"' for name in sorted(LAYER_TYPES)),
        "-1",
        "0",
        "7",
        str(2**31),
        str(2**64),
        "nan",
        "1e999",
        "{",
        "}",
        '"data"',
    ]
)


@QUIET
@given(words=st.lists(st.tuples(POSITIONS, WORDS), min_size=1, max_size=3))
def test_any_other_words_load_or_are_refused(tiny, words):
    tokens = (tiny / "tiny.prototxt").read_text().split()
    for position, word in words:
        tokens[int(position * len(tokens))] = word
    path = tiny / "edited.prototxt"
    path.write_text(" ".join(tokens))
    load_or_refuse(path, tiny / "tiny.caffemodel")
