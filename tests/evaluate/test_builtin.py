"""Evaluators that a study file names: what they read, what the network is fed, what they count."""

import io
import json
import math
from dataclasses import replace

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

import autonuq as nuq
from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.builtin import DataSettings, Drop, TransformSettings, parse_drop
from autonuq.evaluate.builtin.accuracy import are_correct
from autonuq.evaluate.builtin.sources import open_images, part_of
from autonuq.evaluate.builtin.transform import Transform
from autonuq.graph import caffe_pb2
from autonuq.runtime.net import Net
from autonuq.study.study_file import load_task

RNG = np.random.default_rng(11)
PICTURES = [RNG.integers(0, 256, (20, 24, 3), np.uint8) for _ in range(5)]  # RGB
LABELS = [3, 0, 9, 1, 1]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for number, picture in enumerate(PICTURES):
        (path / f"a {number}.png").write_bytes(png(picture))
    (path / "labels.txt").write_text("".join(f"a {n}.png {label}\n" for n, label in enumerate(LABELS)))
    return path


def write_lmdb(path, encoded):
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for number in reversed(range(len(PICTURES))):
            if encoded:
                datum = caffe_pb2.Datum(data=png(PICTURES[number]), encoded=True, label=LABELS[number])
            else:
                raw = PICTURES[number][..., ::-1].transpose(2, 0, 1)  # as convert_imageset: BGR planes
                datum = caffe_pb2.Datum(channels=3, height=20, width=24, data=raw.tobytes(), label=LABELS[number])
            transaction.put(f"{number:08}".encode(), datum.SerializeToString())
    return path


AS_IT_IS = TransformSettings()


def fed(settings, transform=AS_IT_IS, shape=(3, 20, 24)):
    source = open_images(settings)
    images = source.read(0, len(source.labels), shape[0])
    return Transform(transform, shape).apply(images, source.order, source.wanted), source


def test_every_source_feeds_the_same_images_in_the_same_order(tmp_path, folder):
    np.savez(tmp_path / "nhwc.npz", images=np.array(PICTURES), labels=LABELS)
    np.savez(tmp_path / "nchw.npz", images=np.array(PICTURES).transpose(0, 3, 1, 2), labels=LABELS)
    bgr = np.array(PICTURES)[..., ::-1].transpose(0, 3, 1, 2)
    for settings, transform in (
        (DataSettings("folder", folder, labels=str(folder / "labels.txt")), TransformSettings()),
        (DataSettings("lmdb", write_lmdb(tmp_path / "raw", encoded=False)), TransformSettings()),
        (DataSettings("lmdb", write_lmdb(tmp_path / "encoded", encoded=True)), TransformSettings()),
        (DataSettings("npz", tmp_path / "nhwc.npz"), TransformSettings(channels="BGR")),
        (DataSettings("npz", tmp_path / "nchw.npz"), TransformSettings(channels="BGR")),
    ):
        batch, source = fed(settings, transform)
        assert source.labels.tolist() == LABELS
        np.testing.assert_array_equal(batch, bgr, err_msg=str(settings.path))
    as_stored, _ = fed(DataSettings("npz", tmp_path / "nhwc.npz"))
    np.testing.assert_array_equal(as_stored, bgr[:, ::-1])


def test_a_span_of_the_images(tmp_path, folder):
    whole = DataSettings("folder", folder, labels=str(folder / "labels.txt"))
    for settings in (whole, DataSettings("lmdb", write_lmdb(tmp_path / "db", encoded=False))):
        source = open_images(replace(settings, start=1, count=3))
        assert source.labels.tolist() == LABELS[1:4]
        assert source.digest() != open_images(settings).digest()
        with pytest.raises(EvaluatorError, match="at least 4 images; there are 3 from number 2 on"):
            open_images(replace(settings, start=2, count=4))


def test_grey_network_reads_colour_pictures(folder):
    batch, _ = fed(DataSettings("folder", folder, labels=str(folder / "labels.txt")), shape=(1, 20, 24))
    np.testing.assert_allclose(batch[0, 0], cv2.cvtColor(PICTURES[0], cv2.COLOR_RGB2GRAY), atol=1)


@pytest.mark.parametrize("size", [(13, 31), (40, 17), (20, 24)])
def test_resize_is_opencvs(size):
    got = Transform(TransformSettings(resize=size), (3, *size)).apply(PICTURES[:1], "RGB", "RGB")
    expected = cv2.resize(PICTURES[0], (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(got[0].transpose(1, 2, 0), expected, atol=1)


def test_resize_of_the_shorter_side_keeps_proportions():
    batch = Transform(TransformSettings(resize=(40,), crop=(40, 48)), (3, 40, 48)).apply(PICTURES, "RGB", "RGB")
    assert batch.shape == (5, 3, 40, 48)


def test_crop_mean_and_scale_in_caffes_order(tmp_path):
    mean = RNG.uniform(0, 255, (3, 20, 24)).astype(np.float32)
    message = caffe_pb2.BlobProto(num=1, channels=3, height=20, width=24, data=mean.tobytes())
    (tmp_path / "mean.binaryproto").write_bytes(message.SerializeToString())
    np.save(tmp_path / "mean.npy", mean)
    np.savez(tmp_path / "mean.npz", mean=mean)
    expected = (PICTURES[0][..., ::-1].transpose(2, 0, 1)[:, 3:16, 4:19] - mean[:, 3:16, 4:19]) * np.float32(0.5)
    for name in ("mean.binaryproto", "mean.npy", "mean.npz:mean"):
        settings = TransformSettings(crop=(13, 15), mean_file=str(tmp_path / name), scale=0.5)
        batch = Transform(settings, (3, 13, 15)).apply(PICTURES, "RGB", "BGR")
        np.testing.assert_allclose(batch[0], expected, rtol=1e-6)
    settings = TransformSettings(crop=(13, 15), mean=(1.0, 2.0, 3.0))
    batch = Transform(settings, (3, 13, 15)).apply(PICTURES, "RGB", "BGR")
    np.testing.assert_array_equal(batch[0, :, 0, 0], PICTURES[0][3, 4, ::-1] - np.float32([1, 2, 3]))


def test_a_tie_or_no_number_is_not_correct():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [np.nan, 0.1, 0.2], [0.0, np.nan, 0.5]], np.float32)
    assert are_correct(scores, np.array([1, 0, 0, 0]), 1).sum() == 1
    assert are_correct(scores, np.array([2, 0, 0, 0]), 2).sum() == 3


def test_drops():
    assert Drop(1.0).allows(0.9124, 0.9025)
    assert not Drop(1.0).allows(0.9124, 0.9024)  # less than a point, to the count
    assert Drop(1.0).allows(0.9124, 0.9124)
    assert parse_drop(" 2 %") == Drop(2.0, "%")
    assert parse_drop("2%").allows(0.5, 0.4901)
    assert not parse_drop("2%").allows(0.5, 0.49)
    assert parse_drop(0).allows(0.5, 0.5)
    assert not parse_drop(0).allows(0.5, 0.4999)


@pytest.fixture
def study(tiny):
    """A study file with a built-in evaluator over images that the tiny network labelled itself."""
    images = RNG.standard_normal((50, 2, 8, 8), np.float32)
    labels = nuq.Net(tiny / "tiny.prototxt", tiny / "tiny.caffemodel").forward_all(data=images)["prob"].argmax(1)
    np.savez(tiny / "images.npz", images=images, labels=labels)
    np.savez(tiny / "other.npz", images=images[:8], labels=labels[:8])
    path = tiny / "builtin.toml"
    path.write_text(
        'name = "builtin"\n[model]\nprototxt = "tiny.prototxt"\nweights = "tiny.caffemodel"\n'
        '[evaluator]\nkind = "top1"\ndrop = 10\n[evaluator.data]\nnpz = "images.npz"\n'
        '[evaluator.calibration]\nnpz = "other.npz"\n[search]\ntrials = 4\n'
    )
    return path


def evaluator_of(path):
    return load_task(path).made().evaluator


def test_accuracy_counts_a_last_batch_that_is_not_full(study):
    evaluator = evaluator_of(study)
    assert evaluator.evaluate_batch_num == math.ceil(50 / 4)
    pair = str(study.parent / "tiny.prototxt"), str(study.parent / "tiny.caffemodel")
    assert evaluator.eval_model(*pair, 13) == 1.0
    np.savez(study.parent / "images.npz", images=np.load(study.parent / "images.npz")["images"], labels=[9] * 50)
    accuracy = evaluator_of(study).eval_model(*pair, 13)
    assert accuracy * 50 == round(accuracy * 50) < 50
    assert (len(accuracy.samples), accuracy.samples.mean()) == (50, accuracy)


def test_calibration_runs_its_own_images_and_says_when_they_are_too_few(study):
    evaluator = evaluator_of(study)
    pair = str(study.parent / "tiny.prototxt"), str(study.parent / "tiny.caffemodel")
    evaluator.calibrate_model(*pair, 2)
    with pytest.raises(EvaluatorError, match=r"other.npz: calibration takes 3 batches of 4 images; there are 8"):
        evaluator.calibrate_model(*pair, 3)


def test_fingerprint_follows_the_data_and_not_their_place(study):
    first = evaluator_of(study).fingerprint()
    (study.parent / "images.npz").rename(study.parent / "moved.npz")
    study.write_text(study.read_text().replace("images.npz", "moved.npz"))
    assert evaluator_of(study).fingerprint() == first
    study.write_text(study.read_text().replace("drop = 10", "drop = 11"))
    assert evaluator_of(study).fingerprint() != first
    study.write_text(study.read_text().replace("drop = 11", "drop = 10"))
    images = dict(np.load(study.parent / "moved.npz"))
    images["images"][0, 0, 0, 0] += 1
    np.savez(study.parent / "moved.npz", **images)
    assert evaluator_of(study).fingerprint() != first


MISTAKES = [
    (
        'kind = "top1"',
        'kind = "top2"',
        StudyError,
        "must be one of top1, top5, agreement, outputs, detections, map, miou",
    ),
    ('kind = "top1"', "", StudyError, "both are missing"),
    ('kind = "top1"', 'kind = "top1"\nclass = "a.py:B"', StudyError, "both are there"),
    ("drop = 10", 'drop = "ten"', StudyError, "'evaluator.drop' must be a number of points"),
    ("drop = 10", "dorp = 10", StudyError, "unknown key of [evaluator] 'dorp'; did you mean 'drop'"),
    ("drop = 10", 'output = "fcc"', EvaluatorError, "no output blob 'fcc' (it has: "),
    ("drop = 10", 'output = "conv"', EvaluatorError, "'conv' of shape (4, 8, 8, 8) holds no scores"),
    ("drop = 10", "evaluate_batch_num = 14", EvaluatorError, "asks for 56 images in batches of 4; there are 50"),
    ('npz = "images.npz"', 'npz = "images.npz"\nlmdb = "x"', StudyError, "must name one of 'npz', 'folder', 'lmdb'"),
    ('npz = "images.npz"', 'npz = "none.npz"', EvaluatorError, "none.npz: cannot be read: No such file"),
    ('npz = "images.npz"', 'npz = "tiny.prototxt"', EvaluatorError, "it is no .npz of plain arrays"),
    ('npz = "images.npz"', 'npz = "images.npz"\nimages = "x"', EvaluatorError, "no array 'x' (it has: images, labels)"),
    ('npz = "images.npz"', 'npz = "images.npz"\nlayout = "NHWC"', EvaluatorError, "have 8 channels, the network tak"),
    ('npz = "images.npz"', 'lmdb = "evaluate.py"', EvaluatorError, "evaluate.py: is no LMDB that can be read"),
    ('npz = "images.npz"', 'folder = "."', EvaluatorError, "labels.txt: label file cannot be read"),
    ("[search]", "[evaluator.transform]\ncrop = 6\n[search]", EvaluatorError, "are 6x6 after the transforms"),
    ("[search]", "[evaluator.transform]\nmean = [1, 2, 3]\n[search]", EvaluatorError, "the mean has 3 channels"),
    ("[search]", '[evaluator.transform]\nmean_file = "m.npy"\n[search]', EvaluatorError, "mean file cannot be read"),
    ("[search]", "[evaluator.transform]\ncrop = 0\n[search]", StudyError, "'evaluator.transform.crop' must be a pos"),
    ("[search]", "[evaluator.transfrom]\ncrop = 6\n[search]", StudyError, "unknown table 'transfrom'; did you mean"),
]


@pytest.mark.parametrize(("old", "new", "kind", "message"), MISTAKES, ids=[entry[1] or "none" for entry in MISTAKES])
def test_mistakes(study, old, new, kind, message):
    assert old in study.read_text()
    study.write_text(study.read_text().replace(old, new))
    with pytest.raises(kind) as caught:
        evaluator_of(study)
    assert message in str(caught.value)


def test_labels_beyond_the_classes(study):
    images = np.load(study.parent / "images.npz")["images"]
    np.savez(study.parent / "images.npz", images=images, labels=np.full(50, 10))
    with pytest.raises(EvaluatorError, match=r"labels must lie in 0..9, the classes of blob 'prob'. Got 10"):
        evaluator_of(study)


def test_a_damaged_database_and_a_missing_picture(tmp_path, folder):
    path = write_lmdb(tmp_path / "db", encoded=False)
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"00000009", caffe_pb2.Datum(channels=3, height=20, width=24, data=b"abc").SerializeToString())
    with pytest.raises(EvaluatorError, match="record '00000009' has 3 values"):
        open_images(DataSettings("lmdb", path))
    (folder / "a 1.png").unlink()
    with pytest.raises(EvaluatorError, match="picture 'a 1.png'"):
        open_images(DataSettings("folder", folder, labels=str(folder / "labels.txt")))
    (folder / "labels.txt").write_text("a 0.png three\n")
    with pytest.raises(EvaluatorError, match="line 1 must read 'picture label'"):
        open_images(DataSettings("folder", folder, labels=str(folder / "labels.txt")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a 0.png 9999999999", "line 1 must read 'picture label'"),
        (f"a 0.png {'9' * 5000}", "line 1 must read 'picture label'"),
        (f"{'x' * 5000}.png 1", "label file cannot be read: File name too long"),
        ("a\0.png 1", "label file names what can be no file|picture 'a"),
        ("", "data must hold at least one"),
    ],
    ids=["large", "huge", "long name", "NUL", "empty"],
)
def test_what_a_label_file_can_hold(folder, lines, message):
    (folder / "labels.txt").write_text(lines)
    with pytest.raises(EvaluatorError, match=message) as caught:
        open_images(DataSettings("folder", folder, labels=str(folder / "labels.txt")))
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 600


def test_a_truncated_database_is_refused_before_its_pages_are_missed(tmp_path):
    path = write_lmdb(tmp_path / "db", encoded=False)
    whole = (path / "data.mdb").read_bytes()
    for size in range(len(whole) - 4096, 8191, -4096):
        (path / "data.mdb").write_bytes(whole[:size])
        with pytest.raises(EvaluatorError, match=r"db: is truncated: it has \d of 7 pages"):
            open_images(DataSettings("lmdb", path))
    (path / "data.mdb").write_bytes(whole[:100])
    with pytest.raises(EvaluatorError, match="db: is no LMDB that can be read"):
        open_images(DataSettings("lmdb", path))


def blob_of(shape, data):
    blob = caffe_pb2.BlobProto(data=data)
    blob.shape.dim.extend(shape)
    return blob.SerializeToString()


FOUR = np.ones(4, np.float32).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        blob_of(shape, FOUR)
        for shape in ((1 << 32, 1 << 32, 1), (-1, -2, 2), (0, 1, 1), (2, 2), (1,) * 4, (4, 1 << 62, 4))
    ]
    + [b"", b"\xff" * 9, blob_of((4, 1, 1), np.full(4, np.nan, np.float32).tobytes())],
)
def test_a_mean_image_is_one_of_finite_numbers(tmp_path, data):
    path = tmp_path / "m.binaryproto"
    path.write_bytes(data)
    with pytest.raises(EvaluatorError, match=r"m\.binaryproto: mean "):
        Transform(TransformSettings(mean_file=str(path)), (4, 1, 1))


@pytest.mark.slow
def test_real_networks_from_a_study_file_alone(tmp_path, shared):
    """SqueezeNet over real pictures: 69 % of these 200, as Caffe's own 67 % of 1,000."""
    folder = shared / "models/squeezenet-v1.0"
    (tmp_path / "s.toml").write_text(
        f'name = "s"\n[model]\nprototxt = "{folder}/deploy.prototxt"\nweights = "{folder}/weights.caffemodel"\n'
        f'[evaluator]\nkind = "top1"\nbatch_size = 20\ndata = {{folder = "{shared}/data/imagenet200"}}\n'
        "transform = {resize = [256, 256], crop = 227, mean = [104, 117, 123]}\n"
    )
    task = load_task(tmp_path / "s.toml").made()
    model, weights = map(str, (task.source.model, task.source.weights))
    assert task.evaluator.eval_model(model, weights, 10) == pytest.approx(0.69, abs=0.01)


def test_a_part_is_held_back_interleaved_where_there_are_enough():
    search, held = part_of(4000, "search"), part_of(4000, "held back")
    assert (len(search), len(held)) == (3000, 1000)
    assert sorted([*search, *held]) == list(range(4000)) == part_of(4000, "all").tolist()
    assert np.diff(held).tolist() == [4] * 999
    assert (len(part_of(1999, "search")), len(part_of(1999, "held back"))) == (1999, 0)


@pytest.fixture
def large(tiny):
    """2,000 images that the tiny network labels itself, a fifth of them wrongly."""
    images = np.random.default_rng(0).standard_normal((2000, 2, 8, 8), np.float32)
    labels = Net(tiny / "tiny.prototxt", tiny / "tiny.caffemodel").forward_all(data=images)["prob"].argmax(1)
    wrong = np.random.default_rng(1).random(2000) < 0.2
    np.savez(tiny / "images.npz", images=images, labels=np.where(wrong, (labels + 1) % 10, labels))
    path = tiny / "large.toml"
    path.write_text(
        'name = "large"\n[model]\nprototxt = "tiny.prototxt"\nweights = "tiny.caffemodel"\n'
        '[evaluator]\nkind = "top1"\ndrop = 3\nbatch_size = 100\ndata = {npz = "images.npz"}\n[search]\ntrials = 6\n'
    )
    return path


def test_check_says_where_the_data_are_too_few(study, run):
    checked = run("check", study)
    assert checked.returncode == 0, checked.stderr
    assert "too few images to hold any back from the search" in " ".join(checked.stdout.split())
    assert "52 images cannot tell a loss of 10 points" in checked.stderr


def test_the_search_and_the_confirmation_score_other_images(large):
    task = load_task(large).made()
    pair = str(task.source.model), str(task.source.weights)
    search, held = (e.eval_model(*pair, e.evaluate_batch_num) for e in (task.evaluator, task.confirm))
    assert (len(search.samples), len(held.samples)) == (1500, 500)
    whole = load_task(large).as_before().made()
    everything = whole.evaluator.eval_model(*pair, 20).samples
    assert (everything[np.arange(2000) % 4 == 3] == held.samples).all()
    assert (everything[np.arange(2000) % 4 != 3] == search.samples).all()
    assert whole.confirm is None
    assert len({e.fingerprint() for e in (task.evaluator, task.confirm, whole.evaluator)}) == 3


def test_a_study_of_a_built_in_evaluator_is_confirmed_by_default(large, run):
    tuned = run("tune", large)
    status = json.loads(run("status", large, "--json").stdout)
    assert tuned.returncode == {True: 0, False: 9}[status["best"]["confirmed"]]
    words = "on 500 images that the search never saw (limit 3)"
    assert words in tuned.stdout
    assert words in " ".join(run("status", large).stdout.split())
    assert words in (large.parent / "out/large/report.html").read_text()
    assert status["best"]["loss_error"] > 0
    assert 0 <= status["best"]["probability"] <= 1


def test_confirm_false_holds_nothing_back_and_says_so(large, run):
    large.write_text(large.read_text() + "confirm = false\n")
    tuned = run("tune", large)
    assert tuned.returncode == 0
    assert "on 2,000 images that chose it (limit 3)" in tuned.stdout
    assert "not confirmed" in tuned.stdout


@pytest.mark.parametrize(
    ("confirm", "refused"),
    [
        ('data = {npz = "images.npz"}', True),
        ('data = {npz = "./images.npz", start = 999}', True),
        ('data = {npz = "images.npz", start = 1000}', False),
        ('data = {npz = "other.npz"}', False),
    ],
)
def test_a_confirmation_on_images_of_the_search_is_refused(large, confirm, refused):
    text = large.read_text().replace('npz = "images.npz"', 'npz = "images.npz", count = 1000')
    large.write_text(f"{text}[confirm]\n{confirm}\n")
    if refused:
        with pytest.raises(StudyError, match=r"\[confirm\] scores data that the search sees"):
            load_task(large)
    else:
        assert load_task(large).confirm.what.data != load_task(large).evaluator.what.data
