"""Bytes that are no UTF-8 come in and out as they are."""

import random

import numpy as np
import pytest
from google.protobuf import text_format

import autonuq as nuq
from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.record import Factors, load_record, write_record
from autonuq.graph.text import decode_text, encode_text, escape_bytes, serialize, unescape_bytes

GBK, LATIN, UTF8 = "卷积".encode("gbk"), "stück".encode("latin-1"), "卷积 ü".encode()
PRIVATE = "\U0010fec4".encode()  # a real character of the range that stands for bytes
PIECES = [GBK, LATIN, UTF8, PRIVATE, b"a", b"\\", b'"', b"\n", b"\xff", b"\xf4\x8f", b"\xed\xa0\x80", b"7", b"#"]
NET = b"""
name: "NAME" # \xbe\xed \xff "quoted \\304
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 dim: 4 dim: 4 } } }
layer { name: "NAME" type: "Convolution" bottom: "x" top: "NAME" convolution_param { num_output: 3 kernel_size: 1 } }
"""


def some_bytes(count, seed=0):
    rng = random.Random(seed)
    return [b"".join(rng.choices(PIECES, k=rng.randint(0, 6))) for _ in range(count)]


def test_any_bytes_become_ordinary_text_and_bytes_again():
    for data in some_bytes(2000):
        text = decode_text(data)
        assert text.encode().decode() == text  # UTF-8 can spell it
        assert encode_text(text) == data
    assert decode_text(UTF8) == UTF8.decode()


def test_messages_keep_any_bytes():
    for data in some_bytes(300, seed=1):
        text = decode_text(data)
        message = caffe_pb2.LayerParameter(name=text, type="Python", bottom=[text, "x"])
        message.python_param.param_str = text
        message.quant_param.offset = b"\xf1"
        assert serialize(message).count(data) >= 3
        written = escape_bytes(text_format.MessageToString(message))
        again = text_format.Parse(unescape_bytes(decode_text(written.encode())), caffe_pb2.LayerParameter())
        assert again == message


@pytest.mark.parametrize("spelled", ["raw", "escaped"])
@pytest.mark.parametrize("name", [GBK, LATIN, UTF8, PRIVATE, b"a\xff"], ids=["gbk", "latin", "utf8", "private", "ff"])
def test_names_come_out_of_every_file_with_the_same_bytes(tmp_path, name, spelled):
    text = name if spelled == "raw" else b"".join(b"\\%03o" % byte for byte in name)
    (tmp_path / "net.prototxt").write_bytes(NET.replace(b"NAME", text))
    net = nuq.Net(tmp_path / "net.prototxt", nuq.pycaffe.TEST)
    (layer,) = net.params
    for blob in net.params[layer]:
        blob.data[...] = np.random.default_rng(0).normal(size=blob.shape)
    net.save(tmp_path / "net.caffemodel")
    assert (tmp_path / "net.caffemodel").read_bytes().count(name) == 3  # of the network, the layer, its top
    graph = load_graph(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    write_model(graph, tmp_path / "copy.prototxt", tmp_path / "copy.caffemodel")
    assert (tmp_path / "copy.caffemodel").read_bytes() == (tmp_path / "net.caffemodel").read_bytes()
    again = load_graph(tmp_path / "copy.prototxt", tmp_path / "copy.caffemodel")
    assert [layer.message for layer in again.layers] == [layer.message for layer in graph.layers]
    assert encode_text(again.layers[1].name) == encode_text(again.name) == name
    x = np.ones((1, 2, 4, 4), np.float32)
    assert (nuq.Net(tmp_path / "copy.prototxt", tmp_path / "copy.caffemodel").forward(x=x)[layer]
            == net.forward(x=x)[layer]).all()  # fmt: skip


def test_records_keep_any_bytes(tmp_path):
    names = [decode_text(data) for data in (GBK, LATIN, UTF8)]
    write_record(tmp_path / "record.txt", dict.fromkeys(names, Factors(scale_w=(1.0,), offset_w=(0,))))
    assert list(load_record(tmp_path / "record.txt")) == names
    (tmp_path / "raw.txt").write_bytes(b'record { key: "%b" value { scale_d: 1 offset_d: 0 } }' % GBK)
    assert list(load_record(tmp_path / "raw.txt")) == names[:1]


@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n")])
def test_marks_and_line_ends_mean_nothing(tmp_path, change):
    path = tmp_path / "net.prototxt"
    path.write_bytes(change(NET.replace(b"NAME", b"conv")))
    assert [layer.name for layer in load_graph(path).layers] == ["in", "conv"]


def test_a_bad_escape_is_a_syntax_error(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_bytes(NET.replace(b"NAME", b"\\xzz"))
    with pytest.raises(ModelError, match="syntax error in line 2"):
        load_graph(path)
