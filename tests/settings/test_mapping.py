"""ATC's JSON: markers, names, fallbacks, wrong shapes; and the list that goes back to ATC."""

from __future__ import annotations

import json

import pytest

from autonuq.amct.unsaid import CHOICES
from autonuq.errors import QuantizationError
from autonuq.graph.capability import Capability
from autonuq.settings.mapping import load_marks


def capability(name, *, nuq=True, quantizable=True):
    return Capability(name, "Convolution", 9, (1, 1, 3, 3), quantizable, nuq, True, "" if nuq else "group")


NETWORK = (
    capability("conv1"),
    capability("conv1_relu", nuq=False, quantizable=False),
    capability("conv10"),
    capability("grouped", nuq=False),
    capability("fc"),
)
MARK = {"key": "_fe_weight_compress", "value": {"b": True}}


def members(*names, key="_datadump_original_op_names"):
    return {"key": key, "value": {"list": {"s": list(names), "val_type": 1}}}


def operator(name, *attributes):
    return {"name": name, "type": "Conv2D", "attr": list(attributes)}


@pytest.fixture
def write(tmp_path):
    def write_operators(*operators):
        path = tmp_path / "om.json"
        path.write_text(json.dumps({"name": "om", "graph": [{"name": "g", "op": list(operators)}]}))
        return path

    return write_operators


def test_marked_layers_come_in_file_order_and_once(write):
    path = write(
        operator("fcfc_dequant", MARK, members("fc", "fc_dequant")),
        operator("plain", members("conv10")),
        operator("q", MARK, members("conv1_0_quant_layer", "conv1", "conv1_dequant_layer", "conv1_relu")),
        operator("again", MARK, members("fc")),
        {"name": "no attributes"},
    )
    assert load_marks(path, NETWORK).layers == ("fc", "conv1")


@pytest.mark.parametrize("key", ["_fe_weight_compress", "fe_weight_compress"])
@pytest.mark.parametrize("value", [{"b": True}, {"b": 1}, {"b": "true"}, {"i": 1}, {"s": "true"}, True], ids=str)
def test_both_spellings_and_every_way_of_saying_yes(write, key, value):
    path = write(operator("x", {"key": key, "value": value}, members("conv1")))
    assert load_marks(path, NETWORK).layers == ("conv1",)


@pytest.mark.parametrize("value", [{"b": False}, {"b": 0}, {"s": "false"}, {}, None], ids=str)
def test_a_marker_can_say_no(write, value):
    path = write(operator("x", {"key": "_fe_weight_compress", "value": value}, members("conv1")))
    assert load_marks(path, NETWORK).layers == ()


def test_other_lists_of_original_names_are_the_first_fallback(write):
    path = write(operator("x", MARK, members("conv10", key="original_op_names")))
    assert load_marks(path, NETWORK).layers == ("conv10",)


def test_longest_layer_name_that_starts_the_operators_name_is_the_last_resort(write):
    path = write(operator("conv10conv10_dequant", MARK), operator("fc", MARK, members("elsewhere")))
    assert load_marks(path, NETWORK).layers == ("conv10", "fc")


def test_marks_tell_what_cannot_be_used(write):
    path = write(operator("g", MARK, members("grouped")), operator("alien", MARK, members("alien")))
    marks = load_marks(path, NETWORK)
    assert marks.layers == ("grouped",)
    assert marks.unmatched == ("alien",)


WRONG = {
    "list": ([], "an object with a list 'graph'. Got [] instead"),
    "no-graph": ({"op": []}, "an object with a list 'graph'"),
    "graph-no-object": ({"graph": [3]}, "a list 'op' in graph[0]. Got 3 instead"),
    "op-no-list": ({"graph": [{"op": {}}]}, "a list 'op' in graph[0]"),
    "op-no-name": ({"graph": [{"op": [{}]}]}, "an object with a 'name' at graph[0].op[0]. Got {} instead"),
    "attr-no-list": (
        {"graph": [{"op": [{"name": "x", "attr": {}}]}]},
        "at graph[0].op[0].attr. Got {} instead",
    ),
    "attr-no-key": ({"graph": [{"op": [{"name": "x", "attr": [{}]}]}]}, "a list of {key, value} at"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_shape_is_named(tmp_path, content, message):
    path = tmp_path / "om.json"
    path.write_text(json.dumps(content))
    with pytest.raises(QuantizationError) as caught:
        load_marks(path, NETWORK)
    assert str(caught.value).startswith(f"{path}: The mapping file must hold")
    assert message in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(QuantizationError, match=r"none\.json: cannot be read"):
        load_marks(tmp_path / "none.json", NETWORK)
    (tmp_path / "om.json").write_text("{\n 'x'}")
    with pytest.raises(QuantizationError, match=r"om\.json: is not JSON at line 2, column 2"):
        load_marks(tmp_path / "om.json", NETWORK)


def test_every_choice_says_what_and_why():
    assert all(choice.chosen and choice.because for choice in CHOICES.values())
    with pytest.raises(TypeError):
        CHOICES["new"] = None
