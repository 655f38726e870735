"""Second moments that the calibration collects are those of what each row of weights meets."""

import numpy as np
import pytest

from autonuq import Net
from autonuq.compress.calibration import write_calibration_model
from autonuq.compress.quantized import default_config, quantize
from autonuq.errors import QuantizationError
from autonuq.graph import caffe_pb2
from autonuq.graph.files import ModelPair, load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.model import Layer
from autonuq.runtime.moments import InputPatches, MomentObserver, load_moments, sum_of_items


@pytest.fixture
def calibrated(tiny):
    """Run the modified tiny network on two batches; return what was kept of each layer, the images, fc's input."""
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    pair, record = ModelPair(tiny / "m.prototxt", tiny / "m.caffemodel"), tiny / "record.txt"
    model = quantize(graph, default_config(graph, batch_num=2))
    write_calibration_model(model, pair, record, model.weights)
    net = Net(pair.model, pair.weights)
    images = np.random.default_rng(0).standard_normal((2, 4, 2, 8, 8), np.float32)
    pooled = [net.forward(data=batch, blobs=["pool"])["pool"].copy() for batch in images]
    net.forward(data=100 * images[0])  # a later pass does nothing
    found = {layer.name: load_moments(record, layer) for layer in model.graph.layers if layer.name in model.factors}
    return found, images.reshape(8, 2, 8, 8), np.concatenate(pooled)


def test_few_samples_are_kept_as_they_are(calibrated):
    found, _, pooled = calibrated
    assert (found["fc"][0].rows == pooled.reshape(8, -1)).all()


def test_convolution_with_padding(calibrated):
    """Against the definition: the sum over positions of outer products of zero-padded patches."""
    found, images, _ = calibrated
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.array([image[:, y : y + 3, x : x + 3].ravel() for image in padded for y in range(8) for x in range(8)])
    (own,) = found["conv"]
    assert own.samples == 8 * 64
    assert own.sums == pytest.approx(patches.T @ patches, rel=1e-4, abs=1e-3)
    assert own.totals == pytest.approx(patches.sum(axis=0), rel=1e-4, abs=1e-3)


def test_layers_without_weights_have_none(calibrated):
    assert calibrated[0]["pool"] == ()


LAYERS = {
    "convolution": 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 pad: 1 stride: 2 }',
    "dilated": 'type: "Convolution" convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 dilation: 2 pad: 2 }',
    "groups": 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }',
    "depthwise": 'type: "Convolution" convolution_param { num_output: 4 kernel_size: 3 pad: 1 group: 4 }',
    "deconvolution": 'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 4 stride: 2 pad: 1 }',
    "uneven": 'type: "Deconvolution" convolution_param { num_output: 6 kernel_h: 3 kernel_w: 5 stride: 2 }',
    "fully connected": 'type: "InnerProduct" inner_product_param { num_output: 6 }',
}


@pytest.mark.parametrize("text", LAYERS.values(), ids=LAYERS)
def test_samples_times_weights_are_the_layers_output(text, tmp_path):
    prototxt = tmp_path / "m.prototxt"
    prototxt.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 dim: 7 dim: 6 } } }'
        f'layer {{ name: "l" bottom: "data" top: "out" {text} }}'
    )
    rng = np.random.default_rng(0)
    graph = load_graph(prototxt)
    shapes = blob_shapes(graph, graph.by_name["l"], infer_shapes(graph))
    layer = graph.by_name["l"].with_(blobs=tuple(rng.standard_normal(shape, np.float32) for shape in shapes))
    pair = ModelPair(prototxt, tmp_path / "m.caffemodel")
    write_model(graph.with_layers([graph.layers[0], layer]), pair.model, pair.weights)
    images = rng.standard_normal((2, 4, 7, 6), np.float32)
    output = Net(pair.model, pair.weights).forward(data=images)["out"]
    observed = InputPatches(layer, images)
    (samples,) = observed.patches(observed.samples, seed=0)
    weights = np.moveaxis(layer.blobs[0], 1 if layer.type == "Deconvolution" else 0, 0)
    matrix = weights.reshape(len(samples), len(weights) // len(samples), -1)
    found = np.concatenate(list(samples @ matrix.swapaxes(1, 2)), axis=1) + layer.blobs[1].ravel()
    expected = np.moveaxis(output, 1, -1).reshape(-1, len(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("seed", range(12))
def test_samples_that_are_cut_out_are_those_of_whole_items(seed, kind):
    """Kernel, stride, padding, dilation and groups at random; some samples are in the order of their places."""
    rng = np.random.default_rng(seed)
    layer = Layer(caffe_pb2.LayerParameter(name="l", type=kind))
    parameters, groups = layer.message.convolution_param, 1 if kind == "Deconvolution" else int(rng.integers(1, 3))
    parameters.kernel_h, parameters.kernel_w, parameters.stride_h, parameters.stride_w = rng.integers(1, 4, 4)
    parameters.pad_h, parameters.pad_w = rng.integers(0, (parameters.kernel_h, parameters.kernel_w))
    parameters.group, parameters.num_output = groups, 6
    if kind == "Convolution":
        parameters.dilation.append(int(rng.integers(1, 3)))
    shape = (4, 6, parameters.kernel_h, parameters.kernel_w) if kind == "Deconvolution" else (
        6, 4 // groups, parameters.kernel_h, parameters.kernel_w,
    )  # fmt: skip
    images = rng.standard_normal((3, 4, 9, 8), np.float32)
    observed = InputPatches(layer.with_(blobs=(np.ones(shape, np.float32),)), images)
    whole = observed.of_items(slice(None))
    (every,) = observed.patches(observed.samples, seed=0)
    assert observed.samples == whole.shape[1] and (every == whole).all()
    (some,) = observed.patches(5, seed=seed)
    places = np.random.default_rng(seed).choice(observed.samples, 5, replace=False, shuffle=False)
    assert (some == whole[:, places]).all()
    assert observed.total() == pytest.approx(whole.sum(axis=1, dtype=np.float64), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("items", [1, 64, 65, 200])
def test_sums_of_items_are_those_of_float64(items):
    values = np.random.default_rng(items).standard_normal((items, 3, 2), np.float32) + 10
    found = sum_of_items(values)
    assert found.dtype == np.float64 and found.shape == (1, 3, 2)
    assert found[0] == pytest.approx(values.sum(axis=0, dtype=np.float64), rel=1e-6)


def test_each_pass_gives_its_share_where_there_are_more_samples_than_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("autonuq.quant.inputs._FEWEST_SAMPLES", 50)
    layer = Layer(caffe_pb2.LayerParameter(name="l", type="Convolution"), (np.ones((3, 2, 1, 1), np.float32),))
    layer.message.convolution_param.kernel_size.append(1)
    layer.message.convolution_param.num_output = 3
    observer = MomentObserver(layer, tmp_path / "l.npy", passes=3)
    batches = np.random.default_rng(0).standard_normal((3, 5, 2, 8, 8), np.float32)
    for batch in batches:
        observer.observe(batch)
    stored = np.load(tmp_path / "l.npy")[0]
    assert stored[-1].tolist() == [50, 50]
    assert stored[:-2] == pytest.approx(50 * np.eye(2), abs=30)
    batches[0] = np.inf
    with pytest.raises(QuantizationError, match="second moments of its inputs are not finite"):
        MomentObserver(layer, tmp_path / "l.npy", passes=1).observe(batches[0])
