"""What bytes are counted with: from nuq_config to config.json and back, with what a study says itself."""

import json
from dataclasses import replace

import pytest
from chip_network import MARK_BYTES, NETWORK

from autonuq.errors import QuantizationError
from autonuq.graph.files import load_graph
from autonuq.graph.passes import capabilities
from autonuq.quant.config import Target
from autonuq.settings.config_json import build_arq_config, load_config_json, write_config_json
from autonuq.settings.simplified import load_simplified

NUQ = "nuq_quantize { num_steps: 16 }"
EVERY = ["small", "large", "fc"]


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setattr("autonuq.quant.atc.chips.MARK_BYTES", MARK_BYTES)
    (tmp_path / "net.prototxt").write_text(NETWORK)
    return load_graph(tmp_path / "net.prototxt")


@pytest.fixture
def resolve(tmp_path, network):
    """Resolve a nuq_config under what the study says: (layers to search, target, warnings)."""

    def resolved(block, said=(), marked=("small",)):
        attributes = [{"key": "_fe_weight_compress", "value": {"b": True}}]
        operators = [{"name": name, "attr": attributes} for name in marked]
        (tmp_path / "om.json").write_text(json.dumps({"graph": [{"op": operators}]}))
        (tmp_path / "quant.cfg").write_text(f"nuq_config {{ {block} {NUQ} }}")
        loaded = load_simplified(tmp_path / "quant.cfg", capabilities(network), network, Target(**dict(said)))
        nuq = [name for name, layer in loaded.config.layers.items() if layer.weights.algorithm == "nuq"]
        return nuq, loaded.config.target, loaded.warnings

    return resolved


def test_what_is_not_said_is_not_there(resolve):
    assert resolve('mapping_file: "om.json"')[:2] == (["small"], Target())
    assert resolve('mapping_file: "om.json" codec: "fixed"')[1] == Target("fixed")


def test_chip_codec_and_marks(resolve):
    assert resolve('chip: "Ascend310"') == (["large"], Target(chip="ascend310"), ())
    assert resolve('chip: "ascend310" codec: "ascend"')[1] == Target("ascend", "ascend310")
    nuq, target, warnings = resolve('chip: "ascend310" marks: "all"')
    assert (nuq, target, warnings) == (EVERY, Target(chip="ascend310", marks="all"), ())


def test_a_mapping_file_s_marks_come_along(resolve):
    nuq, target, (warning,) = resolve('chip: "ascend310" mapping_file: "om.json"')
    assert (nuq, target.marked) == (["small"], ("small",))
    assert "only the file marks small; only the prediction marks large. The file counts." in warning


CHIP = {"chip": "ascend910"}


def test_what_a_study_says_decides_on_layers(resolve):
    """Its `marks` are not too late for layers that the cfg alone would leave uniform."""
    assert resolve('chip: "ascend310"', {"marks": "all"})[:2] == (EVERY, Target(chip="ascend310", marks="all"))
    assert resolve('chip: "ascend310" marks: "all"', {"marks": "compiler"})[0] == ["large"]
    assert resolve('marks: "all"', CHIP)[:2] == (EVERY, Target(chip="ascend910", marks="all"))
    assert resolve("", CHIP)[:2] == (["large"], Target(chip="ascend910"))


def test_a_mapping_file_is_of_the_chip_beside_it(resolve):
    """With no chip beside it, it is of the study's; it says nothing of another one than its own."""
    nuq, target, _ = resolve('mapping_file: "om.json"', CHIP)
    assert (nuq, target) == (["small"], Target(chip="ascend910", marked=("small",)))
    nuq, target, warnings = resolve('chip: "ascend310" mapping_file: "om.json"', CHIP)
    assert (nuq, target) == (["large"], Target(chip="ascend910"))
    assert warnings[-1].endswith("quant.cfg: mapping_file is of ascend310; what ascend910 marks is predicted.")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Target(), Target("", "ascend310", "all", ("a",)), Target("", "ascend310", "all", ("a",))),
        (Target(chip="ascend910"), Target(chip="ascend310", marked=("a",)), Target(chip="ascend910")),
        (Target(chip="ascend310"), Target(chip="ascend310", marked=("a",)), Target(chip="ascend310", marked=("a",))),
        (Target(marks="all"), Target(chip="ascend310", marks="compiler"), Target(chip="ascend310", marks="all")),
        (Target(marked=()), Target(chip="ascend310", marked=("a",)), Target(chip="ascend310", marked=())),
        (Target("fixed"), Target("entropy"), Target("fixed")),
    ],
)
def test_one_word_over_another(one, other, expected):
    assert one.over(other) == expected


BAD = {
    "chip": (
        'chip: "ascend311"',
        "'nuq_config.chip' key must be one of ascend310, ascend310b, ascend310p, ascend910. Got \"ascend311\" instead. "
        "Did you mean 'ascend310'",
    ),
    "marks": (
        'chip: "ascend310" marks: "al"',
        "'nuq_config.marks' key must be one of compiler, all. Got \"al\" instead. Did you mean 'all'",
    ),
    "codec": (
        'chip: "ascend310" codec: "asced"',
        "'nuq_config.codec' key must be one of fixed, entropy, ascend. Got \"asced\" instead. Did you mean 'ascend'",
    ),
    "no chip": ('mapping_file: "om.json" marks: "all"', "'nuq_config.marks' key must be left out without a chip"),
    "other codec": (
        'chip: "ascend310" codec: "entropy"',
        "'nuq_config.codec' key must be 'ascend' or left out for ascend310, which reads no other. Got \"entropy\"",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_words_in_a_cfg(name, resolve, tmp_path):
    block, words = BAD[name]
    with pytest.raises(QuantizationError) as error:
        resolve(block)
    assert words in str(error.value)
    assert error.value.path == tmp_path / "quant.cfg"


@pytest.mark.parametrize("name", ["chip", "marks", "codec"])
def test_what_nobody_knows_is_refused_though_the_study_says_it_right(name, resolve):
    with pytest.raises(QuantizationError, match=f"'nuq_config.{name}' key must be one of"):
        resolve(BAD[name][0], {"chip": "ascend310", "marks": "all", "codec": "ascend"})


def test_a_mapping_file_of_another_network_is_refused(resolve, tmp_path):
    with pytest.raises(QuantizationError, match="must be this network's. Got 2 marked operators instead, 'res1'"):
        resolve('chip: "ascend310" mapping_file: "om.json"', marked=("res1", "res2"))
    nuq, target, _ = resolve('chip: "ascend310" mapping_file: "om.json"', marked=())
    assert (nuq, target.marked) == ([], ())


@pytest.fixture
def written(tmp_path, network):
    """Write a config.json for a target and return what is read again, or change the document before."""

    def write(target, **changes):
        able, path = capabilities(network), tmp_path / "config.json"
        write_config_json(path, replace(build_arq_config(able), target=target), able)
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, **changes}))
        return load_config_json(path, able).config.target, document

    return write


@pytest.mark.parametrize(
    "target",
    [
        Target(),
        Target("fixed"),
        Target("ascend"),
        Target(chip="ascend310p"),
        Target("ascend", "ascend910", "all"),
        Target(chip="ascend310", marks="compiler", marked=("small", "fc")),
        Target(chip="ascend310", marked=()),
    ],
)
def test_config_json_keeps_it(target, written):
    found, document = written(target)
    assert found == target
    assert not document.keys() & {"codec", "chip", "marks", "marked_layers"} or target != Target()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chip": "ascend31"}, "'chip' key must be one of ascend310, ascend310b.*Did you mean 'ascend310'"),
        ({"chip": 310}, "'chip' key must be text. Got 310"),
        ({"chip": {}}, "'chip' key must be text"),
        ({"marks": "all"}, "'marks' key must be left out without a chip"),
        ({"chip": "ascend310", "codec": "entropy"}, "'codec' key must be 'ascend' or left out for ascend310"),
        ({"codec": "zip"}, "'codec' key must be one of fixed, entropy, ascend"),
        ({"chip": "ascend310", "marked_layers": "large"}, "'marked_layers' key must be a list of layer names"),
        ({"chip": "ascend310", "marked_layers": ["lagre"]}, "'marked_layers' key must be.*Did you mean 'large'"),
        ({"marked_layers": ["large"]}, "'marked_layers' key must be left out without a chip"),
        ({"chpi": "ascend310"}, "'chpi' key must be one of the global keys.*Did you mean 'chip'"),
    ],
)
def test_bad_words_in_a_config_json(changes, words, written, tmp_path):
    with pytest.raises(QuantizationError, match=words) as error:
        written(Target(), **changes)
    assert error.value.path == tmp_path / "config.json"


@pytest.mark.parametrize("name", ["chip", "codec", "marks", "marked_layers"])
def test_a_layer_may_have_the_name_of_such_a_key(name, tmp_path):
    (tmp_path / "net.prototxt").write_text(NETWORK.replace('name: "large"', f'name: "{name}"'))
    graph = load_graph(tmp_path / "net.prototxt")
    able, path = capabilities(graph), tmp_path / "config.json"
    config = build_arq_config(able)
    write_config_json(path, config, able)
    assert load_config_json(path, able).config == config
    other = Target(chip="ascend310") if name != "chip" else Target("fixed")
    write_config_json(path, replace(config, target=other), able)
    assert load_config_json(path, able).config == replace(config, target=other)
    own = Target("ascend", "ascend310", "all", ("fc",))
    with pytest.raises(QuantizationError, match=f"'{name}' key must be the layer of this name; say it to auto_nuq"):
        write_config_json(path, replace(config, target=own), able)
    del config.layers[name]  # a layer that stays float leaves the key to the chip
    write_config_json(path, replace(config, target=own), able)
    assert load_config_json(path, able).config.target == own
