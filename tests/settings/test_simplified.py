"""The simplified .cfg: priorities, marked layers, and errors that name their place."""

from __future__ import annotations

import json

import pytest

from autonuq.errors import QuantizationError
from autonuq.graph.capability import Capability
from autonuq.quant.config import ActivationSettings, LayerSettings, QuantizationConfig, WeightSettings
from autonuq.settings.config_json import load_config_json, write_config_json
from autonuq.settings.simplified import load_simplified

NETWORK = (
    Capability("data", "Input", 0, (), False, False, False, "type Input is not supported"),
    Capability("conv1", "Convolution", 216, (8, 3, 3, 3), True, True, True, ""),
    Capability("relu1", "ReLU", 0, (), False, False, False, "type ReLU is not supported"),
    Capability("conv2", "Convolution", 288, (8, 4, 3, 3), True, False, True, "NUQ needs group 1, not 2"),
    Capability("conv3", "Convolution", 576, (8, 8, 3, 3), True, True, True, ""),
    Capability("pool", "Pooling", 0, (), True, False, False, "a Pooling has no weights to cluster"),
    Capability("fc", "InnerProduct", 80, (10, 8), True, True, False, ""),
)
BY_CHANNEL = LayerSettings()
BY_LAYER = LayerSettings(weights=WeightSettings(channel_wise=False))
NUQ_16_3 = WeightSettings("nuq", num_steps=16, num_of_iteration=3)

MAPPING = {
    "graph": [
        {
            "op": [
                {
                    "name": f"{name}{name}_dequant_layer",
                    "attr": [
                        {"key": "_fe_weight_compress", "value": {"b": True}},
                        {"key": "_datadump_original_op_names", "value": {"list": {"s": [name]}}},
                    ],
                }
                for name in ("conv3", "conv1", "fc")
            ]
        }
    ]
}
NUQ = 'nuq_config { mapping_file: "map.json" nuq_quantize { num_steps: 16 num_of_iteration: 3 } }\n'


@pytest.fixture
def load(tmp_path):
    def load_text(text):
        (tmp_path / "map.json").write_text(json.dumps(MAPPING))
        (tmp_path / "quant.cfg").write_text(text)
        return load_simplified(tmp_path / "quant.cfg", NETWORK)

    return load_text


def test_empty_file_means_defaults_for_every_layer(load):
    loaded = load("# nothing\n")
    layers = {"conv1": BY_CHANNEL, "conv2": BY_CHANNEL, "conv3": BY_CHANNEL, "pool": BY_LAYER, "fc": BY_LAYER}
    assert loaded.config == QuantizationConfig(layers)
    assert list(loaded.config.layers) == list(layers)
    assert loaded.warnings == ()


def test_global_settings(load):
    config = load(
        "batch_num: 4 activation_offset: false joint_quant: true do_fusion: false"
        ' skip_fusion_layers: "conv2" skip_fusion_layers: "conv1" skip_layers: "conv3"'
        ' skip_layer_types: "Pooling"'
    ).config
    assert (config.batch_num, config.activation_offset, config.joint_quant) == (4, False, True)
    assert (config.do_fusion, config.skip_fusion_layers) == (False, ("conv2", "conv1"))
    assert list(config.layers) == ["conv1", "conv2", "fc"]


def test_most_specific_block_counts_whole(load):
    layers = load("""
        common_config { ifmr_quantize { search_step: 0.5 } }
        override_layer_types {
            layer_type: "Convolution"
            calibration_config { hfmg_quantize { num_of_bins: 1024 asymmetric: false } }
        }
        override_layer_configs {
            layer_name: "conv2"
            calibration_config { arq_quantize { channel_wise: false quant_bits: 8 } }
        }
    """).config.layers
    assert layers["fc"].activation.search_step == 0.5
    by_type = ActivationSettings("hfmg", num_of_bins=1024, asymmetric=False)
    assert layers["conv1"] == LayerSettings(by_type)
    assert layers["conv2"] == BY_LAYER


def test_floats_come_out_short(load):
    text = "common_config { ifmr_quantize { search_range_end: 1.2 max_percentile: 0.999999 asymmetric: true } }"
    expected = ActivationSettings(search_end=1.2, asymmetric=True)
    assert load(text).config.layers["conv1"].activation == expected


@pytest.mark.parametrize(
    ("blocks", "algorithms"),
    [
        ("arq_quantize {} nuq_quantize {}", ("ifmr", "nuq")),
        ("nuq_quantize {} arq_quantize {}", ("ifmr", "arq")),
        ("ifmr_quantize {} hfmg_quantize {}", ("hfmg", "arq")),
        ("hfmg_quantize {} ifmr_quantize {}", ("ifmr", "arq")),
    ],
    ids=["nuq-last", "arq-last", "hfmg-last", "ifmr-last"],
)
def test_last_of_two_exclusive_blocks_wins(load, blocks, algorithms):
    settings = load(f"common_config {{ {blocks} }}").config.layers["conv1"]
    assert (settings.activation.algorithm, settings.weights.algorithm) == algorithms


def test_common_channel_wise_reaches_only_types_with_channels(load):
    layers = load("common_config { arq_quantize { channel_wise: true } }").config.layers
    assert [layers[name].weights.channel_wise for name in ("conv1", "pool", "fc")] == [True, False, False]


def test_marked_layers_get_codebooks_over_common_and_type_settings(load):
    loaded = load(
        NUQ
        + """
        common_config { arq_quantize {} ifmr_quantize { search_step: 0.5 } }
        override_layer_types { layer_type: "InnerProduct" calibration_config { arq_quantize {} } }
        """
    )
    layers = loaded.config.layers
    assert layers["conv1"] == LayerSettings(ActivationSettings(search_step=0.5), NUQ_16_3)
    assert layers["fc"].weights == WeightSettings("nuq", False, 16, 3)
    assert layers["conv2"].weights == WeightSettings()
    assert loaded.warnings == ()


def test_explicit_layer_override_beats_the_mapping_file(load):
    layers = load(
        NUQ
        + """
        override_layer_configs { layer_name: "conv1" calibration_config { arq_quantize {} } }
        override_layer_configs { layer_name: "conv3" calibration_config { nuq_quantize { num_steps: 32 } } }
        """
    ).config.layers
    assert layers["conv1"].weights == WeightSettings()
    assert layers["conv3"].weights == WeightSettings("nuq", num_steps=32)
    assert layers["fc"].weights.algorithm == "nuq"


def test_skipping_beats_the_mapping_file(load):
    assert "conv1" not in load(NUQ + 'skip_layers: "conv1"').config.layers


def test_nuq_defaults(load):
    layers = load('nuq_config { mapping_file: "map.json" }').config.layers
    assert layers["conv1"].weights == WeightSettings("nuq", num_steps=32, num_of_iteration=1)


def test_nuq_by_hand_needs_no_mapping_file_and_warns_where_it_cannot_be(load):
    loaded = load("""
        override_layer_configs { layer_name: "conv1" calibration_config { nuq_quantize {} } }
        override_layer_configs { layer_name: "conv2" calibration_config { nuq_quantize {} } }
    """)
    assert loaded.config.layers["conv1"].weights.algorithm == "nuq"
    assert loaded.config.layers["conv2"].weights == WeightSettings()
    (warning,) = loaded.warnings
    assert "'conv2'" in warning
    assert "NUQ needs group 1, not 2" in warning


def test_marked_layer_that_cannot_have_a_codebook_is_warned_about(load, tmp_path, monkeypatch):
    monkeypatch.setitem(MAPPING["graph"][0]["op"][0]["attr"][1]["value"]["list"], "s", ["conv2"])
    loaded = load(NUQ)
    assert loaded.config.layers["conv2"].weights == WeightSettings()
    assert "NUQ needs group 1, not 2" in loaded.warnings[0]


def test_useless_mapping_file_is_warned_about(load, monkeypatch):
    monkeypatch.setitem(MAPPING, "graph", [{"op": []}])
    (warning,) = load(NUQ).warnings
    assert "no layer of the network is marked" in warning


def test_mapping_file_is_found_from_the_working_directory_first(tmp_path, monkeypatch):
    work, beside = tmp_path / "work", tmp_path / "beside"
    for folder, name in ((work, "conv1"), (beside, "conv3")):
        folder.mkdir()
        op = {"name": name, "attr": [{"key": "fe_weight_compress", "value": {"b": True}}]}
        (folder / "map.json").write_text(json.dumps({"graph": [{"op": [op]}]}))
    (beside / "quant.cfg").write_text(NUQ)
    monkeypatch.chdir(work)
    layers = load_simplified(beside / "quant.cfg", NETWORK).config.layers
    assert [name for name in layers if layers[name].weights.algorithm == "nuq"] == ["conv1"]
    monkeypatch.chdir(tmp_path)
    layers = load_simplified(beside / "quant.cfg", NETWORK).config.layers
    assert [name for name in layers if layers[name].weights.algorithm == "nuq"] == ["conv3"]


def test_deprecated_blocks_count_while_no_new_block_is_there(load):
    loaded = load("""
        conv_calibration_config { arq_quantize { channel_wise: false } }
        fc_calibration_config { hfmg_quantize {} }
        override_layer_configs { layer_name: "conv3" calibration_config {} }
    """)
    layers = loaded.config.layers
    assert layers["conv1"] == BY_LAYER
    assert layers["conv3"] == BY_CHANNEL
    assert layers["fc"].activation.algorithm == "hfmg"
    assert layers["pool"] == BY_LAYER
    assert loaded.warnings == ()


def test_deprecated_blocks_are_ignored_with_a_warning_beside_new_ones(load):
    loaded = load("common_config {} conv_calibration_config { hfmg_quantize {} }")
    assert loaded.config.layers["conv1"] == BY_CHANNEL
    assert "conv_calibration_config is deprecated and ignored" in loaded.warnings[0]


def test_override_of_a_skipped_layer_is_warned_about(load):
    loaded = load('skip_layers: "fc" override_layer_configs { layer_name: "fc" calibration_config {} }')
    assert "fc" not in loaded.config.layers
    assert "layer 'fc': override_layer_configs is ignored" in loaded.warnings[0]


def override(block, layer="conv1"):
    return f'override_layer_configs {{ layer_name: "{layer}" calibration_config {{ {block} }} }}'


def override_type(name, block=""):
    return f'override_layer_types {{ layer_type: "{name}" calibration_config {{ {block} }} }}'


REFUSED = {
    "syntax": ("batch_num: 2\ncommon_config {\n  oops: 1\n}", "line 3, column 3: "),
    "not-closed": ("batch_num: 2\ncommon_config {\n", "line 2, column "),
    "negative": ("batch_num: -1", "line 1, column 12: "),
    "batch_num": ("batch_num: 0", "'batch_num' key must be an int > 0. Got 0"),
    "mapping-missing": ("nuq_config {}", "'nuq_config.mapping_file' key must be given, or 'nuq_config.chip'"),
    "chip": (
        'nuq_config { chip: "ascend31" }',
        "'nuq_config.chip' key must be one of ascend310, ascend310b, ascend310p, ascend910. Got \"ascend31\" instead. "
        "Did you mean 'ascend310'?",
    ),
    "mapping-lost": ('nuq_config { mapping_file: "no.json" }', 'must name a file. Got "no.json" instead'),
    "type-missing": ("override_layer_types { calibration_config {} }", "layer_type' key must be given"),
    "skip-unknown": ('skip_layers: "conf1"', "Got \"conf1\" instead. Did you mean 'conv1'?"),
    "skip-type": (
        'skip_layers: "relu1"',
        "layer 'relu1': The 'skip_layers' key must be made of layers of type",
    ),
    "skip-twice": ('skip_layers: "fc" skip_layers: "fc"', "'skip_layers' key must be free of repetitions"),
    "skip-type-unknown": (
        'skip_layer_types: "Conv"',
        "'skip_layer_types' key must be made of the layer types",
    ),
    "type-near": (override_type("Convolutions"), "Did you mean 'Convolution'?"),
    "type-twice": (override_type("Pooling") * 2, "'override_layer_types' key must be free of repetitions"),
    "layer-unknown": (override("", "fcc"), "layer 'fcc': The 'override_layer_configs' key"),
    "layer-twice": (override("") * 2, "'override_layer_configs' key must be free of repetitions"),
    "layer-unsupported": (override("", "relu1"), "can be quantized (type ReLU is not supported)"),
    "fusion": ('skip_fusion_layers: "fc"', "layer 'fc': The 'skip_fusion_layers' key"),
    "num_steps": (
        override("nuq_quantize { num_steps: 64 }"),
        "'override_layer_configs.nuq_quantize.num_steps' key must be 16 or 32. Got 64",
    ),
    "num_of_iteration": (
        'nuq_config { mapping_file: "map.json" nuq_quantize { num_of_iteration: 6 } }',
        "'nuq_config.nuq_quantize.num_of_iteration' key must be an int in [0, 5]. Got 6",
    ),
    "percentile": (
        "common_config { ifmr_quantize { max_percentile: 0.5 } }",
        "'common_config.ifmr_quantize.max_percentile' key must be a number in (0.5, 1]. Got 0.5",
    ),
    "nan": ("common_config { ifmr_quantize { min_percentile: nan } }", "a number in (0.5, 1]. Got NaN"),
    "range": (
        "common_config { ifmr_quantize { search_range_start: 1.5 } }",
        "'common_config.ifmr_quantize.search_range_start, search_range_end' key must be two numbers",
    ),
    "step": ("common_config { ifmr_quantize { search_step: 0.7 } }", "a number in (0, 0.6]"),
    "bins": (override("hfmg_quantize { num_of_bins: 5 }"), "hfmg_quantize.num_of_bins' key must be 1024"),
    "bits": (override("arq_quantize { quant_bits: 4 }"), "arq_quantize.quant_bits' key must be 8. Got 4"),
    "channel_wise-type": (
        override_type("Pooling", "arq_quantize { channel_wise: true }"),
        "'override_layer_types[Pooling].arq_quantize.channel_wise' key must be false for Pooling layers",
    ),
    "channel_wise-layer": (
        override("arq_quantize { channel_wise: true }", "fc"),
        "layer 'fc': The 'override_layer_configs.arq_quantize.channel_wise' key must be false",
    ),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_broken_rules_are_named_with_file_key_and_value(load, tmp_path, text, message):
    with pytest.raises(QuantizationError) as caught:
        load(text)
    assert str(caught.value).startswith(str(tmp_path / "quant.cfg"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(QuantizationError, match=r"none\.cfg: cannot be read"):
        load_simplified(tmp_path / "none.cfg", NETWORK)
    (tmp_path / "bad.cfg").write_bytes(b"\xff\xfe")
    with pytest.raises(QuantizationError, match=r"bad\.cfg: is not UTF-8"):
        load_simplified(tmp_path / "bad.cfg", NETWORK)


def test_resolved_settings_survive_config_json(load, tmp_path):
    config = load(NUQ + "batch_num: 2 common_config { hfmg_quantize {} }").config
    write_config_json(tmp_path / "config.json", config, NETWORK)
    assert load_config_json(tmp_path / "config.json", NETWORK).config == config
