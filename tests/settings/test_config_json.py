"""config.json: the form that is written, and every rule that reading enforces."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from autonuq.errors import QuantizationError
from autonuq.graph.capability import Capability
from autonuq.quant.config import ActivationSettings, LayerSettings, QuantizationConfig, WeightSettings
from autonuq.settings.config_json import build_arq_config, load_config_json, shorten_float, write_config_json

NETWORK = (
    Capability("data", "Input", 0, (), False, False, False, "type Input is not supported"),
    Capability("conv1", "Convolution", 216, (8, 3, 3, 3), True, True, True, ""),
    Capability("relu1", "ReLU", 0, (), False, False, False, "type ReLU is not supported"),
    Capability("conv2", "Convolution", 288, (8, 4, 3, 3), True, False, True, "NUQ needs group 1, not 2"),
    Capability("pool", "Pooling", 0, (), True, False, False, "a Pooling has no weights to cluster"),
    Capability("maxpool", "Pooling", 0, (), False, False, False, "only AVE pooling is supported"),
    Capability("fc", "InnerProduct", 80, (10, 8), True, True, False, ""),
)

GOLDEN = """{
    "version":1,
    "batch_num":2,
    "activation_offset":true,
    "joint_quant":false,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "conv1":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "act_algo":"ifmr",
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01
        },
        "weight_quant_params":{
            "num_bits":8,
            "wts_algo":"arq_quantize",
            "channel_wise":true
        }
    },
    "fc":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "act_algo":"ifmr",
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01
        },
        "weight_quant_params":{
            "wts_algo":"nuq_quantize",
            "num_steps":32,
            "num_of_iteration":0
        }
    }
}"""

TWO_LAYERS = QuantizationConfig(
    {
        "fc": LayerSettings(weights=WeightSettings("nuq", channel_wise=False, num_of_iteration=0)),
        "conv1": LayerSettings(),
    },
    batch_num=2,
)


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "config.json"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write_file


def test_written_file_is_byte_for_byte_of_amcts_form(tmp_path):
    write_config_json(tmp_path / "config.json", TWO_LAYERS, NETWORK)
    assert (tmp_path / "config.json").read_bytes() == GOLDEN.encode()


def test_golden_text_reads_back(write):
    loaded = load_config_json(write(GOLDEN), NETWORK)
    assert loaded.config == TWO_LAYERS
    assert list(loaded.config.layers) == ["conv1", "fc"]
    assert loaded.warnings == ()


def test_round_trip_of_everything_unusual(tmp_path):
    config = QuantizationConfig(
        {
            "conv1": LayerSettings(
                ActivationSettings("ifmr", 0.9, 0.8, 0.5, 1.5, 0.25, asymmetric=False),
                WeightSettings("nuq", num_steps=16, num_of_iteration=5),
            ),
            "conv2": LayerSettings(weights=WeightSettings(channel_wise=False)),
            "pool": LayerSettings(
                ActivationSettings("hfmg", num_of_bins=8192, asymmetric=True),
                WeightSettings(channel_wise=False),
            ),
        },
        batch_num=7,
        activation_offset=False,
        joint_quant=True,
        do_fusion=False,
        skip_fusion_layers=("conv2", "conv1"),
    )
    write_config_json(tmp_path / "config.json", config, NETWORK)
    assert load_config_json(tmp_path / "config.json", NETWORK).config == config


def test_missing_keys_take_defaults(write):
    loaded = load_config_json(write({"conv1": {}, "pool": {}, "fc": {"weight_quant_params": {}}}), NETWORK)
    uniform = LayerSettings(weights=WeightSettings(channel_wise=False))
    assert loaded.config == QuantizationConfig({"conv1": LayerSettings(), "pool": uniform, "fc": uniform})


def test_files_of_older_releases_are_read(write):
    old = {
        "version": 1,
        "batch_num": 1,
        "activation_offset": True,
        "weight_offset": False,
        "do_fusion": True,
        "skip_fusion_layers": [],
        "conv1": {
            "quant_enable": True,
            "activation_quant_params": {
                "max_percentile": 0.999999,
                "min_percentile": 0.999999,
                "search_range": [0.7, 1.3],
                "search_step": 0.01,
            },
            "weight_quant_params": {"channel_wise": True},
        },
    }
    assert load_config_json(write(old), NETWORK).config == QuantizationConfig({"conv1": LayerSettings()})


def test_disabled_layers_stay_float(write):
    loaded = load_config_json(write({"conv1": {"quant_enable": False}, "fc": {}}), NETWORK)
    assert list(loaded.config.layers) == ["fc"]


def test_layers_come_in_network_order(write):
    loaded = load_config_json(write({"fc": {}, "pool": {}, "conv2": {}, "conv1": {}}), NETWORK)
    assert list(loaded.config.layers) == ["conv1", "conv2", "pool", "fc"]


def test_nuq_on_a_layer_that_cannot_have_it_stays_uniform_with_a_warning(write):
    path = write({"conv2": {"weight_quant_params": {"wts_algo": "nuq_quantize", "num_steps": 16}}})
    loaded = load_config_json(path, NETWORK)
    assert loaded.config.layers["conv2"].weights == WeightSettings()
    (warning,) = loaded.warnings
    assert str(path) in warning
    assert "'conv2'" in warning
    assert "NUQ needs group 1, not 2" in warning


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (0.9999989867210388, 0.999999),
        (0.699999988079071, 0.7),
        (0.009999999776482582, 0.01),
        (0.75, 0.75),
        (0.1, 0.1),
        (1e300, 1e300),
    ],
)
def test_float32_detours_are_undone(value, short):
    assert shorten_float(value) == short


def test_long_floats_of_amcts_own_files_print_short(write, tmp_path):
    params = {"max_percentile": 0.9999989867210388, "search_range": [0.699999988079071, 1.2999999523162842]}
    loaded = load_config_json(write({"conv1": {"activation_quant_params": params}}), NETWORK)
    write_config_json(tmp_path / "again.json", loaded.config, NETWORK)
    text = (tmp_path / "again.json").read_text()
    assert '"max_percentile":0.999999,' in text
    assert '"search_range":[\n                0.7,\n                1.3\n            ],' in text


def activation(**keys):
    return {"conv1": {"activation_quant_params": keys}}


def weights(layer="conv1", **keys):
    return {layer: {"weight_quant_params": keys}}


ACT, WTS = "activation_quant_params", "weight_quant_params"
REFUSED = {
    "version": ({"version": 2}, "'version' key must be 1. Got 2 instead"),
    "version-true": ({"version": True}, "'version' key must be 1. Got true"),
    "batch_num-0": ({"batch_num": 0}, "'batch_num' key must be an int > 0. Got 0"),
    "batch_num-float": ({"batch_num": 2.0}, "'batch_num' key must be an int > 0. Got 2.0"),
    "activation_offset": ({"activation_offset": 1}, "'activation_offset' key must be true or false. Got 1"),
    "joint_quant": ({"joint_quant": "no"}, "'joint_quant' key must be true or false"),
    "weight_offset": ({"weight_offset": True}, "'weight_offset' key must be false"),
    "do_fusion": ({"do_fusion": None}, "'do_fusion' key must be true or false. Got null"),
    "skip_fusion-text": ({"skip_fusion_layers": "conv1"}, "must be a list of layer names"),
    "skip_fusion-unknown": ({"skip_fusion_layers": ["conv"]}, 'Got "conv" instead. Did you mean \'conv'),
    "skip_fusion-not-fusible": ({"skip_fusion_layers": ["fc"]}, "layer 'fc': The 'skip_fusion_layers' key"),
    "skip_fusion-twice": ({"skip_fusion_layers": ["conv1", "conv1"]}, "free of repetitions"),
    "unknown-global": ({"batchnum": 2}, "'batchnum' key must be one of the global keys"),
    "unknown-global-near": ({"batchnum": 2}, "Did you mean 'batch_num'?"),
    "unknown-layer": (
        {"conv11": {}},
        "layer 'conv11': The network has no layer of this name. Did you mean 'conv1'?",
    ),
    "unsupported-type": ({"relu1": {}}, "layer 'relu1': The layer cannot be quantized: type ReLU"),
    "unsupported-layer": ({"maxpool": {"quant_enable": False}}, "only AVE pooling is supported"),
    "layer-no-object": ({"conv1": 3}, "'conv1' key must be an object with the layer's settings. Got 3"),
    "layer-unknown-key": ({"conv1": {"quant_enabled": True}}, "Did you mean 'quant_enable'?"),
    "quant_enable": ({"conv1": {"quant_enable": 1}}, "layer 'conv1': The 'quant_enable' key must be true or"),
    "params-no-object": ({"conv1": {ACT: []}}, f"'{ACT}' key must be an object. Got []"),
    "act-num_bits": (activation(num_bits=4), f"'{ACT}.num_bits' key must be 8. Got 4"),
    "act_algo": (activation(act_algo="kl"), f'\'{ACT}.act_algo\' key must be "ifmr" or "hfmg". Got "kl"'),
    "act-unknown": (activation(search_steps=0.1), "Did you mean 'search_step'?"),
    "asymmetric": (activation(asymmetric=None), f"'{ACT}.asymmetric' key must be true or false"),
    "max_percentile-low": (
        activation(max_percentile=0.5),
        f"'{ACT}.max_percentile' key must be a number in (0.5, 1]",
    ),
    "max_percentile-high": (activation(max_percentile=1.1), "in (0.5, 1]. Got 1.1"),
    "min_percentile": (
        activation(min_percentile=True),
        f"'{ACT}.min_percentile' key must be a number in (0.5, 1]",
    ),
    "search_range-order": (activation(search_range=[1.3, 0.7]), "0 < start < end. Got [1.3, 0.7]"),
    "search_range-zero": (activation(search_range=[0, 1.3]), f"'{ACT}.search_range' key must be two numbers"),
    "search_range-three": (activation(search_range=[0.7, 1, 1.3]), "must be two numbers [start, end]"),
    "search_range-huge": (activation(search_range=[0.7, 10**400]), "must be two numbers [start, end]"),
    "search_step-zero": (activation(search_step=0), f"'{ACT}.search_step' key must be a number in (0, 0.6]"),
    "search_step-wide": (activation(search_step=0.7), "in (0, 0.6], the width of search_range. Got 0.7"),
    "search_step-text": (activation(search_step="x"), 'Got "x"'),
    "num_of_bins": (
        activation(act_algo="hfmg", num_of_bins=1000),
        "must be 1024, 2048, 4096 or 8192. Got 1000",
    ),
    "ifmr-with-hfmg": (activation(num_of_bins=1024), 'left out where "act_algo" is "ifmr" by default'),
    "hfmg-with-ifmr": (activation(act_algo="hfmg", search_step=0.1), 'it belongs to "ifmr"'),
    "wts-num_bits": (weights(num_bits=6), f"'{WTS}.num_bits' key must be 8. Got 6"),
    "wts_algo": (weights(wts_algo="ada_quantize"), '"arq_quantize" or "nuq_quantize". Got "ada_quantize"'),
    "channel_wise-text": (weights(channel_wise="true"), f"'{WTS}.channel_wise' key must be true or false"),
    "channel_wise-fc": (weights("fc", channel_wise=True), "must be false for InnerProduct layers. Got true"),
    "channel_wise-pool": (weights("pool", channel_wise=True), "must be false for Pooling layers"),
    "num_steps-64": (
        weights(wts_algo="nuq_quantize", num_steps=64),
        f"'{WTS}.num_steps' key must be 16 or 32. Got 64",
    ),
    "num_steps-true": (weights(wts_algo="nuq_quantize", num_steps=16.0), "must be 16 or 32. Got 16.0"),
    "num_of_iteration": (
        weights(wts_algo="nuq_quantize", num_of_iteration=6),
        f"'{WTS}.num_of_iteration' key must be an int in [0, 5]. Got 6",
    ),
    "arq-with-nuq": (weights(num_steps=16), 'left out where "wts_algo" is "arq_quantize" by default'),
    "nuq-with-arq": (weights(wts_algo="nuq_quantize", channel_wise=True), 'it belongs to "arq_quantize"'),
    "repeated-global": ('{"batch_num": 1, "batch_num": 1}', "'batch_num' key must be given once"),
    "repeated-layer": ('{"conv1": {}, "conv1": {}}', "'conv1' key must be given once"),
    "repeated-inside": (
        '{"conv1": {"weight_quant_params": {"num_bits": 8, "num_bits": 8}}}',
        f"layer 'conv1': The '{WTS}.num_bits' key must be given once",
    ),
    "syntax": ('{"version": 1,\n  oops}', "is not JSON at line 2, column 3"),
    "nan": ('{"conv1": {"activation_quant_params": {"search_step": NaN}}}', "NaN is not JSON"),
    "list": ("[]", "must hold one JSON object"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_broken_rules_are_named_with_file_layer_key_and_value(write, content, message):
    path = write(content)
    with pytest.raises(QuantizationError) as caught:
        load_config_json(path, NETWORK)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(QuantizationError, match=r"none\.json: cannot be read"):
        load_config_json(tmp_path / "none.json", NETWORK)


def test_step_as_wide_as_the_range_is_allowed(write):
    path = write(activation(search_range=[0.9, 1.0], search_step=0.1))
    assert load_config_json(path, NETWORK).config.layers["conv1"].activation.search_step == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantizationConfig({"conv3": LayerSettings()}), "layer 'conv3': The network has no layer"),
        (QuantizationConfig({"relu1": LayerSettings()}), "layer 'relu1': The layer cannot be quantized"),
        (replace(TWO_LAYERS, batch_num=0), "'batch_num' key must be an int > 0"),
        (
            QuantizationConfig({"conv1": LayerSettings(weights=WeightSettings("nuq", num_steps=12))}),
            "'weight_quant_params.num_steps' key must be 16 or 32. Got 12",
        ),
    ],
    ids=["unknown", "unsupported", "batch_num", "num_steps"],
)
def test_nothing_is_written_that_could_not_be_read(tmp_path, config, message):
    with pytest.raises(QuantizationError) as caught:
        write_config_json(tmp_path / "config.json", config, NETWORK)
    assert message in str(caught.value)
    assert not (tmp_path / "config.json").exists()


def test_layer_called_like_a_global_key_is_refused(tmp_path):
    network = (replace(NETWORK[1], name="version"),)
    with pytest.raises(QuantizationError, match="rename the layer"):
        write_config_json(tmp_path / "config.json", QuantizationConfig({"version": LayerSettings()}), network)


def test_default_config_takes_all_that_can_be_quantized():
    config = build_arq_config(NETWORK, skip_layers=["conv2"], batch_num=3, activation_offset=False)
    assert list(config.layers) == ["conv1", "pool", "fc"]
    assert config.layers["conv1"] == LayerSettings()
    assert config.layers["fc"] == LayerSettings(weights=WeightSettings(channel_wise=False))
    assert (config.batch_num, config.activation_offset) == (3, False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv"], "layer 'conv': The 'skip_layers' key must be made of names of layers of the network"),
        (["relu1"], "layer 'relu1': The 'skip_layers' key must be made of layers of type Convolution,"),
        (["fc", "fc"], "free of repetitions"),
    ],
    ids=["unknown", "type", "twice"],
)
def test_default_config_refuses_layers_by_name(names, message):
    with pytest.raises(QuantizationError) as caught:
        build_arq_config(NETWORK, skip_layers=names)
    assert message in str(caught.value)
    assert caught.value.layer == names[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"skip_layers": "conv1"}, TypeError),
        ({"batch_num": 0}, ValueError),
        ({"batch_num": True}, ValueError),
        ({"activation_offset": 1}, TypeError),
    ],
    ids=["skip_layers", "batch_num", "batch_num-bool", "activation_offset"],
)
def test_default_config_names_the_misused_parameter(arguments, error):
    (name,) = arguments
    with pytest.raises(error, match=f"The '{name}' parameter of create_quant_config must be"):
        build_arq_config(NETWORK, **arguments)
