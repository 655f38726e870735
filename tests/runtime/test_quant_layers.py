"""AMCT's layer types execute as its published layers do: Quant, DeQuant, AntiQuant, IFMR (and our HFMG)."""

import numpy as np
import pytest
from google.protobuf import text_format

from autonuq import Net
from autonuq.errors import ModelError, QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import write_model
from autonuq.graph.model import Graph, Layer
from autonuq.graph.record import Factors, load_record, write_record
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream

INPUT = 'name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 1 dim: 5 } }'
VALUES = np.array(
    [[-300, -2.5, -1.5, -0.5, -0.49999997], [0, 0.49999997, 0.5, 1.5, 2.5], [126.5, 127.4, 127.5, 200, 1000]],
    np.float32,
).reshape(1, 3, 1, 5)


@pytest.fixture
def net_of(tmp_path):
    """Make a net of layers given as (text, blobs)."""

    def make(*layers):
        made = []
        for text, *blobs in [(INPUT,), *layers]:
            message = text_format.Parse(text, caffe_pb2.LayerParameter())
            made.append(Layer(message, tuple(np.asarray(blob, np.float32) for blob in blobs)))
        write_model(Graph("net", tuple(made)), tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
        return Net(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")

    return make


def c_round(values):
    """C's round() of float32 values, computed in float64 where adding 0.5 is exact."""
    wide = values.astype(np.float64)
    return np.sign(wide) * np.floor(np.abs(wide) + 0.5)


@pytest.mark.parametrize("offset", [-128, -5, 0, 127])
@pytest.mark.parametrize("scale", [1.0, 0.75, 13.0])
def test_quant_rounds_half_away_clips_and_comes_back(net_of, offset, scale):
    byte = text_format.MessageToString(
        caffe_pb2.QuantParameter(offset=offset.to_bytes(1, "little", signed=True)), as_one_line=True
    )
    net = net_of((f'name: "q" type: "Quant" bottom: "data" top: "q" quant_param {{ scale: {scale} {byte} }}',))
    codes = np.clip(c_round(VALUES * np.float32(scale)) + offset, -128, 127)
    expected = ((codes - offset) / scale).astype(np.float32)
    assert net.forward(data=VALUES)["q"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("scale", ["0", "-1", "inf", "nan"])
def test_quant_refuses_a_useless_scale(net_of, scale):
    net = net_of((f'name: "q" type: "Quant" bottom: "data" top: "q" quant_param {{ scale: {scale} }}',))
    with pytest.raises(ModelError, match="layer 'q'.*finite positive scale"):
        net.forward()


def test_antiquant_copies(net_of):
    net = net_of(('name: "a" type: "AntiQuant" bottom: "data" top: "a"',))
    assert (net.forward(data=VALUES)["a"] == VALUES).all()


DEQUANT = 'name: "d" type: "DeQuant" bottom: "data" top: "d" dequant_param { channel_wise: true }'


def test_dequant_without_shift_copies(net_of):
    net = net_of((DEQUANT, [0.5, 0.1, 2], [0, 0, 0], [0, 0, 0]))
    assert (net.forward(data=VALUES)["d"] == VALUES).all()


def test_dequant_with_shift_goes_through_int16(net_of):
    scale, shift = np.array([0.001, 0.5, 0.25], np.float32), np.array([1, 3, 2])
    net = net_of((DEQUANT, scale, shift, [0, 0, 0]))
    deq, power = scale.reshape(1, 3, 1, 1), (2.0**shift).reshape(1, 3, 1, 1)
    codes = np.clip(c_round((c_round(VALUES / deq) / power).astype(np.float32)), -32768, 32767)
    assert net.forward(data=VALUES)["d"] == pytest.approx((codes * deq * power).astype(np.float32), rel=1e-6)
    assert net.forward(data=VALUES)["d"].min() == pytest.approx(-32768 * 0.001 * 2)


def test_dequant_refuses_mixed_shifts(net_of):
    net = net_of((DEQUANT, [1, 1, 1], [0, 2, 2], [0, 0, 0]))
    with pytest.raises(ModelError, match="all shifts 0 or all in 1..16"):
        net.forward()


def observer(kind, record, **parameters):
    fields = " ".join(f"{key}: {value}" for key, value in parameters.items())
    return (
        f'name: "watch" type: "{kind.upper()}" bottom: "data" '
        f'{kind}_param {{ object_layer: "conv" record_file_path: "{record}" {fields} }}',
    )


SEARCH = {
    "search_range_start": 0.7,
    "search_range_end": 1.3,
    "search_step": 0.01,
    "max_percentile": 0.999999,
    "min_percentile": 0.999999,
}


@pytest.mark.parametrize("with_offset", ["true", "false"])
def test_ifmr_calibrates_on_its_last_pass_and_keeps_the_weights_factors(net_of, tmp_path, with_offset):
    record = tmp_path / "record.txt"
    weights = {"conv": Factors(scale_w=(0.5,), offset_w=(0,)), "other": Factors(scale_w=(1.0,), offset_w=(0,))}
    write_record(record, weights)
    copy = ('name: "a" type: "AntiQuant" bottom: "data" top: "a"',)
    net = net_of(observer("ifmr", record, batch_num=2, with_offset=with_offset, **SEARCH), copy)
    batches = np.random.default_rng(0).normal(size=(3, 1, 3, 1, 5)).astype(np.float32)
    net.forward(data=batches[0])
    assert load_record(record)["conv"].scale_d is None
    net.forward(data=batches[1])
    found = load_record(record)
    values = ValueStream()
    values.update(batches[:2])
    expected = ifmr(values, settings=ActivationSettings(), with_offset=with_offset == "true")
    assert (found["conv"].scale_d, found["conv"].offset_d) == (expected.scale, expected.offset)
    assert (found["conv"].channels, found["conv"].height, found["conv"].width) == (3, 1, 5)
    assert found["conv"].scale_w == (0.5,)
    assert found["other"].scale_d is None
    net.forward(data=1000 * batches[2])
    assert load_record(record) == found


def test_a_pass_writes_the_record_once_whatever_the_number_of_layers(net_of, tmp_path, monkeypatch):
    record = tmp_path / "record.txt"
    second = observer("ifmr", record, batch_num=1, with_offset="false", **SEARCH)
    second = tuple(part.replace('"conv"', '"other"').replace('name: "', 'name: "second_') for part in second)
    net = net_of(observer("ifmr", record, batch_num=1, with_offset="true", **SEARCH), second)
    written = []
    monkeypatch.setattr("autonuq.runtime.net.update_record", lambda path, found: written.append((path, list(found))))
    net.forward(data=VALUES)
    assert written == [(record, ["conv", "other"])]


def test_ifmr_adds_an_entry_if_there_is_none(net_of, tmp_path):
    record = tmp_path / "record.txt"
    net = net_of(observer("ifmr", record, batch_num=1, with_offset="true", **SEARCH))
    net.forward(data=np.maximum(VALUES, 0))
    assert load_record(record)["conv"].offset_d == -128


def test_ifmr_sees_what_the_layer_behind_it_reads_and_not_what_comes_later(net_of, tmp_path):
    record = tmp_path / "record.txt"
    net = net_of(
        observer("ifmr", record, batch_num=1, with_offset="true", **SEARCH),
        ('name: "relu" type: "ReLU" bottom: "data" top: "data"',),
    )
    net.forward(data=VALUES)
    assert load_record(record)["conv"].offset_d > -128


def test_hfmg_covers_the_range(net_of, tmp_path):
    record = tmp_path / "record.txt"
    net = net_of(observer("hfmg", record, batch_num=2, with_offset="true", num_of_bins=1024))
    batches = np.random.default_rng(0).uniform(-1, 3, size=(2, 1, 3, 1, 5)).astype(np.float32)
    for batch in batches:
        net.forward(data=batch)
    found = load_record(record)["conv"]
    assert found.scale_d * 255 == pytest.approx(batches.max() - batches.min(), rel=0.05)


def test_infinite_activations_name_the_layer(net_of, tmp_path):
    net = net_of(observer("ifmr", tmp_path / "r.txt", batch_num=1, with_offset="true", **SEARCH))
    with pytest.raises(QuantizationError, match="layer 'conv'.*finite"):
        net.forward(data=np.full_like(VALUES, np.inf))


def test_a_calibration_that_runs_out_of_memory_names_the_layer(net_of, tmp_path, monkeypatch):
    def refuse(stream, values):
        raise MemoryError("Unable to allocate 9.38 GiB")

    monkeypatch.setattr(ValueStream, "update", refuse)
    net = net_of(observer("ifmr", tmp_path / "r.txt", batch_num=1, with_offset="true", **SEARCH))
    with pytest.raises(QuantizationError, match=r"layer 'conv'.*no memory.*\(1, 3, 1, 5\); use smaller batches"):
        net.forward(data=VALUES.reshape(1, 3, 1, 5))
