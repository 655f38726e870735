"""Built-in evaluators that need no labels, or masks: what they keep, compare and score."""

import pickle
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

import autonuq as nuq
from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.builtin.decisions import find_scores
from autonuq.evaluate.builtin.images import check_fixed, find_items
from autonuq.evaluate.builtin.jackknife import jackknifed
from autonuq.evaluate.builtin.segmentation import _bilinear, _nearest, count_pixels
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.evaluate.builtin.sources import DataSettings, open_images
from autonuq.evaluate.builtin.transform import TransformSettings, place, place_mask
from autonuq.evaluate.recipe import make_evaluator
from autonuq.evaluate.samples import paired_error
from autonuq.evaluate.verdict import margin
from autonuq.graph import caffe_pb2
from autonuq.graph.files import ModelPair, load_graph, write_caffemodel
from autonuq.graph.layers import infer_shapes
from autonuq.study.study_file import load_task

RNG = np.random.default_rng(5)

INPUT = 'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {} }} }} }}\n'
CONVOLUTION = (
    'layer {{ name: "{0}" type: "Convolution" bottom: "{1}" top: "{0}" '
    "convolution_param {{ num_output: {2} kernel_size: {3} stride: {4} pad: {5} }} }}\n"
)
INNER = (
    'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" inner_product_param {{ num_output: {2} }} }}\n'
)


def input_layer(*shape):
    return INPUT.format(" ".join(f"dim: {size}" for size in shape))


CENTRED = 'data = {folder = "pictures"}\ntransform = {mean = 127}'


def write_network(folder, text, seed=0, name="net", noise=0.0):
    """Write a network with random weights, and return its pair; noise is added to them."""
    model, weights = folder / f"{name}.prototxt", folder / f"{name}.caffemodel"
    model.write_text(text)
    graph, rng = load_graph(model), np.random.default_rng(seed)
    shapes, layers = infer_shapes(graph), []
    for layer in graph.layers:
        blobs = ()
        if layer.type == "Convolution":
            size = layer.message.convolution_param.kernel_size[0]
            blobs = (layer.message.convolution_param.num_output, shapes[layer.bottoms[0]][1], size, size)
        elif layer.type == "InnerProduct":
            blobs = (layer.message.inner_product_param.num_output, int(np.prod(shapes[layer.bottoms[0]][1:])))
        if blobs:
            values = [rng.normal(size=s) for s in (blobs, blobs[:1])]
            added = [noise * np.random.default_rng(len(layers)).normal(size=own.shape) for own in values]
            layer = layer.with_(blobs=[np.float32(own + more) for own, more in zip(values, added, strict=True)])
        layers.append(layer)
    write_caffemodel(graph.with_layers(layers), weights)
    return str(model), str(weights)


def write_pictures(folder, count, size=(12, 16)):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(RNG.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number:02}.png")
    return folder


def evaluator_of(folder, evaluator, data='data = {folder = "pictures"}'):
    path = folder / "study.toml"
    path.write_text(
        'name = "s"\n[model]\nprototxt = "net.prototxt"\nweights = "net.caffemodel"\n'
        f"[evaluator]\n{evaluator}\n{data}\n"
    )
    return load_task(path).made().evaluator


def scored(evaluator, pair):
    return evaluator.eval_model(*pair, evaluator.evaluate_batch_num)


CLASSIFIER = input_layer(2, 3, 12, 16) + CONVOLUTION.format("conv", "data", 4, 3, 2, 0) + INNER.format("fc", "conv", 5)
TWO_OUTPUTS = CLASSIFIER + INNER.format("points", "conv", 6)
PIXELS = input_layer(2, 3, 12, 16) + CONVOLUTION.format("conv", "data", 4, 3, 2, 1)


def scores_of(pair, evaluator, blob):
    """The network's outputs for all pictures, one by one, in float64."""
    net, found = nuq.Net(*pair), []
    for start in range(0, len(evaluator.scored.names), 2):
        batch = evaluator._scored_batch(start, min(start + 2, len(evaluator.scored.names)))
        net.blobs["data"].data[: len(batch)] = batch
        found += list(net.forward([blob])[blob][: len(batch)].astype(np.float64))
    return np.array(found)


def test_agreement_is_the_share_of_equal_decisions(tmp_path):
    write_pictures(tmp_path / "pictures", 41)
    pair = write_network(tmp_path, CLASSIFIER)
    other = write_network(tmp_path, CLASSIFIER, name="other", noise=0.3)
    evaluator = evaluator_of(tmp_path, 'kind = "agreement"', CENTRED)
    original, new = scored(evaluator, pair), scored(evaluator, other)
    decisions = [scores_of(each, evaluator, "fc").argmax(axis=1) for each in (pair, other)]
    assert original == 1
    assert new.samples.tolist() == (decisions[0] == decisions[1]).tolist()
    assert 0 < new < 1
    assert new.samples.dtype == bool
    assert (evaluator.is_satisfied(1.0, 0.9701), evaluator.is_satisfied(1.0, 0.9699)) == (True, False)
    assert "less than" in evaluator.meaning


def test_of_pixels_the_share_of_each_image_counts(tmp_path):
    write_pictures(tmp_path / "pictures", 5)
    pair, other = write_network(tmp_path, PIXELS), write_network(tmp_path, PIXELS, seed=3, name="other")
    evaluator = evaluator_of(tmp_path, 'kind = "agreement"')
    found = scored(evaluator, other)
    decisions = [scores_of(each, evaluator, "conv").argmax(axis=1) for each in (pair, other)]
    shares = (decisions[0] == decisions[1]).mean(axis=(1, 2))
    np.testing.assert_allclose(found.samples, shares)
    assert float(found) == pytest.approx(shares.mean())


SOFTMAX = 'layer {{ name: "p" type: "Softmax" bottom: "x" top: "p" softmax_param {{ axis: {} }} }}\n'
ARGMAX = 'layer { name: "p" type: "ArgMax" bottom: "x" top: "p" argmax_param { axis: 1 } }\n'
RESHAPE = 'layer {{ name: "x" type: "Reshape" bottom: "data" top: "x" reshape_param {{ shape {{ {} }} }} }}\n'


def reshaped(*shape):
    return RESHAPE.format(" ".join(f"dim: {size}" for size in shape))


@pytest.mark.parametrize(
    ("shape", "text", "axis", "given"),
    [
        ((2, 3, 4, 5), reshaped(0, 60), 1, None),
        ((2, 3, 4, 5), reshaped(0, 60, 1, 1), 1, None),
        ((2, 3, 4, 5), reshaped(0, 6, 2, 5), 1, None),
        ((2, 3, 4, 5), reshaped(0, 6, 2, 5), 3, -1),
        ((2, 3, 4, 5), reshaped(0, 12, 5), 2, None),
        ((2, 3, 4, 5), reshaped(0, 12, 5), 1, 1),
        ((2, 3, 4, 5), reshaped(0, 60, 1), 1, None),
        ((2, 3, 4, 5), reshaped(0, 12, 5) + SOFTMAX.format(1), 1, None),
        ((2, 3, 4, 5), reshaped(0, 12, 5) + SOFTMAX.format(-1), 2, None),
        ((2, 3, 4, 5), reshaped(0, 6, 2, 5) + ARGMAX, None, None),
    ],
)
def test_the_axis_of_the_classes(tmp_path, shape, text, axis, given):
    (tmp_path / "net.prototxt").write_text(input_layer(*shape) + text)
    graph = load_graph(tmp_path / "net.prototxt")
    data = DataSettings("folder", tmp_path)
    ends = find_scores(graph, BuiltinSettings("agreement", data, data, axis=given))
    assert (ends.items, ends.axis) == (0, axis)
    blob = RNG.standard_normal(infer_shapes(graph)[ends.output]).astype(np.float32)
    if axis is None:
        blob = np.floor(blob)
        assert ends.decide(ends.scores(blob, 1)).tolist() == blob[:1].tolist()
    else:
        np.testing.assert_array_equal(ends.decide(ends.scores(blob, 1)), blob.argmax(axis)[:1])


def test_a_sequence_whose_steps_come_first(tmp_path):
    orders = "order: 2 order: 0 order: 1 order: 3"
    permute = f'layer {{ name: "x" type: "Permute" bottom: "data" top: "x" permute_param {{ {orders} }} }}\n'
    flat = 'layer { name: "f" type: "Flatten" bottom: "x" top: "f" flatten_param { axis: 2 } }\n'
    (tmp_path / "net.prototxt").write_text(input_layer(2, 3, 4, 5) + permute + flat)
    graph, data = load_graph(tmp_path / "net.prototxt"), DataSettings("folder", tmp_path)
    ends = find_scores(graph, BuiltinSettings("agreement", data, data))
    assert (ends.items, ends.axis) == (1, 2)
    blob = RNG.standard_normal((4, 2, 15))
    np.testing.assert_array_equal(ends.decide(ends.scores(blob, 2)), blob.argmax(2).T)


def test_a_score_that_is_no_number_decides_nothing(tmp_path):
    (tmp_path / "net.prototxt").write_text(CLASSIFIER)
    data = DataSettings("folder", tmp_path)
    ends = find_scores(load_graph(tmp_path / "net.prototxt"), BuiltinSettings("agreement", data, data))
    assert ends.decide(np.array([[1.0, np.nan, 3.0], [2.0, 1.0, 0.0]])).tolist() == [-1, 0]


def test_outputs_are_noise_beside_signal_of_the_worst(tmp_path):
    write_pictures(tmp_path / "pictures", 9)
    pair, other = write_network(tmp_path, TWO_OUTPUTS), write_network(tmp_path, TWO_OUTPUTS, seed=3, name="other")
    evaluator = evaluator_of(tmp_path, 'kind = "outputs"')
    original, new = scored(evaluator, pair), scored(evaluator, other)
    assert float(original) == 0
    assert (original.samples == 0).all()
    ratios = []
    for name in ("fc", "points"):
        before, after = scores_of(pair, evaluator, name), scores_of(other, evaluator, name)
        ratios.append(((after - before) ** 2).sum() / (before.var(axis=0, ddof=1) * len(before)).sum())
    assert float(new) == pytest.approx(max(ratios), rel=1e-5)
    assert float(new.samples.mean()) == pytest.approx(float(new))
    assert evaluator.is_satisfied(0.0, 0.00999)
    assert not evaluator.is_satisfied(0.0, 0.01001)
    assert margin(evaluator.is_satisfied, 0.0, 0.04) == pytest.approx(np.log(4), abs=1e-4)
    one = evaluator_of(tmp_path, 'kind = "outputs"\noutputs = ["fc"]\nsnr = 10')
    assert float(scored(one, other)) == pytest.approx(ratios[0], rel=1e-5)
    assert one.is_satisfied(0.0, 0.0999)
    assert "10 dB" in one.meaning


def test_cosine_of_outputs(tmp_path):
    write_pictures(tmp_path / "pictures", 5)
    pair, other = write_network(tmp_path, CLASSIFIER), write_network(tmp_path, CLASSIFIER, seed=3, name="other")
    evaluator = evaluator_of(tmp_path, 'kind = "outputs"\ncosine = 0.9')
    before, after = scores_of(pair, evaluator, "fc"), scores_of(other, evaluator, "fc")
    cosines = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    np.testing.assert_allclose(scored(evaluator, other).samples, 1 - cosines, rtol=1e-5)
    assert float(scored(evaluator, pair)) == pytest.approx(0, abs=1e-12)
    assert (evaluator.is_satisfied(0, 0.099), evaluator.is_satisfied(0, 0.101)) == (True, False)


def test_outputs_that_the_image_does_not_change_are_left_out(tmp_path):
    bottoms = 'bottom: "conv" bottom: "data"'
    prior = f'layer {{ name: "prior" type: "PriorBox" {bottoms} top: "prior" prior_box_param {{ min_size: 4 }} }}\n'
    write_pictures(tmp_path / "pictures", 3)
    write_network(tmp_path, CLASSIFIER + prior)
    assert evaluator_of(tmp_path, 'kind = "outputs"').ends.outputs == ("fc",)


def test_the_original_is_run_once_and_again_where_there_is_no_room(tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", 6)
    pair, other = write_network(tmp_path, CLASSIFIER), write_network(tmp_path, CLASSIFIER, seed=3, name="other")
    runs = []
    for most in (1 << 20, 0):
        monkeypatch.setattr("autonuq.evaluate.builtin.images._KEPT_BYTES", most)
        evaluator = evaluator_of(tmp_path, 'kind = "agreement"')
        own = evaluator._run
        monkeypatch.setattr(evaluator, "_run", lambda net, *span, own=own: (runs.append(net), own(net, *span))[1])
        found = [float(scored(evaluator, each)) for each in (pair, other, other)]
        runs.append((found, sum(net is evaluator._original_net for net in runs if not isinstance(net, tuple))))
    (kept, none), (anew, many) = (run for run in runs if isinstance(run, tuple))
    assert kept == anew
    assert (none, many) == (0, 9)


def test_one_is_made_again_elsewhere(tmp_path):
    write_pictures(tmp_path / "pictures", 4)
    write_network(tmp_path, CLASSIFIER)
    other = write_network(tmp_path, CLASSIFIER, seed=3, name="other")
    for kind in ("agreement", "outputs"):
        evaluator = evaluator_of(tmp_path, f'kind = "{kind}"')
        again = pickle.loads(pickle.dumps(evaluator))
        assert again.fingerprint() == evaluator.fingerprint()
        assert float(scored(again, other)) == float(scored(evaluator, other))


@pytest.mark.parametrize("degree", [1, 2])
def test_jackknifed_samples_have_the_metric_as_mean_and_its_error(degree):
    """The error of a ratio is that of many samples of images, drawn anew."""
    tops, bottoms = RNG.gamma(2, 1, 4000) ** degree, RNG.gamma(2, 1, 4000)

    def score(rows):
        top, bottom = tops[rows].sum(), bottoms[rows].sum()
        return jackknifed(top / bottom, (tops[rows] - top / bottom * bottoms[rows]) / bottom)

    drawn = [score(RNG.integers(0, 4000, 400)) for _ in range(400)]
    assert float(np.mean(drawn[0].samples)) == pytest.approx(float(drawn[0]))
    error = np.mean([own.samples.std(ddof=1) / 20 for own in drawn])
    assert error == pytest.approx(np.std(drawn), rel=0.12)


@pytest.fixture
def segmented(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 6, (24, 32))
    (tmp_path / "masks").mkdir()
    for path in pictures.iterdir():
        mask = RNG.integers(0, 4, (24, 32)).astype(np.uint8)
        mask[:3] = 255
        picture = Image.fromarray(mask, "P" if path.stem < "03" else "L")
        if picture.mode == "P":
            picture.putpalette(bytes(range(256)) * 3)
        picture.save(tmp_path / "masks" / path.name)
    return tmp_path


MASKED = 'data = {folder = "pictures", labels = "masks"}\ntransform = {resize = [12, 16]}'


def test_miou_is_that_of_all_pixels_together(segmented):
    write_network(segmented, PIXELS)
    other = write_network(segmented, PIXELS, seed=3, name="other")
    evaluator = evaluator_of(segmented, 'kind = "miou"', MASKED)
    found = scored(evaluator, other)
    scores = scores_of(other, evaluator, "conv")
    confusion = np.zeros((4, 4))
    for name, own in zip(evaluator.scored.names, scores, strict=True):
        mask = np.asarray(Image.open(segmented / f"masks/{name}.png"))[1::2, 1::2]
        large = cv2.resize(own.transpose(1, 2, 0).astype(np.float32), (16, 12), interpolation=cv2.INTER_LINEAR)
        np.add.at(confusion, (mask[mask != 255], large.argmax(2)[mask != 255]), 1)
    both = np.diag(confusion)
    expected = (both / (confusion.sum(0) + confusion.sum(1) - both)).mean()
    assert float(found) == pytest.approx(expected, abs=1e-3)
    assert len(found.samples) == 6
    assert paired_error(found, found) == 0
    some = evaluator_of(segmented, 'kind = "miou"\nclasses = [0, 2]', MASKED)
    assert float(scored(some, other)) != float(found)


def test_a_network_that_ends_with_argmax(segmented):
    text = PIXELS + 'layer { name: "max" type: "ArgMax" bottom: "conv" top: "max" argmax_param { axis: 1 } }\n'
    pair = write_network(segmented, text)
    found = scored(evaluator_of(segmented, 'kind = "miou"', MASKED), pair)
    assert 0 < float(found) < 1


def test_pixels_are_counted():
    mask, found = np.array([[0, 1, 255], [2, 2, 1]]), np.array([[0, 2, 0], [2, -1, 7]])
    assert count_pixels(mask, found, 3, 255).tolist() == [[1, 0, 1], [1, 2, 2], [1, 0, 2]]


@pytest.mark.parametrize("size", [(13, 31), (40, 17), (20, 24), (1, 1)])
def test_scores_are_resized_as_opencv_does(size):
    values = RNG.standard_normal((3, 20, 24)).astype(np.float32)
    expected = cv2.resize(values.transpose(1, 2, 0), size[::-1], interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(_bilinear(values, size), expected.transpose(2, 0, 1), atol=1e-5)
    assert _nearest(values, size).shape == (3, *size)


@pytest.mark.parametrize(
    "settings",
    [
        TransformSettings(),
        TransformSettings(resize=(10, 12)),
        TransformSettings(resize=(16,), crop=(12, 14)),
        TransformSettings(crop=(11, 13)),
    ],
)
def test_a_mask_goes_through_what_its_picture_does(settings):
    mask = np.kron(np.array([[0, 1], [2, 3]]), np.ones((10, 12), int))
    placed, placement = place_mask(settings, mask), place(settings, (20, 24))
    assert placed.shape == placement.size
    height, width = placement.size
    assert placed[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]
    middle = [(length - start, start) for length, start in zip(placement.resized, placement.start, strict=True)]
    assert (placed[:, 0] == 0).sum() == pytest.approx(placement.resized[0] / 2 - placement.start[0], abs=0.51), middle
    assert (placed[0] == 0).sum() == pytest.approx(placement.resized[1] / 2 - placement.start[1], abs=0.51)
    assert (height, width) == placed.shape


def test_pictures_without_labels_are_all_below_the_folder(tmp_path):
    write_pictures(tmp_path / "pictures/b", 2)
    write_pictures(tmp_path / "pictures/a", 1)
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    (tmp_path / "pictures/a/.00.png").write_text("what a file manager leaves")
    source = open_images(DataSettings("folder", tmp_path / "pictures"), labelled=False)
    assert source.names == ["a/00", "b/00", "b/01"]
    assert len(source.labels) == 0
    some = open_images(DataSettings("folder", tmp_path / "pictures", start=1), labelled=False, names={"a/00", "b/01"})
    assert some.names == ["b/01"]
    before = source.digest()
    write_pictures(tmp_path / "pictures/c", 1)
    assert open_images(DataSettings("folder", tmp_path / "pictures"), labelled=False).digest() != before


def test_a_database_whose_labels_nobody_wants(tmp_path):
    with lmdb.open(str(tmp_path / "db")) as database, database.begin(write=True) as transaction:
        for number in range(3):
            datum = caffe_pb2.Datum(channels=3, height=4, width=5, data=bytes(60), label=-number)
            transaction.put(f"{number:08}".encode(), datum.SerializeToString())
    source = open_images(DataSettings("lmdb", tmp_path / "db", start=1), labelled=False)
    assert (source.names, len(source.labels)) == (["00000001", "00000002"], 0)
    assert source.read(0, 2, 3)[0].shape == (4, 5, 3)


MISTAKES = [
    ('kind = "top1"', "labels.txt: label file cannot be read"),
    ('kind = "agreement"\nsnr = 3', "'evaluator.snr' belongs to kind outputs; 'agreement' does not take it"),
    (
        'kind = "outputs"\ndrop = 3',
        "'evaluator.drop' belongs to the kinds top1, top5, agreement, detections, map, miou",
    ),
    ('kind = "outputs"\nmeasure = "snr"\ncosine = 0.9', "'evaluator.cosine' is no limit of the measure 'snr'"),
    ('kind = "outputs"\nsnr = 3\ncosine = 0.9', "'evaluator.cosine' is no limit of the measure 'snr'"),
    ('kind = "outputs"\nsnr = 0', "'evaluator.snr' must be a positive number of decibels"),
    ('kind = "outputs"\noutputs = []', "'evaluator.outputs' must be a list of names of blobs"),
    ('kind = "outputs"\noutputs = ["fcc"]', "no output blob 'fcc'"),
    ('kind = "agreement"\naxis = 0', "'axis' must be one of [1] for blob 'fc'"),
    ('kind = "agreement"\noutput = "conv"\naxis = 7', "'axis' must be one of [1, 2, 3] for blob 'conv'"),
    ('kind = "miou"', "'evaluator.data.labels' is missing: kind 'miou' needs the folder of the masks"),
    ('kind = "miou"\nclasses = [-1]', "is missing"),
    ('kind = "map"', "'evaluator.detections.annotations' is missing: kind 'map' needs a folder of VOC"),
    ('kind = "detections"\ndetections = {annotations = "a"}', "'evaluator.detections.annotations' belongs to kind map"),
    ('kind = "agreement"\ndetections = {iou = 0.5}', "'evaluator.detections.iou' belongs to the kinds detections, map"),
    ('kind = "detections"\ndetections = {iou = 2}', "'evaluator.detections.iou' must be between 0 and 1. Got 2"),
    ('kind = "detections"\ndetections = {sides = [10]}', "'evaluator.detections.sides' must be for each feature map"),
    ('kind = "detections"\ndetections = {layout = "sdd"}', "Did you mean 'ssd'"),
    ('kind = "detections"\ndetections = {tresh = 1}', "unknown key of [evaluator.detections] 'tresh'"),
]


@pytest.mark.parametrize(("evaluator", "message"), MISTAKES)
def test_mistakes(tmp_path, evaluator, message):
    write_pictures(tmp_path / "pictures", 2)
    write_network(tmp_path, CLASSIFIER)
    with pytest.raises((StudyError, EvaluatorError)) as caught:
        evaluator_of(tmp_path, evaluator)
    assert message in str(caught.value)


def test_mistakes_of_data(segmented):
    write_network(segmented, PIXELS)
    masks = segmented / "masks"

    def refused(evaluator='kind = "miou"', data=MASKED):
        with pytest.raises((StudyError, EvaluatorError)) as caught:
            scored(evaluator_of(segmented, evaluator, data), (segmented / "net.prototxt", segmented / "net.caffemodel"))
        return str(caught.value)

    assert "folder of masks not found" in refused(data=MASKED.replace("masks", "mask"))
    assert "in a folder of their own" in refused(data=MASKED.replace("masks", "pictures"))
    assert "miou reads pictures and masks from folders, no npz" in refused(data='data = {npz = "a.npz", labels = "y"}')
    assert "'evaluator.data.labels' belongs to the kinds top1, top5, miou" in refused('kind = "agreement"')
    assert "'classes' names 4; blob 'conv' has 4 classes" in refused('kind = "miou"\nclasses = [0, 4]')
    Image.fromarray(np.full((24, 30), 1, np.uint8)).save(masks / "00.png")
    assert "00.png: is 24x30, its picture 24x32" in refused()
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(masks / "00.png")
    assert "shows class 9; blob 'conv' has the classes 0..3" in refused()
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(masks / "00.png")
    assert "is a picture of colours (RGB)" in refused()
    for path in masks.iterdir():
        Image.fromarray(RNG.choice(np.array([0, 255], np.uint8), (24, 32))).save(path)
    assert "the masks show 0 and 255 alone" in refused()
    for path in list(masks.iterdir()):
        path.rename(masks / f"x{path.name}")
    assert "no mask is called as a picture" in refused()
    write_network(segmented, CLASSIFIER)
    assert "'fc' holds no scores of classes for each pixel" in refused()


def test_an_input_that_nothing_feeds(tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    added = 'layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "more" top: "sum" }\n'
    text = (
        'layer { name: "more" type: "Input" top: "more" input_param { shape { dim: 2 dim: 5 } } }\n'
        + CLASSIFIER
        + added
    )
    write_network(tmp_path, text)
    with pytest.raises(EvaluatorError, match="the network takes 'more' beside its images"):
        evaluator_of(tmp_path, 'kind = "agreement"\ninput = "data"')
    evaluator = evaluator_of(tmp_path, 'kind = "agreement"\ninput = "data"\noutput = "fc"')
    assert evaluator.ends.outputs == ("fc",)


def test_the_size_of_the_input_is_fed(tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    size = 'layer { name: "im_info" type: "Input" top: "im_info" input_param { shape { dim: 1 dim: 3 } } }\n'
    write_network(tmp_path, size + CLASSIFIER)
    evaluator = evaluator_of(tmp_path, 'kind = "agreement"')
    net = evaluator._net(str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel"))
    assert net.blobs["im_info"].data.tolist() == [[12, 16, 1]]


def test_detections_are_no_decisions_and_no_values(tmp_path):
    bottoms = "".join(f'bottom: "{name}" ' for name in ("boxes", "scores", "prior"))
    parameters = "detection_output_param { num_classes: 2 nms_param { } }"
    prior = 'bottom: "conv" bottom: "data" top: "prior" prior_box_param { min_size: 4 }'
    text = (
        CLASSIFIER
        + INNER.format("boxes", "conv", 5 * 7 * 4)
        + INNER.format("scores", "conv", 5 * 7 * 2)
        + f'layer {{ name: "prior" type: "PriorBox" {prior} }}\n'
        + f'layer {{ name: "found" type: "DetectionOutput" {bottoms} top: "found" {parameters} }}\n'
    )
    (tmp_path / "net.prototxt").write_text(text)
    graph = load_graph(tmp_path / "net.prototxt")
    with pytest.raises(EvaluatorError, match="blob 'found' holds a row for each detection; take kind 'detections'"):
        check_fixed(graph, "found")
    check_fixed(graph, "fc")


def test_a_blob_that_mixes_images_is_refused(tmp_path):
    (tmp_path / "net.prototxt").write_text(input_layer(2, 3, 4, 5) + reshaped(1, 120))
    graph = load_graph(tmp_path / "net.prototxt")
    with pytest.raises(EvaluatorError, match=r"\(1, 120\) does not tell the 2 images of a batch apart"):
        find_items(graph, "x", (1, 120), 2)
    assert find_items(graph, "x", (7, 120), 1) is None


def test_studies_of_earlier_versions_know_their_evaluator(tmp_path):
    """Its fingerprint as the version had it that knew top1 and top5 alone."""
    images = (
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 6 } }\n'
    )
    (tmp_path / "net.prototxt").write_text(input_layer(2, 3, 4, 5) + images)
    with lmdb.open(str(tmp_path / "db")) as database, database.begin(write=True) as transaction:
        for number in range(7):
            datum = caffe_pb2.Datum(channels=3, height=4, width=5, data=bytes(60), label=number % 6)
            transaction.put(f"{number:08}".encode(), datum.SerializeToString())
    data = 'data = {lmdb = "db", start = 1}\ntransform = {mean = [1, 2, 3], scale = 0.5}'
    known = "3030b41220864bb762d06104b8021d02478e675893455a0fe88b36f8d43a490d"
    assert evaluator_of(tmp_path, 'kind = "top5"', data).fingerprint() == known


def test_the_original_may_lie_elsewhere(tmp_path):
    """As on a worker that fetched it: a made evaluator looks for it there."""
    write_pictures(tmp_path / "pictures", 4)
    pair = write_network(tmp_path, TWO_OUTPUTS)
    other = write_network(tmp_path, TWO_OUTPUTS, seed=3, name="other")
    made = evaluator_of(tmp_path, 'kind = "outputs"')
    expected = float(scored(evaluator_of(tmp_path, 'kind = "outputs"'), other))
    moved = [Path(file).rename(tmp_path / f"moved{Path(file).suffix}") for file in pair]
    with pytest.raises(Exception, match="net.prototxt"):
        scored(made, other)
    assert float(scored(make_evaluator(made, ModelPair(*moved)), other)) == expected
