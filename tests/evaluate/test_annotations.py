"""Labels of objects from VOC's XML and COCO's JSON, and what is counted with them."""

import json

import numpy as np
import pytest

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.annotations import load_objects, open_annotations, place_objects
from autonuq.evaluate.builtin.boxes import Detections, Objects
from autonuq.evaluate.builtin.counting import class_precisions, coco_precisions
from autonuq.evaluate.builtin.precision import mean_precision

DOG = (
    "<object><name>dog</name>{}<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax><ymax>60.5</ymax></bndbox></object>"
)


def voc(folder, **pictures):
    folder.mkdir()
    for name, objects in pictures.items():
        (folder / f"{name}.xml").write_text(f"<annotation><size/>{objects}</annotation>")
    return folder


def coco(file, **changes):
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [10, 20, 20, 40.5]},
            {"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }
    file.write_text(json.dumps(content | changes))
    return file


def load(path, pictures, classes, known=None, kind="folder"):
    return load_objects(open_annotations(path, kind), pictures, classes, known or len(classes))


def test_voc(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    shown = {"a.1": DOG.format(part) + DOG.format("<difficult>1</difficult>"), "b": ""}
    folder = voc(tmp_path / "xml", **shown)
    objects = load(folder, ["b", "deep/a.1"], ["cat", "dog"])
    assert objects.images.tolist() == [1, 1]
    assert objects.classes.tolist() == [1, 1]
    assert objects.boxes[0].tolist() == [10, 20, 30, 60.5]  # from 0, the end not included
    assert objects.ignored.tolist() == [False, True]
    assert load(folder, ["1", "0"], [], 1, "npz").images.tolist() == [1, 1]  # by their order
    assert load(folder, ["a.1"], [], 1).classes.tolist() == [0, 0]  # one class: whatever its name
    assert load(folder, ["00000007_deep/a.1.jpg"], [], 20, "lmdb").classes.tolist() == [11, 11]  # VOC's own
    labelled = open_annotations(folder, "folder")
    assert ["b" in labelled, "c" in labelled, "deep/b" in labelled] == [True, False, True]


def test_coco(tmp_path):
    file = coco(tmp_path / "labels.json")
    objects = load(file, ["a", "b"], [], 2)
    assert objects.images.tolist() == [0, 1]
    assert objects.classes.tolist() == [0, 1]  # by rising number
    assert objects.boxes[1].tolist() == [10, 20, 30, 60.5]
    assert objects.ignored.tolist() == [True, False]
    assert load(file, ["0", "1"], ["dog"], kind="npz").images.tolist() == [0]  # people are not counted
    assert "c" not in open_annotations(file, "folder")


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ("<object><name>dog</name></object>", "an object needs a name, and a bndbox"),
        (DOG.format("").replace("30", "nan"), "an object needs a name, and a bndbox"),
        (DOG.format("").replace("dog", "cow"), "hold no object of the network's classes in 1 pictures; they name cow"),
        ("", "there is no object at all"),
        ("<object>", "is no PASCAL VOC annotation: mismatched tag"),
    ],
)
def test_bad_xml(tmp_path, objects, said):
    with pytest.raises(EvaluatorError, match=said):
        load(voc(tmp_path / "xml", a=objects), ["a"], ["dog"])


def test_nothing_in_xml_is_expanded(tmp_path):
    folder, secret = tmp_path / "xml", tmp_path / "secret"
    secret.write_text("dog")
    folder.mkdir()
    for declared in (f'<!ENTITY x SYSTEM "file://{secret}">', '<!ENTITY a "dog"><!ENTITY x "&a;&a;">'):
        text = f"<!DOCTYPE annotation [{declared}]><annotation>{DOG.replace('dog', '&x;').format('')}</annotation>"
        for content in (text.encode(), text.encode("utf-16")):
            (folder / "a.xml").write_bytes(content)
            with pytest.raises(EvaluatorError, match="declares a document type"):
                load(folder, ["a"], ["dog"])


def test_classes_that_do_not_fit(tmp_path):
    folder, file = voc(tmp_path / "xml", a=DOG.format("")), coco(tmp_path / "labels.json")
    with pytest.raises(EvaluatorError, match=r"name the network's classes in its order with 'classes'"):
        load(folder, ["a"], [], 3)
    with pytest.raises(EvaluatorError, match="has 2 categories, the network 3 classes"):
        load(file, ["a"], [], 3)
    with pytest.raises(EvaluatorError, match=r"no category 'dogg'.*Did you mean 'dog'"):
        load(file, ["a"], ["dogg"])
    with pytest.raises(EvaluatorError, match="names 1 classes; the network has 3"):
        load(file, ["a"], ["dog"], 3)


def test_annotations_that_are_not_there(tmp_path):
    with pytest.raises(EvaluatorError, match="there are no .xml files"):
        open_annotations(tmp_path, "folder")
    with pytest.raises(EvaluatorError, match="annotations cannot be read: No such file"):
        open_annotations(tmp_path / "a.json", "folder")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "is no COCO file"),
        ("{", "is no COCO file"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": [], "categories": [], "annotations": [{"image_id": 1}]}', "is no COCO file"),
    ],
)
def test_bad_json(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(EvaluatorError, match=said):
        load(tmp_path / "a.json", ["a"], ["dog"])


def test_objects_are_placed():
    boxes = np.array([(10, 20, 30, 60), (0, 0, 20, 20), (0, 0, 40, 40), (90, 90, 100, 100)], np.float32)
    objects = Objects(np.zeros(4, int), np.arange(4), boxes, np.zeros(4, bool))
    # a picture of 100x100, twice as large, of which 40..180 are seen
    placed = place_objects(objects, np.array([[2.0, 2.0, -40.0, -40.0]]), (140, 140))
    assert placed.classes.tolist() == [0, 2]  # the others lie outside
    assert placed.boxes[0] == pytest.approx(np.array([0, 0, 20, 80]) / 140)
    assert placed.ignored.tolist() == [False, True]  # half of it is seen, and a quarter


def random_scene(seed, pictures=30, classes=3):
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, pictures, 60), random.integers(0, classes, 60)
    corners = random.random((60, 2)) * 0.7
    boxes = np.hstack([corners, corners + random.random((60, 2)) * 0.25 + 0.05]).astype(np.float32)
    wanted = Objects(images, labels, boxes, random.random(60) < 0.1)
    which = random.integers(0, 60, 150)
    moved = boxes[which] + random.normal(0, 0.015, (150, 4)).astype(np.float32)
    order = np.lexsort((np.arange(150), images[which]))
    noise = random.integers(0, 5, 150) == 0
    found = Detections(images[which], np.where(noise, 0, labels[which]), random.random(150).astype(np.float32), moved)
    return found[order], wanted, pictures


@pytest.mark.parametrize("seed", range(3))
def test_coco_precisions_are_what_pycocotools_says(seed, capsys):
    cocoeval, api = pytest.importorskip("pycocotools.cocoeval"), pytest.importorskip("pycocotools.coco")
    found, wanted, pictures = random_scene(seed)
    truth = api.COCO()
    sides = [
        np.hstack([own.boxes[:, :2], own.boxes[:, 2:] - own.boxes[:, :2]]).astype(float) * 1000
        for own in (wanted, found)
    ]
    truth.dataset = {
        "images": [{"id": place} for place in range(pictures)],
        "categories": [{"id": place} for place in range(3)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": int(crowd)}
            for n, (i, c, b, crowd) in enumerate(
                zip(
                    wanted.images.tolist(),
                    wanted.classes.tolist(),
                    sides[0].tolist(),
                    wanted.ignored.tolist(),
                    strict=True,
                ),
                1,
            )
        ],
    }
    truth.createIndex()
    rows = np.column_stack([found.images, sides[1], found.scores, found.classes])
    official = cocoeval.COCOeval(truth, truth.loadRes(rows), "bbox")
    official.evaluate()
    official.accumulate()
    official.summarize()
    capsys.readouterr()
    mean = mean_precision(coco_precisions(found, wanted, pictures), at_recalls=True)
    assert capsys.readouterr().out == ""
    assert mean.value == pytest.approx(official.stats[0], abs=1e-9)
    assert 0.1 < mean.value < 0.9
    assert mean.samples.mean() == pytest.approx(mean.value)
    assert len(mean.samples) == pictures


def test_our_matching_is_pycocotools():
    pytest.importorskip("pycocotools.cocoeval")
    found, wanted, pictures = random_scene(5)
    wanted = Objects(wanted.images, wanted.classes, wanted.boxes, np.zeros(len(wanted), bool))
    ours, theirs = class_precisions(found, wanted, pictures, 0.5), coco_precisions(found, wanted, pictures, [0.5])
    assert [own.area for own in ours] == pytest.approx([own.area for own in theirs], abs=1e-12)
    assert all(np.allclose(a.influence, b.influence) for a, b in zip(ours, theirs, strict=True))


def test_nothing_found_is_no_precision():
    found, wanted, pictures = random_scene(0)
    for precisions in (
        class_precisions(found[:0], wanted, pictures, 0.5),
        coco_precisions(found[:0], wanted, pictures),
    ):
        mean = mean_precision(precisions)
        assert mean.value == 0
        assert (mean.samples == 0).all()
