"""Prototxt and caffemodel files: every spelling is read, and what is written is read back the same."""

import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format

from autonuq import atomic
from autonuq.atomic import replace_file
from autonuq.errors import ModelError, QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import attach_weights, load_graph, write_caffemodel, write_model, write_prototxt
from autonuq.graph.model import TRAIN
from autonuq.graph.record import Factors, load_record, write_record
from autonuq.graph.wire import delimited, encode_varints, read_fields, varint

NETWORKS = [
    "cifar10-quick",
    "hyperlpr-segfree-inception",
    "lenet-fashion",
    "lenet-mnist",
    "mtcnn-det3",
    "resnet20-fashion",
    "squeezenet-v1.0",
    "ultraface-rfb-320",
    "wechat-detect",
]
INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }\n'
CONV = 'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { %s } }\n'


def message(number, *chunks):
    return b"".join(delimited(number, chunks))


def number(field, value):
    return varint(field << 3) + varint(value)


def dims(*shape):
    return message(7, message(1, encode_varints(np.array(shape))))


def legacy(*shape):
    return b"".join(number(field, size) for field, size in enumerate(shape, 1))


def layer(name, *blobs):
    return message(100, message(1, name.encode()), *(message(7, *blob) for blob in blobs))


def floats(values):
    return message(5, np.asarray(values, "<f4").tobytes())


@pytest.fixture
def prototxt(tmp_path):
    def write(text):
        path = tmp_path / "net.prototxt"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def weights(tmp_path):
    def write(*parts):
        path = tmp_path / "net.caffemodel"
        path.write_bytes(b"".join(parts))
        return path

    return write


# prototxt


def test_what_is_written_is_read_back(tiny, tmp_path):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    write_model(graph, tmp_path / "back.prototxt", tmp_path / "back.caffemodel")
    back = load_graph(tmp_path / "back.prototxt", tmp_path / "back.caffemodel")
    assert back.name == graph.name
    assert [layer.message for layer in back.layers] == [layer.message for layer in graph.layers]
    for old, new in zip(graph.layers, back.layers, strict=True):
        assert [blob.tobytes() for blob in old.blobs] == [blob.tobytes() for blob in new.blobs]
        assert [blob.shape for blob in old.blobs] == [blob.shape for blob in new.blobs]


def test_the_caffemodel_holds_the_structure_too(tiny, tmp_path):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    net = caffe_pb2.NetParameter.FromString((tiny / "tiny.caffemodel").read_bytes())
    assert [layer.name for layer in net.layer] == [layer.name for layer in graph.layers]
    assert [tuple(layer.bottom) for layer in net.layer] == [layer.bottoms for layer in graph.layers]


@pytest.mark.parametrize(
    "text",
    [
        'input: "data" input_dim: 1 input_dim: 2 input_dim: 5 input_dim: 5',
        'input: "data" input_shape { dim: 1 dim: 2 dim: 5 dim: 5 }',
        INPUT,
    ],
    ids=["input_dim", "input_shape", "Input layer"],
)
def test_inputs_have_three_spellings(prototxt, text):
    graph = load_graph(prototxt(text))
    assert graph.inputs == {"data": (1, 2, 5, 5)}
    again = load_graph(write_prototxt(graph, prototxt("")))
    assert again.layers[0].type == "Input"
    assert again == graph


def test_one_shape_stands_for_all_inputs(prototxt):
    text = 'layer { name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: 3 } } }'
    assert load_graph(prototxt(text)).inputs == {"a": (3,), "b": (3,)}


def test_phase_decides_which_layers_there_are(prototxt):
    text = INPUT + (
        'layer { name: "d" type: "Dropout" bottom: "data" top: "d" include { phase: TRAIN } }\n'
        'layer { name: "e" type: "ReLU" bottom: "data" top: "e" exclude { phase: TRAIN } }\n'
        'layer { name: "f" type: "ReLU" bottom: "data" top: "f" include { stage: "deploy" } }\n'
    )
    path = prototxt(text)
    assert list(load_graph(path).by_name) == ["data", "e"]
    assert list(load_graph(path, phase=TRAIN).by_name) == ["data", "d"]
    assert list(load_graph(path, stages=["deploy"]).by_name) == ["data", "e", "f"]


def test_v1_is_read(prototxt, weights):
    path = prototxt(
        'input: "data" input_dim: 1 input_dim: 2 input_dim: 5 input_dim: 5\n'
        'layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2\n'
        "         convolution_param { num_output: 3 kernel_size: 3 } }\n"
    )
    values = np.arange(54, dtype=np.float32)
    blobs = message(6, legacy(3, 2, 3, 3), floats(values)) + message(6, legacy(1, 1, 1, 3), floats([1, 2, 3]))
    graph = load_graph(path, weights(message(2, message(4, b"conv"), blobs)))
    conv = graph.by_name["conv"]
    assert (conv.type, [spec.lr_mult for spec in conv.message.param]) == ("Convolution", [1, 2])
    assert (conv.blobs[0] == values.reshape(3, 2, 3, 3)).all()
    assert conv.blobs[1].shape == (3,)


# blobs


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ((3, 2, 3, 3), (3, 2, 3, 3)),
        ((1, 1, 3, 4), (3, 4)),
        ((1, 1, 1, 3), (3,)),
        ((1, 1, 1, 1), ()),
    ],
)
def test_legacy_shapes_are_padded_in_front(weights, stored, expected):
    path = weights(layer("a", (legacy(*stored), floats(np.zeros(np.prod(stored))))))
    (blob,) = load_caffemodel(path)["a"]
    assert blob.legacy
    assert blob.fits(expected)
    assert not blob.fits((*expected, 2))
    assert not blob.fits((2, *expected))


def test_float_data_are_views_of_the_file(tiny):
    stored = load_caffemodel(tiny / "tiny.caffemodel")
    arrays = [blob.values for blobs in stored.values() for blob in blobs]
    graph = attach_weights(load_graph(tiny / "tiny.prototxt"), stored)
    assert len({id(memory(array)) for array in arrays}) == 1
    assert all(memory(blob) is memory(arrays[0]) for layer in graph.layers for blob in layer.blobs)
    assert not any(array.flags.writeable for array in arrays)


def memory(array):
    """Return the bytes that an array is a view of."""
    base = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base.obj


VALUES = np.array([0.5, -1.25, 3.0, 1e-3], np.float32)
SPELLINGS = {
    "packed float": (floats(VALUES),),
    "packed float in two pieces": (floats(VALUES[:1]), floats(VALUES[1:])),
    "unpacked float": tuple(b"\x2d" + value.tobytes() for value in VALUES),
    "packed and unpacked float": (floats(VALUES[:2]), *(b"\x2d" + value.tobytes() for value in VALUES[2:])),
    "packed double": (message(8, VALUES.astype("<f8").tobytes()),),
    "unpacked double": tuple(b"\x41" + value.tobytes() for value in VALUES.astype("<f8")),
    "raw float16": (number(10, 2), message(12, VALUES.astype("<f2").tobytes())),
    "raw float32": (number(10, 1), message(12, VALUES.tobytes())),
    "raw float64": (number(10, 0), message(12, VALUES.astype("<f8").tobytes())),
}


@pytest.mark.parametrize("data", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_data_is_read_as_float32(weights, data):
    (blob,) = load_caffemodel(weights(layer("a", (dims(4), *data))))["a"]
    assert blob.values.dtype == np.float32
    assert blob.values == pytest.approx(VALUES, rel=1e-3)


@pytest.mark.parametrize("data", SPELLINGS.values(), ids=SPELLINGS)
def test_new_values_replace_every_spelling(weights, tmp_path, data):
    before, behind = number(200, 7), message(6, b"diff") + message(300, b"unknown")
    path = weights(number(55, 3), layer("a", (before, dims(4), *data, behind)), layer("b"), message(77, b"more"))
    stored, out = load_caffemodel(path), tmp_path / "out"
    stored.write(out, {"a": [stored["a"][0].values.copy()]})
    assert out.read_bytes() == path.read_bytes()
    stored.write(out, {"a": [VALUES + 1]})
    changed = layer("a", (before, dims(4), floats(VALUES + 1), behind))
    assert out.read_bytes() == number(55, 3) + changed + layer("b") + message(77, b"more")


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint64])
def test_integer_blobs_come_back(prototxt, tmp_path, dtype):
    graph = load_graph(prototxt(INPUT + CONV % "num_output: 3 kernel_size: 1 bias_term: false"))
    values = np.array([-128, -1, 0, 1, 5, 127]).astype(dtype).reshape(3, 2, 1, 1)
    layers = [each.with_(blobs=[values] if each.name == "conv" else []) for each in graph.layers]
    path = write_caffemodel(graph.with_layers(layers), tmp_path / "int.caffemodel")
    (blob,) = attach_weights(graph, path).by_name["conv"].blobs
    assert blob.dtype == dtype
    assert (blob == values).all()


def test_v0_blobs_can_be_replaced(weights, tmp_path):
    def v0(values):
        inner = message(1, b"old") + message(2, b"conv") + message(50, legacy(1, 1, 1, 4), floats(values))
        return message(2, message(1, inner), message(3, b"top"))

    stored = load_caffemodel(weights(v0(VALUES)))
    assert list(stored) == ["old"]
    assert stored.write(tmp_path / "out", {"old": [VALUES * 2]}).read_bytes() == v0(VALUES * 2)


def test_of_two_layers_of_a_name_the_last_one_counts(weights):
    first, last = (layer("a", (dims(1), floats([value]))) for value in (1, 2))
    stored = load_caffemodel(weights(first, layer("b"), last))
    assert list(stored) == ["b", "a"]
    assert stored["a"][0].values == [2]


def test_layers_that_the_prototxt_lacks_are_ignored(tiny, tmp_path):
    data = (tiny / "tiny.caffemodel").read_bytes() + layer("unused", (dims(7), floats(range(7))))
    (tmp_path / "more.caffemodel").write_bytes(data)
    assert "unused" not in load_graph(tiny / "tiny.prototxt", tmp_path / "more.caffemodel").by_name


# writing back


@pytest.mark.parametrize("name", NETWORKS)
def test_real_caffemodels_come_back_byte_for_byte(shared, tmp_path, name):
    path, out = shared / "models" / name / "weights.caffemodel", tmp_path / "out"
    stored = load_caffemodel(path)
    stored.write(out)
    assert out.read_bytes() == path.read_bytes()
    stored.write(out, {name: [blob.values.copy() for blob in blobs] for name, blobs in stored.items()})
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_new_values_of_one_blob_change_its_data_only(shared, tmp_path, name):
    path = shared / "models" / name / "weights.caffemodel"
    stored = load_caffemodel(path)
    chosen = next(name for name, blobs in stored.items() if any(blob.values.size > 1 for blob in blobs))
    new = [blob.values + 1 if index == 0 else blob.values for index, blob in enumerate(stored[chosen])]
    out = load_caffemodel(stored.write(tmp_path / "out", {chosen: new}))
    assert list(out) == list(stored)
    for layer_name, blobs in stored.items():
        wanted = new if layer_name == chosen else [blob.values for blob in blobs]
        assert all((blob.values == values).all() for blob, values in zip(out[layer_name], wanted, strict=True))
    assert without_data(out, tmp_path / "out", chosen) == without_data(stored, path, chosen)


def without_data(stored, path, name):
    """Return what stands before a layer, in its first blob besides the data, and behind that blob."""
    blob, data = stored[name][0], path.read_bytes()
    (outer,) = (field for field in read_fields(memoryview(data)) if field.start < blob.field.start < field.end)
    first, last = blob.data[0][0], blob.data[-1][1]
    return data[: outer.key], data[blob.field.start : first] + data[last : blob.field.end], data[blob.field.end :]


def test_a_file_can_be_written_over_itself(tiny):
    stored = load_caffemodel(tiny / "tiny.caffemodel")
    stored.write(tiny / "tiny.caffemodel", {"fc": [blob.values * 2 for blob in stored["fc"]]})
    again = load_caffemodel(tiny / "tiny.caffemodel")
    assert (again["fc"][0].values == stored["fc"][0].values * 2).all()


def test_only_layers_of_the_file_can_be_written(tiny, tmp_path):
    stored = load_caffemodel(tiny / "tiny.caffemodel")
    with pytest.raises(ModelError, match="'nobody'.*is not in the file"):
        stored.write(tmp_path / "out", {"nobody": []})
    with pytest.raises(ValueError, match=r"'fc' has blobs of \[1280, 10\] values, got blobs of \[1280\]"):
        stored.write(tmp_path / "out", {"fc": [stored["fc"][0].values]})
    assert not (tmp_path / "out").exists()


# atomic files


def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        path = replace_file(tmp_path / "file", [b"abc"])
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_threads_may_write_while_others_make_files(tmp_path):
    old = os.umask(0o077)
    modes = []
    try:
        writers = [threading.Thread(target=lambda: [replace_file(tmp_path / "a", [b"x"]) for _ in range(50)])]
        writers[0].start()
        for index in range(300):
            path = tmp_path / f"file{index}"
            path.touch()
            modes.append(stat.S_IMODE(path.stat().st_mode))
        writers[0].join()
    finally:
        os.umask(old)
    assert set(modes) == {0o600}


@pytest.mark.parametrize("opened_s", [0.1, 10.0])
def test_on_windows_a_file_that_somebody_reads_is_waited_for(opened_s, tmp_path, monkeypatch):
    """By a clock of its own. Elsewhere a refusal means that the folder is not ours, and waiting is no use."""
    clock, replace = [0.0], Path.replace

    def refuse_meanwhile(path, target):
        if clock[0] < opened_s:
            raise PermissionError
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse_meanwhile)
    with pytest.raises(PermissionError):
        replace_file(tmp_path / "file", [b"old"])
    assert clock == [0] and not list(tmp_path.iterdir())
    seconds = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr(atomic, "time", seconds)
    monkeypatch.setattr(atomic, "os", SimpleNamespace(name="nt", fsync=os.fsync, scandir=os.scandir))
    if opened_s > 5:
        with pytest.raises(PermissionError):
            replace_file(tmp_path / "file", [b"new"])
        assert not list(tmp_path.iterdir())
    else:
        assert replace_file(tmp_path / "file", [b"new"]).read_bytes() == b"new"


# record files

FACTORS = Factors(
    scale_d=0.5, offset_d=-3, scale_w=(0.25, 0.125), offset_w=(0, 0), channels=3, height=4, width=5, skip_fusion=True
)


def test_records_come_back(tmp_path):
    records = {"conv": FACTORS, "fc": Factors(scale_w=(1.0,), offset_w=(0,), shift_bit=(4,), cluster=tuple(range(16)))}
    path = write_record(tmp_path / "record.txt", records, clusters=True)
    assert load_record(path) == records
    assert load_record(write_record(path, records))["fc"].cluster == ()


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("scale_d: 0", "finite and positive"),
        ("scale_d: nan", "finite and positive"),
        ("scale_w: -1 offset_w: 0", "finite and positive"),
        ("scale_d: 1 offset_d: 128", "offset_d must lie"),
        ("scale_w: 1 offset_w: 1", "offset_w must be 0"),
        ("scale_w: 1", "same length"),
        ("shift_bit: 17", "shift_bit must lie"),
        ("cluster: 1", "16 or 32 int8 values"),
        ("cluster: 300 " * 16, "16 or 32 int8 values"),
    ],
)
def test_record_rules_name_file_and_layer(tmp_path, entry, rule):
    path = tmp_path / "record.txt"
    path.write_text(f'record {{ key: "conv" value {{ {entry} }} }}')
    with pytest.raises(QuantizationError, match=rule) as caught:
        load_record(path)
    assert (caught.value.path, caught.value.layer) == (path, "conv")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'record { key: "a" } record { key: "a" }', "stands twice"),
        (b"record { kei: 1 }", "no record file"),
        (b"\xff\xfe", "no record file"),
        (None, "cannot be read"),
    ],
)
def test_bad_record_files(tmp_path, content, words):
    path = tmp_path / "record.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(QuantizationError, match=words):
        load_record(path)


def test_messages_of_the_schema_and_the_reader_agree(tiny):
    """The hand-written reader finds what the protobuf library finds."""
    net = caffe_pb2.NetParameter.FromString((tiny / "tiny.caffemodel").read_bytes())
    stored = load_caffemodel(tiny / "tiny.caffemodel")
    for message_ in net.layer:
        assert [blob.data for blob in message_.blobs] == [blob.values.tobytes() for blob in stored[message_.name]]
        assert [tuple(blob.shape.dim) for blob in message_.blobs] == [blob.shape for blob in stored[message_.name]]
    assert text_format.MessageToString(net.layer[1]).startswith('name: "conv"')
