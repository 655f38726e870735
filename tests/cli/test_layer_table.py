"""What `inspect` prints: the layers with weights, in a terminal of 80 columns, whatever they are called."""

import json
import re
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from autonuq.cli.documents import SCHEMAS
from autonuq.cli.layer_table import Reasons, shortened, show_layers
from autonuq.cli.models import inspect
from autonuq.graph.capability import Capability
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes

MARK = SimpleNamespace(is_marked=False, reason="2304 bytes of weights, not over 262144")
VIEW = SimpleNamespace(mark=MARK, judgement=SimpleNamespace(is_kept=True, ratio=0.39))
KINDS = (
    ("InnerProduct", (4096, 25088), True, ""),
    ("Convolution", (2048, 1024, 1, 1), True, ""),
    ("Convolution", (96, 1, 3, 3), False, "a codebook needs group 1, not 96"),
    ("Deconvolution", (512, 1024, 16, 16), False, "a Deconvolution needs dilation 1 and group 1"),
)


def table(layers, name, chip, capsys):
    found = []
    for index in range(layers):
        kind, shape, nuq, reason = KINDS[index % len(KINDS)]
        found.append(Capability(name % index, kind, int(np.prod(shape)), shape, kind[0] != "D", nuq, False, reason))
    views = {layer.name: VIEW for layer in found if layer.nuq} if chip else {}
    show_layers(found, {layer.name: 4 * layer.weights for layer in found}, views, chip)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("chip", [None, "ascend310b"])
@pytest.mark.parametrize(
    ("layers", "name"),
    [(4, "conv%d"), (54, "res%d_branch2a"), (150, "stage_4/inception_block/branch_with_a_name/conv_3x3_%d")],
)
def test_every_layer_is_one_line_of_a_narrow_terminal(layers, name, chip, capsys):
    lines = table(layers, name, chip, capsys)
    rows = [line for line in lines[1:] if re.search(r"[\d,]{9} +(codebook|int8|float)|3,456 ", line)]
    assert rows == lines[1 : layers + 1]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for size in ("411,041,792", "8,388,608", "3,456", "536,870,912"):
        assert sum(f" {size} " in row for row in rows) >= layers // 4
    assert all(row.startswith(name % index) or row.split()[0].endswith(f"{index}") for index, row in enumerate(rows))
    assert not chip or sum("yes 0.39" in row for row in rows) == sum(index % 4 < 2 for index in range(layers))


def write_network(folder):
    """Write a network with layers of every kind and return its files."""
    pair = folder / "net.prototxt", folder / "net.caffemodel"
    pair[0].write_text("""
layer { name: "data" type: "Input" top: "x" input_param { shape { dim: 2 dim: 8 dim: 8 dim: 8 } } }
layer { name: "plain" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "groups" type: "Convolution" bottom: "a" top: "b"
        convolution_param { num_output: 8 kernel_size: 3 group: 8 } }
layer { name: "wide" type: "InnerProduct" bottom: "b" top: "c" inner_product_param { num_output: 30 } }
layer { name: "turned" type: "InnerProduct" bottom: "c" top: "y" inner_product_param { num_output: 9 transpose: true } }
""")
    graph = load_graph(pair[0])
    shapes = infer_shapes(graph)
    filled = [
        layer.with_(blobs=tuple(np.ones(shape, np.float32) for shape in blob_shapes(graph, layer, shapes)))
        for layer in graph.layers
    ]
    write_model(graph.with_layers(filled), *pair)
    return pair


def test_the_widest_come_first_with_totals_reasons_and_needs(tmp_path, capsys):
    inspect(*write_network(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["wide", "plain", "turned", "groups"]
    text = "\n".join(lines)
    assert "relu" not in text
    assert "a codebook needs group 1, not 8 (1 layer)" in text
    total = {line.split("  ")[0]: re.findall(r" ([\d,.]+)", line) for line in lines if line.endswith("%")}
    wide, plain, turned, groups = 4 * 30 * 128, 4 * 576, 4 * 270, 4 * 72
    assert total["with weights"] == ["4", f"{wide + plain + turned + groups:,}", "100.0"]
    assert total["can be int8"][:2] == ["3", f"{wide + plain + groups:,}"]
    assert total["can carry a codebook"][:2] == ["2", f"{wide + plain:,}"]
    assert total["left alone"][:2] == ["1", f"{turned:,}"]
    assert "left alone because: needs transpose false" in text
    assert re.search(r"a study takes about .* of memory, .* of disk", text)
    assert re.search(r"before its trials: about .* with 200 images", text)


def test_all_and_json_have_every_layer_in_order(tmp_path, capsys):
    pair = write_network(tmp_path)
    inspect(*pair, every=True)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:7]]
    assert names == ["data", "plain", "relu", "groups", "wide", "turned"]
    inspect(*pair, as_json=True)
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, SCHEMAS["inspect"])
    assert [row["name"] for row in document["layers"]] == names
    assert list(document["layers"][0])[:7] == ["name", "type", "weights", "shape", "quantizable", "nuq", "reason"]
    assert document["layers"][4]["float_bytes"] == 4 * 30 * 128


@pytest.mark.parametrize(
    ("name", "room", "expected"),
    [("conv1", 8, "conv1"), ("fire9/expand3x3", 11, "fire9..d3x3"), ("卷积层三乘三的名字", 10, "卷积..名字")],
)
def test_names_lose_their_middle(name, room, expected):
    assert shortened(name, room) == expected


def test_reasons_that_differ_in_numbers_or_names_are_one():
    reasons = Reasons()
    given = ["needs 1, not 2x2", "needs 1, not 16x16", "is folded into 'a'", "needs 1, not 3x3", "is folded into 'b'"]
    assert [reasons.number(one) for one in given] == ["1", "1", "2", "1", "2"]
    assert reasons.said() == [("needs 1, not 2x2 to 16x16", 3), ("is folded into 'a' or another", 2)]
