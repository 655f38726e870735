"""The layers that a chip would mark: predicted, read from ATC's file, and the two compared."""

import json

import pytest

from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.graph.passes import capabilities
from autonuq.graph.record import load_record
from autonuq.settings.mapping import load_marks, predicted_layers
from autonuq.settings.simplified import load_simplified

STAGE_5 = ["res5a_branch1", *(f"res5{block}_branch2{branch}" for block in "abc" for branch in "abc")]

# Of 3 x 3 convolutions with 256 outputs on a 7 x 7 map, those with at least 114 inputs have weights over 262,144 bytes.
NETWORK = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 64 dim: 7 dim: 7 } } }
layer { name: "small" type: "Convolution" bottom: "data" top: "small"
        convolution_param { num_output: 256 kernel_size: 3 pad: 1 } }
layer { name: "large" type: "Convolution" bottom: "small" top: "large"
        convolution_param { num_output: 256 kernel_size: 3 pad: 1 } }
layer { name: "grouped" type: "Convolution" bottom: "large" top: "grouped"
        convolution_param { num_output: 1024 kernel_size: 3 pad: 1 group: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "grouped" top: "fc" inner_product_param { num_output: 100 } }
"""


def operator(name, *, marked):
    """Make an operator as ATC's file has it: its Const inputs and quantizers fused into it."""
    attributes = [
        {"key": "_datadump_original_op_names", "value": {"list": {"s": [name, f"{name}_dequant_layer"], "val_type": 1}}}
    ]
    if marked:
        attributes.append({"key": "_fe_weight_compress", "value": {"b": True}})
    return {"name": f"{name}{name}_dequant_layer", "type": "Conv2D", "id": 7, "attr": attributes}


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "net.prototxt").write_text(NETWORK)
    return load_graph(tmp_path / "net.prototxt")


@pytest.fixture
def resolve(tmp_path, graph):
    """Resolve a nuq_config for the network, with a mapping file that marks some layers."""

    def resolve_block(block, marked=()):
        names = [layer.name for layer in graph.layers]
        document = {"graph": [{"name": "mergedGraph_0", "op": [operator(n, marked=n in marked) for n in names]}]}
        (tmp_path / "om.json").write_text(json.dumps(document))
        (tmp_path / "quant.cfg").write_text(f"nuq_config {{ {block} nuq_quantize {{ num_steps: 16 }} }}")
        loaded = load_simplified(tmp_path / "quant.cfg", capabilities(graph), graph)
        nuq = [name for name, layer in loaded.config.layers.items() if layer.weights.algorithm == "nuq"]
        return nuq, loaded.warnings

    return resolve_block


def test_prediction_needs_no_mapping_file(resolve):
    assert resolve('chip: "ascend310"') == (["large"], ())
    assert resolve('chip: "Ascend310"') == (["large"], ())


def test_mapping_file_and_prediction_that_agree_are_silent(resolve):
    assert resolve('mapping_file: "om.json" chip: "ascend310"', marked=["large"]) == (["large"], ())


def test_differences_are_shown_and_the_file_counts(resolve):
    nuq, (warning,) = resolve('mapping_file: "om.json" chip: "ascend310"', marked=["small", "fc"])
    assert nuq == ["small", "fc"]
    assert warning.endswith(
        "om.json differs from the prediction for ascend310: only the file marks small, fc; only the prediction marks "
        "large. The file counts."
    )


def test_a_chip_that_gains_nothing_is_said(resolve, monkeypatch):
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", 10**9)
    nuq, (warning,) = resolve('chip: "ascend910"')
    assert nuq == []
    assert "on ascend910 no convolution takes longer to load its weights than to compute with them" in warning
    assert "gains nothing there" in warning


@pytest.fixture
def resnet50(shared):
    return load_graph(shared / "models/resnet50-shape/deploy.prototxt")


def test_published_files_give_the_ten_convolutions_of_stage_5(shared, resnet50, tmp_path):
    able = capabilities(resnet50)
    files = tmp_path / "src/nuq_files"
    files.mkdir(parents=True)
    (files / "resnet50_om_model.json").symlink_to(shared / "data/amct/resnet50_om_model.json")
    loaded = load_simplified(shared / "data/amct/quant.cfg", able, resnet50)
    nuq = {name: layer for name, layer in loaded.config.layers.items() if layer.weights.algorithm == "nuq"}
    assert sorted(nuq) == sorted(STAGE_5)
    assert {layer.weights.num_steps for layer in nuq.values()} == {32}
    assert loaded.config.batch_num == 2
    assert loaded.warnings == ()
    assert sorted(load_marks(files / "resnet50_om_model.json", able).layers) == sorted(STAGE_5)
    assert sorted(predicted_layers(resnet50, "ascend310")) == sorted(STAGE_5)


def test_published_record_belongs_to_the_network(shared, resnet50):
    """The record names every convolution, and the input of each has the recorded shape."""
    record = load_record(shared / "data/amct/record.txt", complete=True)
    quantizable = {layer.name for layer in capabilities(resnet50) if layer.quantizable and layer.weights}
    assert set(record) == quantizable
    shapes = infer_shapes(resnet50)
    for name, factors in record.items():
        bottom = (*shapes[resnet50.by_name[name].bottoms[0]][1:], 1, 1)[:3]
        assert (factors.channels, factors.height, factors.width) == bottom, name
