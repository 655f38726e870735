"""How outputs of detectors are read: every layout against boxes worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.boxes import DetectionSettings
from autonuq.evaluate.builtin.layouts import build_priors, find_layout
from autonuq.graph.files import parse_graph
from autonuq.graph.layers import infer_shapes


def network(*layers, size=(32, 64), batch=2):
    """A network whose blobs have the shapes of `layers`, (type and parameters)."""
    return parse_graph("\n".join([given("d", batch, 3, *size), *layers]).encode(), Path("made.prototxt"))


def given(name, *shape):
    dims = ", ".join(map(str, shape))
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ dim: [{dims}] }} }} }}'


def layout_of(graph, **settings):
    return find_layout(DetectionSettings(**settings), graph, infer_shapes(graph), "d")


SSD = (
    given("loc", 2, 16),
    given("conf", 2, 12),
    given("prior", 1, 2, 16),
    'layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "out" '
    "detection_output_param { num_classes: 3 %s } }",
)


def test_ssd():
    layout = layout_of(network(*SSD[:3], SSD[3] % ""))
    assert (layout.blobs, layout.classes, layout.nms) == (("out",), 2, None)
    rows = np.array(
        [[0, 1, 0.9, 0.1, 0.2, 0.3, 0.4], [1, 2, 0.8, 0, 0, 1, 1], [1, 0, 0.8, 0, 0, 1, 1], [1, 1, 0.01, 0, 0, 1, 1]]
        + [[0, *[-1] * 6], [-1] * 7, [-1, 1, 0.9, 0, 0, 1, 1]],
        np.float32,
    )
    found = layout.read({"out": rows[None, None]}, 0.05)
    assert found.images.tolist() == [0, 1]
    assert found.classes.tolist() == [0, 1]
    assert found.boxes[0] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_ssd_without_background():
    graph = network(*SSD[:3], SSD[3] % "background_label_id: -1")
    assert layout_of(graph).classes == 3
    row = np.array([[[[0, 0, 0.9, 6.4, 3.2, 64, 32]]]], np.float32)
    found = layout_of(graph, box_unit="pixels").read({"out": row}, 0.05)
    assert found.classes.tolist() == [0]
    assert found.boxes[0] == pytest.approx([0.1, 0.1, 1, 1])
    assert layout_of(graph, background="first").classes == 2


def test_pairs_of_corners_and_centres():
    graph = network(given("b", 2, 5, 4), given("s", 2, 5, 3))
    graph_flat = network(given("b", 2, 20), given("s", 2, 15))
    boxes, scores = np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, 3), np.float32)
    boxes[1, 3], scores[1, 3] = (0.5, 0.5, 0.2, 0.4), (0.1, 0.3, 0.6)
    for own, extra in ((graph, {}), (graph_flat, {"boxes": ("b",)})):
        feed = {
            "b": boxes.reshape(infer_shapes(own)["b"]),
            "s": scores.reshape(infer_shapes(own)["s"]),
        }
        settings = {"layout": "pairs", "boxes": ("b",), "scores": ("s",)} | extra
        found = layout_of(own, **settings).read(feed, 0.2)
        assert (found.images.tolist(), found.classes.tolist()) == ([1, 1], [0, 1])
        assert found.boxes[0] == pytest.approx([0.5, 0.5, 0.2, 0.4])
        found = layout_of(own, background="none", box_format="centre", **settings).read(feed, 0.5)
        assert found.classes.tolist() == [2]
        assert found.boxes[0] == pytest.approx([0.4, 0.3, 0.6, 0.7])
        found = layout_of(own, box_unit="pixels", **settings).read(feed, 0.5)
        assert found.boxes[0] == pytest.approx([0.5 / 64, 0.5 / 32, 0.2 / 64, 0.4 / 32])


def test_offsets_from_stated_priors():
    priors = build_priors((16, 32), (((8, 8), (16, 4)), ((100, 16),)), (32, 64))
    assert len(priors) == 2 * 4 * 2 + 1 * 2
    assert priors[3] == pytest.approx([(24 - 8) / 64, (8 - 2) / 32, (24 + 8) / 64, (8 + 2) / 32])
    assert priors[-1] == pytest.approx([48 / 64 - 0.5, 0.25, 48 / 64 + 0.5, 0.75])  # no wider than the picture
    graph = network(given("b", 2, 18, 4), given("s", 2, 18, 2))
    settings = {"layout": "pairs", "boxes": ("b",), "scores": ("s",), "strides": (16, 32)}
    settings["sides"] = (((8, 8), (16, 4)), ((100, 16),))
    boxes, scores = np.zeros((2, 18, 4), np.float32), np.zeros((2, 18, 2), np.float32)
    boxes[0, 3], scores[0, 3, 1] = (1, -2, np.log(2) / 0.2, 0), 0.9
    found = layout_of(graph, **settings).read({"b": boxes, "s": scores}, 0.5)
    centre = (24 / 64 + 0.1 * 16 / 64, 8 / 32 - 0.2 * 4 / 32)
    assert found.boxes[0] == pytest.approx([centre[0] - 0.25, centre[1] - 2 / 32, centre[0] + 0.25, centre[1] + 2 / 32])
    with pytest.raises(EvaluatorError, match="make 18 priors; the network has 17 boxes"):
        layout_of(network(given("b", 2, 17, 4), given("s", 2, 17, 2)), **settings)


def test_offsets_from_a_blob_of_priors():
    prior = (
        given("f", 2, 3, 2, 4),
        'layer { name: "p" type: "PriorBox" bottom: "f" bottom: "d" top: "p" '
        "prior_box_param { min_size: 16 variance: [0.1, 0.1, 0.2, 0.2] } }",
    )
    graph = network(given("b", 2, 32), given("s", 2, 8, 2), *prior)
    layout = layout_of(graph, boxes=("b",), scores=("s",))
    assert layout.blobs == ("b", "s", "p")
    priors = np.zeros((1, 2, 32), np.float32)
    priors[0, 0, 4:8], priors[0, 1] = (0.25, 0, 0.5, 0.5), np.tile([0.1, 0.1, 0.2, 0.2], 8)
    boxes, scores = np.zeros((2, 32), np.float32), np.zeros((2, 8, 2), np.float32)
    boxes[1, 4:8], scores[1, 1] = (2, 0, 0, 0), (0.2, 0.8)
    found = layout.read({"b": boxes, "s": scores, "p": priors}, 0.5)
    assert found.images.tolist() == [1]
    assert found.boxes[0] == pytest.approx([0.3, 0, 0.55, 0.5])


def test_pairs_of_maps():
    graph = network(given("b", 2, 8, 2, 4), given("s", 2, 4, 2, 4))
    boxes, scores = np.zeros((2, 8, 2, 4), np.float32), np.zeros((2, 4, 2, 4), np.float32)
    boxes[1, 4:, 1, 2], scores[1, 2:, 1, 2] = (0.1, 0.2, 0.3, 0.4), (0.3, 0.7)  # the second of two boxes of a pixel
    found = layout_of(graph, boxes=("b",), scores=("s",)).read({"b": boxes, "s": scores}, 0.5)
    assert found.images.tolist() == [1]
    assert found.boxes[0] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_pairs_of_one_picture_without_an_axis_for_it():
    graph = network(given("b", 5, 4), given("s", 5, 2), batch=1)
    boxes, scores = np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32)
    boxes[3], scores[3] = (0.1, 0.2, 0.3, 0.4), (0.3, 0.7)
    found = layout_of(graph, boxes=("b",), scores=("s",)).read({"b": boxes, "s": scores}, 0.5)
    assert found.images.tolist() == [0]
    assert found.boxes[0] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(EvaluatorError, match=r"does not tell the 2 images of a batch apart; set 'batch_size' to 1"):
        layout_of(network(given("b", 5, 4), given("s", 5, 2)), boxes=("b",), scores=("s",))


def logit(share):
    return np.log(share / (1 - share))


ANCHORS = (((8, 8), (16, 4)),)


@pytest.mark.parametrize(
    ("version", "classes", "values", "box"),
    [
        # column 2 of 4, row 1 of 2: cells of 16x16 pixels; anchor 16x4
        ("v3", (0.9, 0.5), (0.5, 0.25, np.log(2), np.log(0.5)), (40, 20, 32, 2)),
        ("v2", (0.75, 0.25), (0.5, 0.25, np.log(2), np.log(0.5)), (40, 20, 32, 2)),
        ("v5", (0.9, 0.5), (0.5, 0.25, 0.75, 0.25), (40, 16, 36, 1)),
    ],
)
@pytest.mark.parametrize("activated", [False, True])
def test_yolo_maps(version, classes, values, box, activated):
    graph = network(given("y", 2, 14, 2, 4))
    values, classes = np.array(values), np.array(classes)
    shares = 4 if version == "v5" else 2
    if not activated:
        values[:shares] = logit(values[:shares])
        classes = np.log(classes) if version == "v2" else logit(classes)
    blob = np.full((2, 14, 2, 4), 0 if activated else -9, np.float32)
    blob[1, 7:, 1, 2] = (*values, 0.8 if activated else logit(0.8), *classes)
    layout = layout_of(graph, layout="yolo", outputs=("y",), version=version, anchors=ANCHORS, activated=activated)
    found = layout.read({"y": blob}, 0.3)
    assert layout.classes == 2
    assert found.images.tolist() == [1] * len(found)
    assert found.classes.tolist() == ([0] if version == "v2" else [0, 1])
    assert found.scores[0] == pytest.approx(0.8 * (0.75 if version == "v2" else 0.9))
    x, y, width, height = box
    corners = [(x - width / 2) / 64, (y - height / 2) / 32, (x + width / 2) / 64, (y + height / 2) / 32]
    assert found.boxes[0] == pytest.approx(corners, abs=1e-6)


def test_yolo_of_several_maps():
    graph = network(given("fine", 2, 12, 4, 8), given("coarse", 2, 12, 1, 2))
    anchors = (((4, 4), (8, 8)), ((32, 32), (64, 32)))
    layout = layout_of(graph, layout="yolo", outputs=("fine", "coarse"), anchors=anchors)
    fine, coarse = np.full((2, 12, 4, 8), -9, np.float32), np.full((2, 12, 1, 2), -9, np.float32)
    fine[0, 6:, 3, 5], coarse[1, :6, 0, 1] = (0, 0, 0, 0, 9, 9), (0, 0, 0, 0, 9, 9)
    found = layout.read({"fine": fine, "coarse": coarse}, 0.5)
    assert (layout.classes, found.images.tolist()) == (1, [0, 1])
    assert found.boxes[0] == pytest.approx([40 / 64, 24 / 32, 48 / 64, 32 / 32])
    assert found.boxes[1] == pytest.approx([32 / 64, 0, 64 / 64, 32 / 32])
    stated = layout_of(graph, layout="yolo", outputs=("fine", "coarse"), anchors=anchors, strides=(8, 32))
    assert (stated.read({"fine": fine, "coarse": coarse}, 0.5).boxes == found.boxes).all()
    assert "array" not in repr(stated)  # what is digested is the same with every NumPy


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 1, 6, 7), (2, 2, 3, 7)])
def test_yolo_rows(shape):
    graph, rows = network(given("y", *shape)), np.zeros((2, 6, 7), np.float32)
    rows[1, 4] = (32, 16, 16, 8, 0.9, 0.2, 0.8)
    layout = layout_of(graph, layout="yolo", version="rows", outputs=("y",))
    found = layout.read({"y": rows.reshape(shape)}, 0.5)
    assert (found.images.tolist(), found.classes.tolist()) == ([1], [1])
    assert found.scores == pytest.approx([0.72])
    assert found.boxes[0] == pytest.approx([24 / 64, 12 / 32, 40 / 64, 20 / 32])


@pytest.mark.parametrize(
    ("layers", "settings", "said"),
    [
        ([given("a", 2, 9)], {}, "cannot be told from their shapes"),
        ([given("a", 2, 9)], {"layout": "ssd", "outputs": ("x",)}, "has no blob 'x'"),
        ([given("a", 2, 9)], {"layout": "ssd", "outputs": ("a",)}, "one blob of rows of 7 numbers"),
        ([given("a", 2, 9)], {"layout": "pairs", "boxes": ("a",), "scores": ("d",)}, "holds no boxes of 4 numbers"),
        ([given("a", 2, 8), given("s", 2, 3)], {"boxes": ("a",), "scores": ("s",)}, "no scores of 2 boxes"),
        ([given("a", 2, 8)], {"boxes": ("a",), "scores": ("a", "a")}, "or as many of both"),
        ([given("a", 2, 8, 4), given("s", 2, 8, 2)],
         {"boxes": ("a",), "scores": ("s",), "box_format": "offsets"}, "offsets need priors"),
        ([given("a", 2, 14, 2, 4)], {"layout": "yolo", "outputs": ("a",)}, "a list of .* for each of 1 outputs"),
        ([given("a", 2, 13, 2, 4)],
         {"layout": "yolo", "outputs": ("a",), "anchors": ANCHORS}, r"\(N, 2 \* \(5 \+ classes\), height, width\)"),
        ([given("a", 2, 8, 4)], {"layout": "yolo", "outputs": ("a",), "version": "rows"}, "boxes, 5"),
        ([given("a", 2, 8, 4), given("s", 2, 8)],
         {"boxes": ("a",), "scores": ("s",), "background": "first"}, "which cannot be the background"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit(layers, settings, said):
    with pytest.raises(EvaluatorError, match=said):
        layout_of(network(*layers), **settings)
