"""Where the pixels of one top lie on another's: checked against where a network really puts them."""

import pytest

from autonuq.pycaffe import coordinates
from autonuq.pycaffe import layers as L


def test_a_fully_convolutional_network_is_cropped_as_its_authors_say():
    """FCN-32s pads the input by 100 and crops 19 pixels off the upsampled scores."""
    data = L.Input()
    top = L.Convolution(data, kernel_size=3, pad=100, num_output=2)
    for _ in range(5):
        top = L.Pooling(L.ReLU(L.Convolution(top, kernel_size=3, pad=1, num_output=2)), kernel_size=2, stride=2)
    score = L.Convolution(L.Convolution(top, kernel_size=7, num_output=2), kernel_size=1, num_output=2)
    up = L.Deconvolution(score, convolution_param=dict(kernel_size=64, stride=32, num_output=2))
    found = coordinates.crop(up, data).fn
    assert found.params["crop_param"] == {"axis": 2, "offset": [19]}
    assert found.inputs == (up, data)


def test_dilation_and_earlier_crops_count():
    data = L.Input()
    inner = L.Convolution(data, kernel_size=3, dilation=2, num_output=1)
    assert coordinates.crop(data, inner).fn.params["crop_param"]["offset"] == [2]
    cut = L.Crop(data, inner, axis=2, offset=[1])
    assert coordinates.crop(data, L.Convolution(cut, kernel_size=3, num_output=1)).fn.params["crop_param"][
        "offset"
    ] == [2]


def test_the_map_scales_and_shifts():
    data = L.Input()
    axis, a, b = coordinates.coord_map_from_to(L.Pooling(data, kernel_size=2, stride=2), data)
    assert (axis, float(a[0]), float(b[0])) == (1, 2.0, 0.5)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (lambda x: (L.ReLU(x), L.Input()), "no blob in common"),
        (lambda x: (L.Pooling(x, kernel_size=2, stride=2), x), "differ in size"),
        (lambda x: (L.Convolution(x, kernel_size=3, num_output=1), x), "cannot begin at pixel"),
        (lambda x: (x, L.Convolution(x, kernel_size=2, num_output=1)), "cannot begin at pixel"),
        (lambda x: (L.InnerProduct(x, num_output=1), x), "no blob in common"),
    ],
)
def test_what_cannot_be_cropped_is_refused(pair, message):
    with pytest.raises(coordinates.UndefinedMapException, match=message):
        coordinates.crop(*pair(L.Input()))


def test_windows_with_sizes_by_axis_are_named():
    data = L.Input()
    with pytest.raises(ValueError, match="kernel_h, kernel_w of a Convolution"):
        coordinates.crop(L.Convolution(data, kernel_h=3, kernel_w=3, num_output=1), data)


def test_axes_must_agree():
    data = L.Input()
    top = L.Convolution(L.Convolution(data, kernel_size=3, num_output=1, axis=2), kernel_size=3, num_output=1)
    with pytest.raises(coordinates.AxisMismatchException, match="axis 1 and from axis 2"):
        coordinates.crop(data, top)
