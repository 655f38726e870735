"""A network's last layers, and what it puts out, say which evaluator fits it."""

from pathlib import Path

import numpy as np
import pytest

from autonuq.evaluate.builtin.suggestion import suggest_evaluator
from autonuq.graph.files import parse_graph
from autonuq.graph.layers import infer_known_shapes

INPUT = """
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: {0} dim: {1} }} }} }}
"""
CONV = """
layer {{ name: "{1}" type: "Convolution" bottom: "{0}" top: "{1}"
        convolution_param {{ num_output: {2} kernel_size: {3} stride: {3} }} }}
"""
FC = 'layer {{ name: "{1}" type: "InnerProduct" bottom: "{0}" top: "{1}" inner_product_param {{ num_output: {2} }} }}\n'
ONE = 'layer {{ name: "{1}" type: "{2}" bottom: "{0}" top: "{1}" }}\n'


def suggested(text, found=None, **given):
    graph = parse_graph(text.encode(), Path("net.prototxt"))
    shapes = infer_known_shapes(graph)
    rng = np.random.default_rng(0)
    made = {blob: rng.standard_normal((32, *shapes[blob][1:]), np.float32) for blob in graph.outputs}
    return suggest_evaluator(graph, shapes, made | (found or {}))


HEAD = INPUT.format(64, 64) + CONV.format("data", "c", 8, 4)


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        (FC.format("c", "fc", 10) + ONE.format("fc", "p", "Softmax"), "agreement"),
        (FC.format("c", "fc", 10), "agreement"),  # logits
        (FC.format("c", "fc", 1), "outputs"),
        (FC.format("c", "fc", 40) + ONE.format("fc", "p", "Sigmoid"), "outputs"),  # attributes
        (FC.format("c", "fc", 2) + FC.format("c", "box", 4) + ONE.format("fc", "p", "Softmax"), "outputs"),
        (CONV.format("c", "map", 21, 1) + ONE.format("map", "p", "Softmax"), "agreement"),  # of each pixel
        (CONV.format("c", "map", 17, 1), "outputs"),  # heat maps
    ],
)
def test_kind_of_a_network(tail, kind):
    assert suggested(HEAD + tail).kind == kind


def test_outputs_that_are_always_largest_at_one_place_are_no_classes():
    landmarks = np.tile(np.arange(10, dtype=np.float32), (32, 1))
    found = suggested(HEAD + FC.format("c", "fc", 10), {"fc": landmarks})
    assert found.kind == "outputs"
    assert not found.classifies


def test_one_class_a_picture_or_one_a_pixel():
    softmax = ONE.format("map", "p", "Softmax")
    assert suggested(HEAD + FC.format("c", "map", 10) + softmax).classifies
    assert not suggested(HEAD + CONV.format("c", "map", 21, 1) + softmax).classifies  # labels.txt cannot be theirs


def test_embeddings_are_compared_by_their_angle():
    assert suggested(HEAD + FC.format("c", "fc", 128)).keys == {"measure": "cosine"}


def test_yolo_maps_get_the_anchors_of_their_sizes():
    maps = "".join(CONV.format("data", f"m{step}", 3 * 85, step) for step in (8, 16, 32))
    found = suggested(INPUT.format(416, 416) + maps)
    assert found.kind == "detections"
    assert found.detections["outputs"] == ("m8", "m16", "m32")
    assert found.detections["anchors"][0][0] == (10, 13)
    assert found.detections["anchors"][2][2] == (373, 326)
    assert suggested(INPUT.format(416, 416) + CONV.format("data", "m8", 256, 8)).kind == "outputs"


PAIR = """
layer {{ name: "b" type: "InnerProduct" bottom: "c" top: "b" inner_product_param {{ num_output: {boxes} }} }}
layer {{ name: "boxes" type: "Reshape" bottom: "b" top: "boxes" reshape_param {{ shape {{ dim: 1 dim: -1 dim: 4 }} }} }}
layer {{ name: "s" type: "InnerProduct" bottom: "c" top: "s" inner_product_param {{ num_output: {scores} }} }}
layer {{ name: "scores" type: "Reshape" bottom: "s" top: "scores"
        reshape_param {{ shape {{ dim: 1 dim: -1 dim: 2 }} }} }}
"""


def test_boxes_beside_scores():
    head = INPUT.format(240, 320) + CONV.format("data", "c", 1, 80)
    faces = suggested(head + PAIR.format(boxes=4420 * 4, scores=4420 * 2))
    assert (faces.kind, faces.detections["boxes"], faces.detections["scores"]) == ("detections", "boxes", "scores")
    assert faces.detections["strides"] == (8, 16, 32, 64)
    corners = np.sort(np.random.default_rng(0).random((32, 50, 2, 2)), axis=2).reshape(32, 50, 4).astype(np.float32)
    plain = suggested(head + PAIR.format(boxes=200, scores=100), {"boxes": corners})
    assert (plain.detections["box_format"], plain.detections["box_unit"]) == ("corners", "shares")
    assert suggested(head + PAIR.format(boxes=200, scores=100)).kind == "outputs"  # offsets from who knows what
