"""`Classifier` and `Detector` prepare pictures as pycaffe's do, step by step, and hand back what the net says."""

import numpy as np
import pytest
from PIL import Image

import autonuq as nuq
from autonuq.graph.files import load_graph, write_caffemodel
from autonuq.pycaffe import Classifier, Detector, io

SIDE = 6
MEAN = np.float32([10, 20, 30])  # in the input's order, BGR
RNG = np.random.default_rng(11)


@pytest.fixture
def files(tmp_path):
    """Write a net whose output is its input, flattened: two pictures a batch."""
    model, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    count = 3 * SIDE * SIDE
    shape = f"shape {{ dim: 2 dim: 3 dim: {SIDE} dim: {SIDE} }}"
    model.write_text(
        f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}'
        f'layer {{ name: "same" type: "InnerProduct" bottom: "data" top: "same"'
        f" inner_product_param {{ num_output: {count} bias_term: false }} }}"
    )
    graph = load_graph(model)
    write_caffemodel(
        graph.with_layers(
            layer.with_(blobs=[np.eye(count, dtype=np.float32)]) if layer.name == "same" else layer
            for layer in graph.layers
        ),
        weights,
    )
    return str(model), str(weights)


def prepared(crop):
    """What the net must get for a crop (H, W, RGB) in [0, 1]."""
    return ((crop[:, :, ::-1] * 255 - MEAN).transpose(2, 0, 1) * 0.5).ravel()


OPTIONS = {"mean": MEAN, "input_scale": 0.5, "raw_scale": 255, "channel_swap": (2, 1, 0)}


@pytest.fixture
def images():
    return [RNG.random((height, width, 3), np.float32) for height, width in ((9, 12), (8, 8), (20, 10))]


def test_a_classifier_takes_the_centre(files, images):
    net = Classifier(*files, image_dims=(8, 9), **OPTIONS)
    found = net.predict(images, oversample=False)
    expected = [prepared(io.resize_image(image, (8, 9))[1:7, 1:7]) for image in images]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_classifier_averages_ten_crops(files, images):
    net = Classifier(*files, image_dims=(8, 10), **OPTIONS)
    found = net.predict(images)
    assert found.shape == (3, 3 * SIDE * SIDE)
    for image, values in zip(images, found, strict=True):
        resized = io.resize_image(image, (8, 10))
        places = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)]
        crops = [resized[y : y + SIDE, x : x + SIDE] for y, x in places]
        expected = np.mean([prepared(view) for crop in crops for view in (crop, crop[:, ::-1])], axis=0)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-3)


def test_a_classifier_without_options_resizes_to_the_input(files, images):
    net = Classifier(*files)
    assert isinstance(net, nuq.Net)
    found = net.predict(images[:1], oversample=False)
    np.testing.assert_allclose(found[0], io.resize_image(images[0], (SIDE, SIDE)).transpose(2, 0, 1).ravel(), rtol=1e-5)


def test_pictures_smaller_than_the_crop_are_refused(files):
    with pytest.raises(ValueError, match=r"'image_dims' parameter of Classifier must be at least the input's \(6, 6\)"):
        Classifier(*files, image_dims=(5, 9))


@pytest.fixture
def picture(tmp_path):
    pixels = RNG.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png", np.float32(pixels) / 255


def test_a_detector_classifies_windows(files, picture):
    path, values = picture
    windows = np.array([[2, 3, 12, 11], [0, 0, 20, 24], [5, 5, 11, 11]])
    found = Detector(*files, **OPTIONS).detect_windows([(path, windows), (str(path), windows[:1])])
    assert [each["filename"] for each in found] == [path] * 3 + [str(path)]
    for each, (top, left, bottom, right) in zip(found, [*windows, windows[0]], strict=True):
        assert (each["window"] == (top, left, bottom, right)).all()
        expected = prepared(io.resize_image(values[top:bottom, left:right], (SIDE, SIDE)))
        np.testing.assert_allclose(each["prediction"], expected, rtol=1e-4, atol=1e-3)


def test_context_inside_of_the_picture_enlarges_the_window(files, picture):
    """A window of 4 pixels with 1 of 6 on either side for context: 6 pixels of the picture, about the same centre."""
    path, values = picture
    (found,) = Detector(*files, context_pad=1, **OPTIONS).detect_windows([(path, [(8, 8, 11, 11)])])
    part = values[7:13, 7:13]  # of pixels 7..13; the last belongs to the size but is not cut, as in pycaffe
    crop = io.resize_image(part, (SIDE, SIDE))
    np.testing.assert_allclose(found["prediction"], prepared(crop), rtol=1e-4, atol=1e-3)


def test_context_outside_of_the_picture_is_the_mean(files, picture):
    path, _ = picture
    net = Detector(*files, context_pad=1, **OPTIONS)
    (found,) = net.detect_windows([(path, [(0, 0, 7, 7)])])
    image = found["prediction"].reshape(3, SIDE, SIDE)
    assert np.abs(image[:, 0]).max() < 1e-3  # the mean minus the mean
    assert np.abs(image[:, :, 0]).max() < 1e-3
    assert np.abs(image[:, 2:, 2:]).min() > 1e-3
    np.testing.assert_allclose(net.crop_mean[0, 0], MEAN[::-1] / 255, rtol=1e-6)


def test_without_a_mean_the_outside_is_black(files, picture):
    crop = Detector(*files, context_pad=1).crop(picture[1], (0, 0, 7, 7))
    assert crop.shape == (SIDE, SIDE, 3)
    assert not crop[0].any() and crop[2:, 2:].any()


@pytest.mark.parametrize("context", [None, 1])
def test_a_window_beside_the_picture_is_refused(files, picture, context):
    with pytest.raises(ValueError, match=r"window \[40.0, 40.0, 44.0, 44.0\] holds no pixel"):
        Detector(*files, context_pad=context).crop(picture[1], (40, 40, 44, 44))


def test_what_a_detector_does_not_have_is_named(files):
    with pytest.raises(
        ValueError, match="'context_pad' parameter of Detector must be less than half of the input's 6 x 6"
    ):
        Detector(*files, context_pad=3)
    with pytest.raises(nuq.RuntimeFailure, match="detect_windows"):
        Detector(*files).detect_selective_search(["p.png"])
    assert Detector(*files).detect_windows([]) == []
