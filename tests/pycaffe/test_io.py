"""`caffe.io` and `caffe.proto` for scripts: what pycaffe's documentation and its users rely on."""

import subprocess
import sys

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image

from autonuq.pycaffe.io import (
    Transformer,
    array_to_blobproto,
    array_to_datum,
    blobproto_to_array,
    caffe_pb2,
    datum_to_array,
    load_image,
    oversample,
    resize_image,
)

RNG = np.random.default_rng(0)


@pytest.fixture
def picture(tmp_path):
    pixels = RNG.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return tmp_path / "p.png", pixels


def test_pictures_are_rgb_between_0_and_1(picture):
    path, pixels = picture
    loaded = load_image(path)
    assert loaded.dtype == np.float32
    assert loaded == pytest.approx(pixels / 255)
    grey = load_image(path, color=False)
    assert grey.shape == (6, 8, 1)
    assert grey[..., 0] == pytest.approx(pixels / 255 @ [0.2125, 0.7154, 0.0721], abs=1e-6)


def test_classification_transform_is_caffes(picture):
    """The transform of Caffe's 00-classification example, spelled out."""
    path, pixels = picture
    transformer = Transformer({"data": (10, 3, 6, 8)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_mean("data", np.array([104.0, 117.0, 123.0]))
    transformer.set_raw_scale("data", 255)
    transformer.set_channel_swap("data", (2, 1, 0))
    transformer.set_input_scale("data", 0.017)
    blob = transformer.preprocess("data", load_image(path))
    bgr = pixels[..., ::-1].transpose(2, 0, 1).astype(float)
    assert blob == pytest.approx((bgr - np.array([104, 117, 123])[:, None, None]) * 0.017, abs=1e-4)
    assert transformer.deprocess("data", blob) == pytest.approx(pixels / 255, abs=1e-6)


def test_resizing_is_opencvs_bilinear_at_pixel_centres():
    cv2 = pytest.importorskip("cv2")
    image = RNG.random((13, 7, 3), np.float32)
    for size in ((26, 21), (5, 4), (13, 7), (1, 1)):
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        assert resize_image(image, size) == pytest.approx(expected, abs=2e-6), size
    assert resize_image(image, (26, 14), 0) == pytest.approx(image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.preprocess("date", np.zeros((4, 4, 3))), "date is not one of the net inputs"),
        (lambda t: t.set_transpose("data", (0, 1)), "Transpose order needs"),
        (lambda t: t.set_channel_swap("data", (1, 0)), "Channel swap needs"),
        (lambda t: t.set_mean("data", np.zeros(4)), "Mean channels incompatible"),
        (lambda t: t.set_mean("data", np.zeros((3, 5, 5))), "Mean shape incompatible"),
        (lambda t: resize_image(np.zeros((4, 4, 3)), (2, 2), 3), "'interp_order' parameter"),
        (lambda t: array_to_datum(np.zeros((4, 4))), "Incorrect array shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(Exception, match=message):
        call(Transformer({"data": (1, 3, 4, 4)}))


def test_oversampling_is_corners_centre_and_mirrors():
    image = RNG.random((6, 8, 3), np.float32)
    crops = oversample([image, image], (4, 4))
    assert crops.shape == (20, 4, 4, 3)
    assert (crops[0] == image[:4, :4]).all()
    assert (crops[3] == image[2:, 4:]).all()
    assert (crops[4] == image[1:5, 2:6]).all()
    assert (crops[5] == image[:4, :4][:, ::-1]).all()


def test_datums_and_blobs_come_back():
    image, values = RNG.integers(0, 256, (3, 4, 5), np.uint8), RNG.random((3, 4, 5), np.float32)
    datum = caffe_pb2.Datum.FromString(array_to_datum(image, 7).SerializeToString())
    assert (datum_to_array(datum) == image).all()
    assert datum.label == 7
    assert (datum_to_array(array_to_datum(values)) == values).all()
    assert (blobproto_to_array(array_to_blobproto(values)) == values).all()


def test_blobs_hold_lists_as_scripts_expect_and_old_shapes_are_read():
    blob = caffe_pb2.BlobProto(num=1, channels=2, height=1, width=2, data=[1, 2, 3, 4])
    assert list(blob.data) == [1, 2, 3, 4]
    assert blobproto_to_array(blob).shape == (1, 2, 1, 2)
    net = text_format.Parse('layer { name: "c" type: "Convolution" }', caffe_pb2.NetParameter())
    assert net.layer[0].name == "c"
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1)


def test_imports_of_scripts(tmp_path):
    script = """
import autonuq.pycaffe
autonuq.pycaffe.install()
import os, sys
sys.path.insert(0, "/nowhere/python")
import caffe
import caffe.io
from caffe.proto import caffe_pb2
import caffe.proto.caffe_pb2 as again
from caffe import TEST, Net
assert again is caffe_pb2 is caffe.proto.caffe_pb2 is caffe.io.caffe_pb2
caffe.set_mode_cpu(); caffe.set_device(0); caffe.set_random_seed(1); caffe.init_log(0, True)
assert caffe.io.Transformer and caffe.TRAIN == 0 and TEST == 1 and Net is caffe.Net
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
