"""Detectors that see squares: against themselves, and against labels of the squares."""

import json
import pickle
import sys
import warnings

import lmdb
import numpy as np
import pytest
from PIL import Image
from square_detectors import draw, write_ssd, write_yolo

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin import BuiltinSettings, DataSettings, TransformSettings, make_builtin
from autonuq.evaluate.builtin.boxes import DetectionSettings
from autonuq.evaluate.builtin.plausible import warn_of_doubts
from autonuq.evaluate.samples import paired_error
from autonuq.graph import caffe_pb2
from autonuq.graph.files import ModelPair, attach_weights, load_graph, write_caffemodel

RGB = TransformSettings(channels="RGB", scale=1 / 255)
YOLO = {"layout": "yolo", "anchors": (((8.0, 8.0), (16.0, 16.0)),)}
NETWORKS = {
    "ssd": (write_ssd, {}),
    "pairs": (lambda folder: write_ssd(folder, output=False), {}),
    "yolo": (write_yolo, YOLO),
}


def made(folder, kind="detections", transform=RGB, data=None, batch_size=6, **detections):
    data = data or DataSettings("folder", folder / "pictures")
    settings = BuiltinSettings(
        kind, data, data, transform, batch_size=batch_size, detections=DetectionSettings(**detections)
    )
    return make_builtin(settings, ModelPair(folder / "net.prototxt", folder / "net.caffemodel"))


def metric(evaluator, folder, weights="net.caffemodel", batches=None):
    paths = str(folder / "net.prototxt"), str(folder / weights)
    return evaluator.eval_model(*paths, batches or evaluator.evaluate_batch_num)


def change(folder, function):
    """Write other.caffemodel, whose weights have been through a function of (layer name, weights, bias)."""
    graph = attach_weights(load_graph(folder / "net.prototxt"), folder / "net.caffemodel")
    layers = [layer.with_(blobs=function(layer.name, *layer.blobs)) if layer.blobs else layer for layer in graph.layers]
    write_caffemodel(graph.with_layers(layers), folder / "other.caffemodel")


def less_green(folder, strength):
    """Write other.caffemodel, in which the class of green squares has so much less bias."""
    place = {"conf": 2, "map": 6}
    change(
        folder,
        lambda name, weights, bias: [weights, bias - np.float32(strength) * (np.arange(len(bias)) == place.get(name))],
    )


@pytest.mark.parametrize("layout", NETWORKS)
def test_every_layout_sees_the_squares(tmp_path, layout):
    write, settings = NETWORKS[layout]
    write(tmp_path)
    squares = draw(tmp_path / "pictures", 20)
    evaluator = made(tmp_path, **settings)
    original = metric(evaluator, tmp_path)
    assert original == 1
    assert (original.samples == 1).all()
    assert evaluator.count_objects(99) == sum(map(len, squares))
    assert evaluator.count_objects(1) == sum(map(len, squares[:6]))
    less_green(tmp_path, 20)
    assert metric(evaluator, tmp_path, "other.caffemodel") == pytest.approx(0.5)  # of two classes
    less_green(tmp_path, 8 if layout != "yolo" else 5)
    weak = metric(evaluator, tmp_path, "other.caffemodel")  # dark ones are lost
    assert 0.55 < weak < 0.95
    assert 0.01 < paired_error(original, weak) < 0.2
    one_by_one = made(tmp_path, batch_size=1, **settings)
    assert metric(one_by_one, tmp_path, "other.caffemodel") == weak  # the original is looked at for that
    again = pickle.loads(pickle.dumps(evaluator))
    assert metric(again, tmp_path, "other.caffemodel").samples.tolist() == weak.samples.tolist()
    assert "IoU 0.5" in evaluator.meaning
    assert "5 points" in evaluator.meaning


def test_nothing_detected(tmp_path):
    write_ssd(tmp_path)
    draw(tmp_path / "pictures", 8)
    evaluator = made(tmp_path, transform=TransformSettings(scale=1e-4), batch_size=1)
    with pytest.raises(EvaluatorError, match=r"detects nothing in 8 pictures .* see whether \[evaluator.transform\]"):
        metric(evaluator, tmp_path)
    assert metric(evaluator, tmp_path, batches=3) == 1  # a part of the pictures may show nothing
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_doubts(evaluator)
    assert "detects nothing in 8 pictures (score from 0.5 on). Is [evaluator.transform]" in str(said[0].message)


def test_what_is_plausible_is_not_doubted(tmp_path):
    write_ssd(tmp_path)
    draw(tmp_path / "pictures", 8)
    evaluator = made(tmp_path)
    assert evaluator.doubt([evaluator.of_original(0, 6), evaluator.of_original(6, 8)]) == ""


def test_what_can_be_no_detections(tmp_path):
    write_ssd(tmp_path, output=False)
    draw(tmp_path / "pictures", 8)
    settings = {"layout": "pairs", "boxes": ("loc_turned",), "box_format": "corners", "background": "none"}
    for scores, said in (("conf_rows", "reach .* they are no probabilities"), ("prob", "have no area in the picture")):
        with pytest.raises(EvaluatorError, match=said):
            metric(made(tmp_path, scores=(scores,), **settings), tmp_path)


def write_voc(folder, squares):
    folder.mkdir()
    for number, own in enumerate(squares):
        objects = "".join(
            f"<object><name>{('red', 'green')[colour]}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for colour, x1, y1, x2, y2 in own
        )
        (folder / f"{number:03}.xml").write_text(f"<annotation>{objects}</annotation>")
    return folder


def write_coco(file, squares):
    content = {
        "images": [{"id": 50 - number, "file_name": f"{number:03}.png"} for number in range(len(squares))],
        "categories": [{"id": 9, "name": "green"}, {"id": 4, "name": "red"}],
        "annotations": [
            {"image_id": 50 - number, "category_id": (4, 9)[colour], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for number, own in enumerate(squares)
            for colour, x1, y1, x2, y2 in own
        ],
    }
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("layout", NETWORKS)
@pytest.mark.parametrize(
    ("size", "corner", "transform"),
    [
        ((32, 32), (0, 0), {}),
        ((64, 96), (0, 0), {"resize": (32, 32)}),  # stretched
        ((32, 48), (0, 8), {"crop": (32, 32)}),
        ((96, 64), (16, 0), {"resize": (32,), "crop": (32, 32)}),  # the shorter side
    ],
    ids=["as they are", "stretched", "cropped", "shorter side"],
)
def test_labels_of_what_is_seen_are_found(tmp_path, layout, size, corner, transform):
    write, settings = NETWORKS[layout]
    write(tmp_path)
    squares = draw(tmp_path / "pictures", 12, size, corner)
    transform = TransformSettings(channels="RGB", scale=1 / 255, **transform)
    labels = write_voc(tmp_path / "xml", squares)
    evaluator = made(tmp_path, "map", transform, annotations=labels, classes=("red", "green"), **settings)
    assert metric(evaluator, tmp_path) == pytest.approx(1)
    if layout == "ssd":
        pytest.importorskip("pycocotools")
        coco = write_coco(tmp_path / "labels.json", squares)
        evaluator = made(tmp_path, "map", transform, annotations=coco, **settings)
        assert metric(evaluator, tmp_path) == pytest.approx(1, abs=0.01)  # up to an overlap of 0.95
        less_green(tmp_path, 20)
        assert metric(evaluator, tmp_path, "other.caffemodel") == pytest.approx(0.5, abs=0.01)
        assert "0.5 to 0.95" in evaluator.meaning
        assert f"{sum(map(len, squares))} labelled objects" in evaluator.meaning


def test_labels_of_arrays_and_of_a_database(tmp_path):
    write_ssd(tmp_path)
    squares = draw(tmp_path / "pictures", 10)
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "pictures").iterdir())]
    np.savez(tmp_path / "pictures.npz", images=np.array(pictures))
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        for number, pixels in enumerate(pictures):
            raw = pixels[..., ::-1].transpose(2, 0, 1).tobytes()
            datum = caffe_pb2.Datum(channels=3, height=32, width=32, data=raw)
            transaction.put(f"{number:08}_set/{number:03}.png".encode(), datum.SerializeToString())
    for data in (
        DataSettings("npz", tmp_path / "pictures.npz", start=2),
        DataSettings("lmdb", tmp_path / "lmdb", start=2),
    ):
        settings = {"annotations": write_voc(tmp_path / f"xml {data.kind}", squares), "classes": ("red", "green")}
        evaluator = made(tmp_path, "map", data=data, **settings)
        assert metric(evaluator, tmp_path) == pytest.approx(1)
        assert evaluator.count_objects(99) == sum(map(len, squares[2:]))
        assert f"xml {data.kind}" in evaluator.data_digests()


def test_changed_labels_are_other_data(tmp_path):
    write_ssd(tmp_path)
    squares = draw(tmp_path / "pictures", 6)
    labels = write_voc(tmp_path / "xml", squares)
    evaluator = made(tmp_path, "map", annotations=labels, classes=("red", "green"))
    sent = pickle.dumps(evaluator)
    assert pickle.loads(sent).fingerprint() == evaluator.fingerprint()
    (labels / "001.xml").write_text("<annotation/>")
    with pytest.raises(EvaluatorError, match="not the data that the study was started with: xml"):
        pickle.loads(sent)


def test_pictures_without_labels_do_not_count(tmp_path):
    write_ssd(tmp_path)
    squares = draw(tmp_path / "pictures", 10)
    labels = write_voc(tmp_path / "xml", squares)
    (labels / "003.xml").unlink()
    evaluator = made(tmp_path, "map", annotations=labels, classes=("red", "green"))
    assert len(metric(evaluator, tmp_path).samples) == 9


def test_pycocotools_is_asked_for_where_it_counts(tmp_path, monkeypatch):
    write_ssd(tmp_path)
    coco = write_coco(tmp_path / "labels.json", draw(tmp_path / "pictures", 6))
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(EvaluatorError, match=r"pip install 'autonuq\[coco\]'"):
        made(tmp_path, "map", annotations=coco)
