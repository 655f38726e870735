"""AMCT's static flow on the tiny network: its files, the recorded rules, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

import autonuq.amct as amct
from autonuq.errors import ModelError, QuantizationError
from autonuq.graph.caffemodel import load_caffemodel
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.record import load_record, write_record
from autonuq.quant.config import ActivationSettings
from autonuq.quant.range_search import ifmr
from autonuq.quant.stream import ValueStream
from autonuq.runtime.net import Net

IMAGES = np.random.default_rng(5).standard_normal((2, 4, 2, 8, 8), np.float32)
NUQ = "batch_num: 2 common_config { nuq_quantize { num_steps: %d } }"


@pytest.fixture
def files(tiny):
    return "tiny.prototxt", "tiny.caffemodel"


def run(model, weights, passes=2, **shapes):
    net = Net(model, weights, 1)
    for images in IMAGES[:passes]:
        net.forward(data=images)
    return net


def quantized(files, cfg="batch_num: 2", save_type="Both", passes=2, prefix="out/tiny"):
    """Run the whole static flow and return the record."""
    Path("quant.cfg").write_text(cfg)
    amct.create_quant_config("config.json", *files, None, 1, True, "quant.cfg")
    graph = amct.init("config.json", *files, "tmp/record.txt")
    amct.quantize_model(graph, "tmp/modified.prototxt", "tmp/modified.caffemodel")
    run("tmp/modified.prototxt", "tmp/modified.caffemodel", passes)
    amct.save_model(graph, save_type, prefix)
    return load_record("tmp/record.txt")


def fake_quant(prefix):
    return f"{prefix}_fake_quant_model.prototxt", f"{prefix}_fake_quant_weights.caffemodel"


def names(folder):
    return {path.name for path in folder.iterdir()}


SIMULATION = {"tiny_fake_quant_model.prototxt", "tiny_fake_quant_weights.caffemodel"}
DEPLOYMENT = {"tiny_deploy_model.prototxt", "tiny_deploy_weights.caffemodel"}
ALWAYS = {"tiny_quant.json", "tiny_nuq_layer_record.txt"}


@pytest.mark.parametrize(
    ("save_type", "pairs"),
    [("Fakequant", SIMULATION), ("Deploy", DEPLOYMENT), ("Both", SIMULATION | DEPLOYMENT)],
)
def test_save_types(tiny, files, save_type, pairs):
    quantized(files, save_type=save_type)
    assert names(tiny / "out") == pairs | ALWAYS


def test_underscore_is_always_added(tiny, files):
    quantized(files, prefix="out/tiny_", save_type="Deploy")
    assert "tiny__deploy_model.prototxt" in names(tiny / "out")


def test_uniform_network_follows_the_recorded_rules(tiny, files):
    record = quantized(files)
    deploy = {layer.name: layer for layer in load_graph("out/tiny_deploy_model.prototxt").layers}
    stored = load_caffemodel("out/tiny_deploy_weights.caffemodel")
    blobs = {name: [blob.values for blob in layer] for name, layer in stored.items()}
    assert "bn" not in deploy and "scale" not in deploy
    float_net = Net(*files, 1)
    gamma = float_net.params["scale"][0].data
    mean, variance, factor = (blob.data for blob in float_net.params["bn"])
    std = np.sqrt(variance / factor + 1e-5)
    folded = (float_net.params["conv"][0].data * (gamma / std)[:, None, None, None]).astype(np.float32)
    high, low = folded.max(axis=(1, 2, 3)), folded.min(axis=(1, 2, 3))
    scale_w = np.where(high > -low, high / 127, -low / 128)
    assert record["conv"].scale_w == pytest.approx(scale_w, rel=1e-6)
    codes = blobs["conv"][0].reshape(8, -1)
    assert codes.dtype == np.int8
    assert set(np.maximum(codes.max(1), -1 - codes.min(1).astype(int))) == {127}
    values = ValueStream()
    values.update(IMAGES)
    expected = ifmr(values, settings=ActivationSettings(), with_offset=True)
    assert (record["conv"].scale_d, record["conv"].offset_d) == (pytest.approx(expected.scale), expected.offset)
    assert (record["conv"].channels, record["conv"].height, record["conv"].width) == (2, 8, 8)
    assert record["pool"].offset_d == -128
    assert len(record["fc"].scale_w) == 1
    bias = (float_net.params["scale"][1].data - mean / factor * gamma / std) / (record["conv"].scale_d * scale_w)
    assert blobs["conv"][1].dtype == np.int32
    assert np.abs(blobs["conv"][1] - bias).max() <= 1


def test_static_nuq_keeps_so_many_levels(tiny, files):
    with pytest.warns(UserWarning, match="layer 'pool'"):
        quantized(files, NUQ % 16)
    for file in ("out/tiny_deploy_weights.caffemodel", "tmp/modified.caffemodel"):
        blobs = load_caffemodel(file)
        assert len(np.unique(blobs["fc"][0].values)) <= 16
    info = json.loads((tiny / "out/tiny_quant.json").read_text())["layers"]
    assert len(info["conv"]["levels"]) <= 16
    assert (tiny / "out/tiny_nuq_layer_record.txt").read_text() == "conv;fc"


def test_inner_record_has_the_clusters_and_the_public_one_is_plain(tiny, files):
    with pytest.warns(UserWarning):
        quantized(files, NUQ % 32)
    assert "cluster" not in (tiny / "tmp/record.txt").read_text()
    inner = load_record("out/tiny_cluster_record.txt")
    assert {name: len(factors.cluster) for name, factors in inner.items()} == {"conv": 32, "pool": 0, "fc": 32}
    assert list(inner["fc"].cluster) == sorted(set(inner["fc"].cluster))
    codes = load_caffemodel("out/tiny_deploy_weights.caffemodel")["fc"][0].values
    assert set(np.unique(codes).tolist()) <= set(inner["fc"].cluster)


def test_second_moments_of_our_own_forward_passes_decide_the_rounding(tiny, files):
    with pytest.warns(UserWarning):
        quantized(files, NUQ % 16)
    saved = load_caffemodel("out/tiny_fake_quant_weights.caffemodel")["conv"][0].values
    rounded = load_caffemodel("tmp/modified.caffemodel")["conv"][0].values
    assert not np.array_equal(saved, rounded)


def test_convert_model_gives_the_same_network(tiny, files):
    quantized(files)
    amct.convert_model(*files, "tmp/record.txt", "converted/tiny")
    assert names(tiny / "converted") == SIMULATION | DEPLOYMENT | ALWAYS
    for name in SIMULATION | DEPLOYMENT | ALWAYS:
        assert (tiny / "converted" / name).read_bytes() == (tiny / "out" / name).read_bytes(), name


def test_convert_model_obeys_skip_fusion_and_clusters(tiny, files):
    record = quantized(files)
    only = {"fc": record["fc"]}
    text = (tiny / "tmp/record.txt").read_text()
    fc = text[text.index('record {\n  key: "fc"') :]
    clusters = "".join(f"cluster: {step}\n" for step in range(-64, 64, 8))
    (tiny / "r.txt").write_text(fc.replace("value {", "value {\nskip_fusion: true\n" + clusters))
    amct.convert_model(*files, "r.txt", "converted/tiny")
    assert list(only) == ["fc"]
    graph = load_graph("converted/tiny_deploy_model.prototxt")
    assert "conv_0_quant_layer" not in graph.by_name
    codes = load_caffemodel("converted/tiny_deploy_weights.caffemodel")["fc"][0].values
    assert set(np.unique(codes).tolist()) <= set(range(-64, 64, 8))
    assert (tiny / "converted/tiny_nuq_layer_record.txt").read_text() == "fc"


RESIDUAL = """
name: "residual"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 } } }
layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 4 kernel_size: 1 } }
layer { name: "b1" type: "Convolution" bottom: "data" top: "b1"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "b1_relu" type: "ReLU" bottom: "b1" top: "b1" }
layer { name: "b2" type: "Convolution" bottom: "b1" top: "b2"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b2" top: "sum" }
layer { name: "prob" type: "Softmax" bottom: "sum" top: "prob" }
"""


@pytest.fixture
def residual(tmp_path):
    (tmp_path / "r.prototxt").write_text(RESIDUAL)
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 2, 1, 1), "b1": (4, 2, 3, 3), "b2": (4, 4, 3, 3)}
    graph = load_graph("r.prototxt")
    layers = [
        layer.with_(blobs=[rng.standard_normal(shapes[layer.name], np.float32), np.zeros(4, np.float32)])
        if layer.name in shapes
        else layer
        for layer in graph.layers
    ]
    write_model(graph.with_layers(layers), tmp_path / "r.prototxt", tmp_path / "r.caffemodel")
    return "r.prototxt", "r.caffemodel"


FOLDED = """
name: "folded"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 2 dim: 8 dim: 8 } } }
layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" batch_norm_param { use_global_stats: true } }
layer { name: "shift" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }
layer { name: "conv" type: "Convolution" bottom: "norm" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 6 bias_term: false } }
layer { name: "fc_bn" type: "BatchNorm" bottom: "fc" top: "fc" batch_norm_param { use_global_stats: true } }
layer { name: "fc_scale" type: "Scale" bottom: "fc" top: "fc_scale" scale_param { bias_term: true } }
layer { name: "prob" type: "Softmax" bottom: "fc_scale" top: "prob" }
"""


@pytest.fixture
def folded(tmp_path):
    (tmp_path / "f.prototxt").write_text(FOLDED)
    rng = np.random.default_rng(0)
    graph = load_graph("f.prototxt")
    shapes = infer_shapes(graph)

    def blobs(layer):
        found = [rng.uniform(0.1, 1, shape).astype(np.float32) for shape in blob_shapes(graph, layer, shapes)]
        return [blob - np.float32(0.5) for blob in found] if layer.name in ("conv", "fc") else found

    write_model(
        graph.with_layers(layer.with_(blobs=blobs(layer)) for layer in graph.layers),
        tmp_path / "f.prototxt",
        tmp_path / "f.caffemodel",
    )
    return "f.prototxt", "f.caffemodel"


def test_what_folds_before_a_layer_and_into_an_inner_product_is_gone_everywhere(tmp_path, folded):
    record = quantized(folded)
    assert list(record) == ["conv", "fc"]
    for kind in ("fake_quant", "deploy"):
        graph = load_graph(f"out/tiny_{kind}_model.prototxt")
        assert [layer.name for layer in graph.layers if not layer.type.endswith("Quant")] == [
            *("data", "conv", "relu", "fc", "prob"),
        ]
        assert graph.by_name["conv_0_quant_layer"].bottoms == ("data",)
        assert graph.by_name["fc"].tops == ("fc_scale",)
    layers = json.loads((tmp_path / "out/tiny_quant.json").read_text())["layers"]
    assert {name: layer["folded"] for name, layer in layers.items()} == {
        "conv": ["norm", "shift"],
        "fc": ["fc_bn", "fc_scale"],
    }
    found, expected = (run(*files).blobs["prob"].data for files in (fake_quant("out/tiny"), folded))
    assert np.abs(found - expected).max() < 0.02
    amct.convert_model(*folded, "tmp/record.txt", "converted/tiny")
    for name in SIMULATION | DEPLOYMENT:
        assert (tmp_path / "converted" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.parametrize("name", ["conv", "fc"])
def test_a_record_made_without_a_folding_has_to_say_so(folded, name):
    quantized(folded, f"batch_num: 2 skip_fusion_layers: '{name}'")
    with pytest.raises(QuantizationError, match=f"layer '{name}': scale_w must fit.*add skip_fusion: true"):
        amct.convert_model(*folded, "tmp/record.txt", "converted/tiny")


def test_a_record_made_without_a_folding_skips_it(tmp_path, folded):
    quantized(folded, "batch_num: 2 skip_fusion_layers: 'conv'")
    record = load_record("tmp/record.txt")
    write_record(Path("r.txt"), {name: replace(found, skip_fusion=name == "conv") for name, found in record.items()})
    amct.convert_model(*folded, "r.txt", "converted/tiny")
    assert {"norm", "shift"} < set(load_graph("converted/tiny_fake_quant_model.prototxt").by_name)
    for name in SIMULATION | DEPLOYMENT:
        assert (tmp_path / "converted" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_joint_quant_gives_the_inputs_of_one_eltwise_one_range(residual):
    record = quantized(residual, "batch_num: 2 joint_quant: true")
    factors = {name: (found.scale_d, found.offset_d) for name, found in record.items()}
    assert factors["a"] == factors["b2"] != factors["b1"]
    assert (record["a"].channels, record["b2"].channels) == (2, 4)
    observer = load_graph("tmp/modified.prototxt").by_name["a_0_ifmr_layer"]
    assert list(observer.message.ifmr_param.object_layer) == ["a", "b2"]
    assert observer.bottoms == ("data", "b1")


def test_quant_info_names_the_quantizer_that_layers_share(tmp_path, residual):
    quantized(residual)
    layers = json.loads((tmp_path / "out/tiny_quant.json").read_text())["layers"]
    assert {name: layer["quant_layer"] for name, layer in layers.items()} == {
        "a": "a_0_quant_layer",
        "b1": "a_0_quant_layer",
        "b2": "b2_0_quant_layer",
    }


def test_joint_quant_needs_equal_settings(residual):
    override = 'override_layer_configs { layer_name: "b2" calibration_config { hfmg_quantize {} } }'
    with pytest.raises(QuantizationError, match="layer 'a': joint_quant gives a and b2 one activation range"):
        quantized(residual, "batch_num: 2 joint_quant: true " + override)


def test_too_few_forward_passes_name_layer_and_number(files):
    with pytest.raises(QuantizationError, match=r"layer 'conv': has no activation factors in .*needs 2 forward passes"):
        quantized(files, passes=1)


def test_init_empties_the_record(tiny, files):
    (tiny / "record.txt").write_text("anything")
    amct.create_quant_config("config.json", *files)
    amct.init("config.json", *files, "record.txt")
    assert load_record("record.txt") == {}


@pytest.mark.parametrize("said", ["use_global_stats: false", ""], ids=["false", "missing"])
def test_batch_norm_must_be_in_inference_mode(tiny, files, said):
    text = (tiny / "tiny.prototxt").read_text()
    (tiny / "tiny.prototxt").write_text(text.replace("use_global_stats: true", said))
    amct.create_quant_config("config.json", *files)
    with pytest.raises(ModelError, match="layer 'bn': .*set use_global_stats: true"):
        amct.init("config.json", *files, "record.txt")


def test_bias_that_overflows_int32_names_the_layer_and_writes_nothing(tiny, files):
    graph = load_graph(*files)
    huge = [graph.by_name["fc"].blobs[0], np.full(10, 1e9, np.float32)]
    layers = [layer.with_(blobs=huge) if layer.name == "fc" else layer for layer in graph.layers]
    write_model(graph.with_layers(layers), tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    with pytest.raises(QuantizationError, match="layer 'fc': the bias does not fit int32 .*skip this layer"):
        quantized(files)
    assert names(tiny / "out") == set()


def test_a_quantized_model_is_no_input(files):
    quantized(files)
    fake = ("out/tiny_fake_quant_model.prototxt", "out/tiny_fake_quant_weights.caffemodel")
    with pytest.raises(ModelError, match="layer 'conv_0_quant_layer': type 'Quant' belongs to a quantized model"):
        amct.convert_model(*fake, "tmp/record.txt", "x/y")


def edited(old, new):
    return lambda text: text.replace(old, new, 1)


def without(key):
    return lambda text: "\n".join(line for line in text.split("\n") if not line.strip().startswith(f"{key}:"))


RECORDS = {
    **{
        f"no-{key}": (without(key), f"layer 'conv': has no {key} in the record")
        for key in ("scale_d", "offset_d", "scale_w", "offset_w", "channels", "height", "width")
    },
    "unknown-layer": (edited('key: "conv"', 'key: "cnov"'), "layer 'cnov': is configured, but the network has no"),
    "unsupported": (edited('key: "conv"', 'key: "relu"'), "layer 'relu': cannot be quantized: type 'ReLU'"),
    "folded": (edited('key: "conv"', 'key: "bn"'), "layer 'bn': cannot be quantized"),
    "twice": (edited('key: "pool"', 'key: "conv"'), "layer 'conv': stands twice in the record"),
    "scale_d-0": (edited("scale_d: ", "scale_d: 0 #"), "layer 'conv': scales must be finite and positive"),
    "scale_d-nan": (edited("scale_d: ", "scale_d: nan #"), "layer 'conv': scales must be finite and positive"),
    "scale_w-negative": (edited("scale_w: ", "scale_w: -"), "layer 'conv': scales must be finite and positive"),
    "offset_d": (edited("offset_d: ", "offset_d: 128 #"), "layer 'conv': offset_d must lie in [-128, 127]"),
    "offset_w": (edited("offset_w: 0", "offset_w: 1"), "layer 'conv': offset_w must be 0"),
    "lengths": (edited("    offset_w: 0\n", ""), "layer 'conv': scale_w and offset_w must have the same length"),
    "channel_wise-fc": (
        lambda text: (
            text[: text.index('record {\n  key: "fc"')]
            + text[text.index('record {\n  key: "fc"') :]
            .replace("scale_w", "scale_w: 1 scale_w", 1)
            .replace("offset_w", "offset_w: 0 offset_w", 1)
        ),
        "layer 'fc': scale_w must have length 1. Got 2 instead",
    ),
    "too-few-channels": (
        lambda text: text.replace("    scale_w", "#", 1).replace("    offset_w", "#", 1),
        "layer 'conv': scale_w must have length 8. Got 7 instead",
    ),
    "shift_bit-17": (edited("channels", "shift_bit: 17 channels"), "layer 'conv': shift_bit must lie in 0..16"),
    "shift_bit-length": (edited("channels", "shift_bit: 1 channels"), "shift_bit must be left out or have length 8"),
    "shift_bit-mixed": (
        edited("channels", "shift_bit: 1 shift_bit: 0 channels"),
        "layer 'conv': shift_bit must be all 0 or all positive",
    ),
    "cluster-length": (edited("channels", "cluster: 1 channels"), "cluster must hold 16 or 32 int8 values"),
    "channels": (edited("channels: 2", "channels: 3"), "must be those of the layer's input, (2, 8, 8). Got (3, 8, 8)"),
    "syntax": (edited("record", "records"), "is no record file: 1:1 :"),
}


@pytest.mark.parametrize(("change", "message"), RECORDS.values(), ids=RECORDS)
def test_records_that_break_a_rule_are_refused(tiny, files, change, message):
    quantized(files)
    (tiny / "bad.txt").write_text(change((tiny / "tmp/record.txt").read_text()))
    with pytest.raises(QuantizationError) as caught:
        amct.convert_model(*files, "bad.txt", "x/y")
    assert str(caught.value).startswith(("bad.txt", "layer"))
    assert message in str(caught.value)
    assert not (tiny / "x").exists()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda graph: amct.save_model(graph, "fakequant", "x"), ValueError, "'save_type' parameter of save_model"),
        (lambda graph: amct.save_model("graph", "Both", "x"), TypeError, "'graph' parameter of save_model must be"),
        (lambda graph: amct.quantize_model(None, "a", "b"), TypeError, "'graph' parameter of quantize_model must be"),
        (lambda graph: amct.save_model(graph, "Both", "x"), QuantizationError, "has no activation factors"),
    ],
    ids=["save_type", "save-graph", "quantize-graph", "not-calibrated"],
)
def test_misuse(files, call, error, message):
    amct.create_quant_config("config.json", *files)
    graph = amct.init("config.json", *files, "record.txt")
    with pytest.raises(error) as caught:
        call(graph)
    assert message in str(caught.value)


def test_amcts_own_record_reader_accepts_the_record(tiny, files):
    """The public schema, field by field as AMCT publishes it, without our private one."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    from autonuq.graph import record_pb2

    public = descriptor_pb2.FileDescriptorProto()
    record_pb2.DESCRIPTOR.CopyToProto(public)
    for message in public.message_type:
        kept = [field for field in message.field if field.name != "cluster"]
        del message.field[:]
        message.field.extend(kept)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(public)
    reader = message_factory.GetMessageClass(pool.FindMessageTypeByName("autonuq_record.ScaleOffsetRecord"))
    with pytest.warns(UserWarning):
        quantized(files, NUQ % 16)
    assert len(text_format.Parse((tiny / "tmp/record.txt").read_text(), reader()).record) == 3
    with pytest.raises(text_format.ParseError):
        text_format.Parse((tiny / "out/tiny_cluster_record.txt").read_text(), reader())


def test_log_names_what_stays_float_and_why(tiny, files):
    quantized(files, 'batch_num: 2 skip_layers: "conv"')
    log = (tiny / "amct_log/amct_caffe.log").read_text()
    assert "layer 'conv' (Convolution) stays float: left out by the configuration" in log
    assert "layer 'fc': uniform weights, inputs by ifmr" in log
    assert "layer 'fc': calibrated, scale_d " in log


def test_levels_of_the_log_come_from_the_environment(tiny, files, monkeypatch, capfd):
    monkeypatch.setenv("AMCT_LOG_FILE_LEVEL", "ERROR")
    monkeypatch.setenv("AMCT_LOG_LEVEL", "INFO")
    quantized(files)
    assert (tiny / "amct_log/amct_caffe.log").read_text() == ""
    assert "run it for 2 forward passes" in capfd.readouterr().err
    monkeypatch.setenv("AMCT_LOG_LEVEL", "LOUD")
    with pytest.raises(QuantizationError, match="AMCT_LOG_LEVEL must be one of DEBUG, INFO, .* Got 'LOUD'"):
        amct.create_quant_config("config.json", *files)


class Agreement:
    """Share of decisions that are those of the first network it sees."""

    evaluate_batch_num, labels, limit = 2, None, 0.2

    def eval_model(self, model_file, weights_file, batch_num):
        net = Net(model_file, weights_file, 1)
        labels = np.stack([net.forward(data=images)["prob"].argmax(1) for images in IMAGES[:batch_num]])
        self.labels = labels if self.labels is None else self.labels
        return (labels == self.labels).mean()

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.limit


def test_one_call_is_the_whole_static_way(tiny, files):
    quantized(files)
    result = amct.quantize_static(*files, "config.json", Agreement(), "one/tiny")
    assert (
        names(tiny / "one")
        == SIMULATION | DEPLOYMENT | ALWAYS | {"tiny_record.txt"}
        == {path.name for path in result.written}
    )
    for name in SIMULATION | DEPLOYMENT:
        assert (tiny / "one" / name).read_bytes() == (tiny / "out" / name).read_bytes(), name
    assert result.original_metric == 1
    assert result.satisfied == (result.metric > 0.8)


def test_factors_of_other_weights_are_refused(tiny, files):
    amct.create_quant_config("config.json", *files, None, 2)
    graph = amct.init("config.json", *files, "record.txt")
    amct.quantize_model(graph, "m.prototxt", "m.caffemodel")
    run("m.prototxt", "m.caffemodel")
    record = load_record("record.txt")
    write_record("record.txt", record | {"fc": record["pool"]})
    with pytest.raises(QuantizationError, match=r"layer 'fc': .*record.txt holds the factors of other weights"):
        amct.save_model(graph, "Both", "x")
