"""What blobs hold that nobody gave values to."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.errors import ModelError
from autonuq.graph.files import load_graph, write_caffemodel

INPUT = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }\n'
CONV = "convolution_param { num_output: 4 kernel_size: 4 weight_filler { FILLER } }"
OWN = """layer { name: "own" type: "Convolution" bottom: "x" top: "o"
        convolution_param { num_output: 3 kernel_size: 1 } }
"""


def layer(kind, text=""):
    return f'layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {text} }}\n'


# type, parameters, values of the blobs; None: any
FIXED = {
    "constant": ("Convolution", CONV.replace("FILLER", "value: 0.5"), [0.5, 0]),
    "zeros that are given": ("Convolution", CONV.replace("FILLER", 'type: "constant"'), [0, 0]),
    "bias": ("InnerProduct", "inner_product_param { num_output: 2 weight_filler { value: 1 } bias_filler { value: 3 }}",
             [1, 3]),
    "Scale": ("Scale", "scale_param { bias_term: true }", [1, 0]),
    "Scale with fillers": ("Scale", "scale_param { filler { value: 2 } bias_term: 1 bias_filler { value: 3 } }",
                           [2, 3]),
    "Bias": ("Bias", "", [0]),
    "Bias with filler": ("Bias", "bias_param { filler { value: 4 } }", [4]),
    "PReLU": ("PReLU", "", [0.25]),
    "PReLU with filler": ("PReLU", "prelu_param { channel_shared: true filler { value: 0.1 } }", [0.1]),
    "BatchNorm": ("BatchNorm", "", [0, 0, 0]),
    "BatchNorm of NVIDIA": ("BatchNorm", "batch_norm_param { scale_bias: true }", [0, 0, 1, 1, 0]),
    "BatchNorm with fillers": ("BatchNorm", "batch_norm_param { scale_filler { value: 2 } bias_filler { value: 3 } }",
                               [0, 0, 1, 2, 3]),
    "BatchNorm of Intel": ("BatchNorm", "batch_norm_param { use_weight_bias: true filler { value: 2 } }",
                           [0, 0, 0, 2, 0]),
    "Normalize": ("Normalize", "norm_param { channel_shared: false }", [1]),
    "Normalize with filler": ("Normalize", "norm_param { scale_filler { value: 20 } }", [20]),
}  # fmt: skip
RANDOM = ("gaussian", "msra", "positive_unitball", "uniform", "xavier")


@pytest.fixture
def files(tmp_path):
    """Write a network whose caffemodel has the layer `own` alone."""

    def made(text):
        (tmp_path / "own.prototxt").write_text(INPUT + OWN)
        own = nuq.Net(tmp_path / "own.prototxt", nuq.pycaffe.TEST)
        own.params["own"][0].data[...] = 7
        own.save(tmp_path / "net.caffemodel")
        (tmp_path / "net.prototxt").write_text(INPUT + OWN + text)
        return tmp_path / "net.prototxt", tmp_path / "net.caffemodel"

    return made


@pytest.mark.parametrize(("kind", "text", "values"), FIXED.values(), ids=FIXED)
def test_fixed_fillers_serve_where_the_caffemodel_lacks_a_layer(files, kind, text, values):
    graph = load_graph(*files(layer(kind, text)))
    own, filled = graph.layers[1:]
    assert (own.blobs[0] == 7).all()
    assert [blob.dtype for blob in filled.blobs] == [np.float32] * len(values)
    assert [np.unique(blob).tolist() for blob in filled.blobs] == [[np.float32(value)] for value in values]


@pytest.mark.parametrize("kind", RANDOM)
def test_random_fillers_do_not(files, kind):
    model, weights = files(layer("Convolution", CONV.replace("FILLER", f'type: "{kind}"')))
    with pytest.raises(ModelError, match=f"layer 'l'.*{weights} has no layer of this name.*weight_filler '{kind}'"):
        load_graph(model, weights)
    assert load_graph(model).layers[2].blobs == ()


def test_weights_without_a_filler_are_refused_not_taken_as_zeros(files):
    model, weights = files(layer("Convolution", "convolution_param { num_output: 2 kernel_size: 1 }"))
    with pytest.raises(ModelError, match="layer 'l'.*has no layer of this name; take a caffemodel that holds it"):
        load_graph(model, weights)


def test_a_filler_that_caffe_lacks(files):
    model, weights = files(layer("Convolution", CONV.replace("FILLER", 'type: "gabor"')))
    with pytest.raises(ModelError, match="'gabor'"):
        load_graph(model, weights)
    with pytest.raises(ModelError, match="weight_filler is of type 'gabor'; Caffe's are bilinear, constant"):
        nuq.Net(model, nuq.pycaffe.TEST)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_bilinear_weights_interpolate(files, size):
    text = f"convolution_param {{ num_output: 3 group: 3 kernel_size: {size} bias_term: false FILLER }}"
    text = text.replace("FILLER", 'weight_filler { type: "bilinear" }')
    (weights,) = load_graph(*files(layer("Deconvolution", text))).layers[2].blobs
    half = -(-size // 2)  # Caffe's loop over the values, as it stands in filler.hpp
    middle = (size - 1) / (2.0 * half)
    wanted = [
        (1 - abs((index % size) / half - middle)) * (1 - abs((index // size % size) / half - middle))
        for index in range(weights.size)
    ]
    np.testing.assert_allclose(weights.ravel(), wanted, rtol=1e-6)


def test_bilinear_needs_square_filters(files):
    text = 'convolution_param { num_output: 2 kernel_h: 2 kernel_w: 3 weight_filler { type: "bilinear" } }'
    with pytest.raises(ModelError, match="'bilinear' needs square filters"):
        load_graph(*files(layer("Convolution", text)))


@pytest.fixture
def weights_of(tmp_path):
    """Return the weights of a net without a caffemodel: InnerProduct, 400 outputs of 108 inputs."""

    def made(filler):
        text = layer("InnerProduct", f"inner_product_param {{ num_output: 400 weight_filler {{ {filler} }} }}")
        (tmp_path / "net.prototxt").write_text(INPUT + text)
        net = nuq.Net(tmp_path / "net.prototxt", nuq.pycaffe.TEST)
        return net.params["l"][0].data

    return made


DISTRIBUTIONS = {  # filler: mean, standard deviation, largest absolute value
    'type: "gaussian" mean: 3 std: 0.5': (3, 0.5, 6),
    'type: "uniform" min: -1 max: 3': (1, 4 / 12**0.5, 3),
    'type: "xavier"': (0, (1 / 108) ** 0.5, (3 / 108) ** 0.5),
    'type: "xavier" variance_norm: FAN_OUT': (0, (1 / 400) ** 0.5, (3 / 400) ** 0.5),
    'type: "msra" variance_norm: AVERAGE': (0, (2 / 254) ** 0.5, 0.6),
    'type: "positive_unitball"': (1 / 108, 1 / 108 / 3**0.5, 0.03),
}


@pytest.mark.parametrize(("filler", "expected"), DISTRIBUTIONS.items(), ids=DISTRIBUTIONS)
def test_random_fillers_of_a_net_without_weights(weights_of, filler, expected):
    values = weights_of(filler)
    mean, deviation, largest = expected
    assert values.dtype == np.float32
    assert values.mean() == pytest.approx(mean, abs=0.02 * deviation + 1e-9)
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert 0.8 * min(largest, 3 * deviation) < np.abs(values).max() <= largest * (1 + 1e-6)
    if "unitball" in filler:
        assert values.sum(axis=1) == pytest.approx(1)
        assert (values > 0).all()


def test_sparse_weights(weights_of):
    assert (weights_of('type: "gaussian" sparse: 40') != 0).mean() == pytest.approx(0.1, abs=0.01)


def test_seeds(weights_of):
    found = []
    for seed in (3, 3, 4):
        nuq.pycaffe.set_random_seed(seed)
        found.append(weights_of('type: "xavier"'))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_layers_that_share_blobs_are_filled_once(tmp_path):
    fc = 'param { name: "w" } inner_product_param { num_output: 6 axis: 3 weight_filler { type: "gaussian" } }'
    first = layer("InnerProduct", fc)
    second = first.replace('top: "y"', 'top: "z"').replace('"x"', '"y"').replace('"l"', '"m"')
    (tmp_path / "net.prototxt").write_text(INPUT + first + second)
    net = nuq.Net(tmp_path / "net.prototxt", nuq.pycaffe.TEST)
    assert net.params["l"][0] is net.params["m"][0]
    assert (net.params["l"][0].data != 0).any()


def test_copy_from_keeps_what_the_file_lacks_and_save_writes_everything(files, tmp_path):
    model, weights = files(layer("Convolution", CONV.replace("FILLER", 'type: "gaussian"')))
    net = nuq.Net(model, nuq.pycaffe.TEST)
    net.params["l"][1].data[...] = 5
    before = net.params["l"][0].data.copy()
    net.copy_from(weights)
    assert (net.params["own"][0].data == 7).all()
    assert (net.params["l"][0].data == before).all()
    assert (net.params["l"][1].data == 5).all()
    net.save(tmp_path / "saved.caffemodel")
    again = load_graph(model, tmp_path / "saved.caffemodel")
    assert (again.by_name["l"].blobs[0] == before).all()
    write_caffemodel(again, tmp_path / "written.caffemodel")
    assert (tmp_path / "written.caffemodel").read_bytes() == (tmp_path / "saved.caffemodel").read_bytes()
