"""The output side of weight errors: what it predicts is compared with the divergence that comes out."""

import numpy as np
import pytest

from autonuq.compress.head_metrics import SoftmaxMetric, Spread, SquaresMetric, softmax_factor
from autonuq.compress.output_side import MOST_IMAGES, affordable_images, collect_output_sides
from autonuq.graph.files import load_graph
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.passes import WEIGHT_TYPES, fold_batch_norm
from autonuq.graph.shapes.registry import LAYER_TYPES
from autonuq.runtime.moments import InputPatches
from autonuq.runtime.session import Session

IMAGES = 24
TEXT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "grouped" type: "Convolution" bottom: "pool" top: "grouped"
        convolution_param { num_output: 6 kernel_size: 3 group: 3 } }
layer { name: "relu2" type: "ReLU" bottom: "grouped" top: "grouped" }
layer { name: "fc" type: "InnerProduct" bottom: "grouped" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
PIXELS = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
        convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "prob" type: "Softmax" bottom: "up" top: "prob" }
"""
REGRESSION = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 6 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "tanh" type: "TanH" bottom: "fc" top: "fc" }
layer { name: "out" type: "InnerProduct" bottom: "fc" top: "out" inner_product_param { num_output: 3 } }
"""


def network(folder, text, seed=3):
    """Give a network random weights of a size that keeps the numbers near 1."""
    path = folder / "net.prototxt"
    path.write_text(text)
    graph, rng = load_graph(path), np.random.default_rng(seed)
    shapes = infer_shapes(graph)

    def filled(layer):
        wanted = LAYER_TYPES[layer.type].blobs(layer, [shapes[bottom] for bottom in layer.bottoms])
        return layer.with_(
            blobs=[rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:])) * 1.5 for shape in wanted]
        )

    return graph.with_layers(filled(layer) for layer in graph.layers)


def feeds(graph, count=IMAGES, seed=1):
    rng = np.random.default_rng(seed)
    return {
        blob: rng.standard_normal((count, *shape[1:]), np.float32) + np.float32(0.3)
        for blob, shape in graph.inputs.items()
    }


def values(graph, inputs, blob):
    shapes = {name: array.shape for name, array in inputs.items()}
    last = max(index for index, layer in enumerate(graph.layers) if blob in layer.tops)  # none behind it is needed
    return Session(lower(graph, shapes, outputs=[blob], last=last), threads=1).run(inputs)[blob].astype(np.float64)


def with_error(graph, name, error):
    """Add to the weights of a layer."""
    return graph.with_layers(
        layer.with_(blobs=[layer.blobs[0] + np.float32(error), *layer.blobs[1:]]) if layer.name == name else layer
        for layer in graph.layers
    )


def rows_of(layer, weights):
    """See weights as (groups, R, K), as the product does."""
    if layer.type == "Deconvolution":
        return weights.swapaxes(0, 1).reshape(1, weights.shape[1], -1)
    groups = layer.message.convolution_param.group if layer.type == "Convolution" else 1
    return weights.reshape(groups, weights.shape[0] // groups, -1)


def compensated(graph, name, error, mean):
    """Let the bias take up the mean of the error."""
    layer = graph.by_name[name]
    shift = np.einsum("grk,gk->gr", rows_of(layer, error), mean).reshape(-1)
    bias = layer.blobs[1] if len(layer.blobs) > 1 else np.zeros(shift.shape, np.float32)
    blobs = [layer.blobs[0] + np.float32(error), bias - np.float32(shift)]
    return graph.with_layers(
        one.with_(blobs=blobs, bias_term=True) if one.name == name else one for one in graph.layers
    )


def second_moments(graph, name, inputs):
    """Return H and the mean of the inputs of a layer, float64."""
    layer = graph.by_name[name]
    bottom = values(graph, inputs, layer.bottoms[0]) if layer.bottoms[0] not in inputs else inputs[layer.bottoms[0]]
    x = InputPatches(layer, np.float32(bottom)).of_items(slice(None)).astype(np.float64)
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    return centred.swapaxes(1, 2) @ centred / x.shape[1], mean


def predicted(side, error, moments):
    return 0.5 * float(np.sum(side @ error @ moments * error))


@pytest.mark.parametrize(
    ("text", "layer"),
    [(TEXT, "conv"), (TEXT, "grouped"), (TEXT, "fc"), (PIXELS, "conv"), (PIXELS, "up")],
    ids=["conv", "grouped", "fc", "pixels conv", "pixels deconvolution"],
)
def test_both_sides_predict_the_divergence(tmp_path, text, layer):
    """Averaged over errors, both say what comes out: by image exactly so, by position where positions are alike."""
    graph, rng = network(tmp_path, text), np.random.default_rng(5)
    inputs = feeds(graph)
    found = collect_output_sides(graph, [inputs], draws=64, seed=2)
    assert not found.unknown and found.images == IMAGES
    (head,), side = found.heads, found.layers[1.0][layer]
    original = values(graph, inputs, head.blob)
    moments, mean = second_moments(graph, layer, inputs)
    came, said = [], []
    for _ in range(200):
        error = rng.standard_normal(graph.by_name[layer].blobs[0].shape) * 0.003
        changed = values(compensated(graph, layer, error, mean), inputs, head.blob)
        came.append(head.divergence(original, changed))
        rows = rows_of(graph.by_name[layer], error)
        said.append([predicted(side.by_image, rows, moments), predicted(side.by_position, rows, moments)])
    by_image, by_position = np.mean(said, axis=0) / np.mean(came)
    assert by_image == pytest.approx(1, rel=0.12)
    assert by_position == pytest.approx(1, rel=0.6)


def test_factors_of_a_softmax_have_its_covariance():
    """E[v v'] = (diag(p) - p p') / T^2, and v adds up to 0, so that a shift of all logits costs nothing."""
    rng = np.random.default_rng(0)
    logits = np.array([2.0, 0.0, -1.0, 1.0])
    v = softmax_factor(np.tile(logits, (200_000, 1)), rng.standard_normal((200_000, 4)), 1, 2.0)
    p = np.exp(logits / 2) / np.exp(logits / 2).sum()
    np.testing.assert_allclose(v.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(v.T @ v / len(v), (np.diag(p) - np.outer(p, p)) / 4, atol=1e-3)


def test_divergence_of_a_softmax_is_the_mean_over_positions():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    p, q = (np.exp(values / 2) / np.exp(values / 2).sum(1, keepdims=True) for values in (one, other))
    wanted = (p * np.log(p / q)).sum(1).mean()
    assert SoftmaxMetric("z", 1).divergence(one, other, 2.0) == pytest.approx(wanted)
    assert SoftmaxMetric("z", 1).divergence(one, one + 3) == pytest.approx(0, abs=1e-12)
    assert np.isnan(SoftmaxMetric("z", 1).divergence(one, one * np.nan))


def test_values_without_softmax_are_measured_by_their_variance():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((50, 3, 4)) * np.array([1.0, 10.0, 0.0])[:, None] + 5
    spread = Spread()
    for some in np.split(values, 5):
        spread.add(some)
    metric = SquaresMetric("y", spread.scale(3))
    np.testing.assert_allclose(metric.scale[0, :2, 0], 1 / values.std(axis=(0, 2))[:2])
    assert metric.scale[0, 2, 0] == 0
    error = 0.1 * np.array([1.0, 10.0, 7.0])[:, None]
    assert metric.divergence(values, values + error) == pytest.approx(0.5 * 0.01 * 2 / 3, rel=0.2)


def test_few_values_a_channel_have_one_spread():
    values = np.random.default_rng(0).standard_normal((3, 100))
    spread = Spread()
    spread.add(values)
    np.testing.assert_allclose(spread.scale(2), [[1 / values.std()]])


@pytest.mark.parametrize("layer", ["fc", "out"])
def test_squares_are_predicted(tmp_path, layer):
    graph, rng = network(tmp_path, REGRESSION), np.random.default_rng(5)
    inputs = feeds(graph)
    found = collect_output_sides(graph, [inputs], draws=64)
    (head,) = found.heads
    assert isinstance(head, SquaresMetric) and not head.is_constant
    moments, mean = second_moments(graph, layer, inputs)
    original, came, said = values(graph, inputs, head.blob), [], []
    for _ in range(200):
        error = rng.standard_normal(graph.by_name[layer].blobs[0].shape) * 0.003
        came.append(head.divergence(original, values(compensated(graph, layer, error, mean), inputs, head.blob)))
        said.append(predicted(found.layers[1.0][layer].by_image, error[None], moments))
    assert np.mean(said) / np.mean(came) == pytest.approx(1, rel=0.12)


def test_temperatures_are_those_of_the_divergence(tmp_path):
    graph, rng = network(tmp_path, TEXT), np.random.default_rng(5)
    inputs = feeds(graph)
    found = collect_output_sides(graph, [inputs], temperatures=(1.0, 4.0), draws=64)
    (head,), (moments, mean) = found.heads, second_moments(graph, "fc", inputs)
    original, came, said = values(graph, inputs, head.blob), [], []
    for _ in range(200):
        error = rng.standard_normal(graph.by_name["fc"].blobs[0].shape) * 0.01
        changed = values(compensated(graph, "fc", error, mean), inputs, head.blob)
        came.append(head.divergence(original, changed, 4.0))
        said.append(predicted(found.layers[4.0]["fc"].by_image, error[None], moments))
    assert np.mean(said) / np.mean(came) == pytest.approx(1, rel=0.12)
    assert not np.allclose(found.layers[1.0]["fc"].by_image, found.layers[4.0]["fc"].by_image, rtol=0.5)


def test_shapes_seeds_and_choice_of_images(tmp_path):
    graph = network(tmp_path, TEXT)
    inputs = feeds(graph)
    halves = [{"data": inputs["data"][:7]}, {"data": inputs["data"][7:]}]

    def sides(passes, **more):
        return collect_output_sides(graph, passes, **more).layers[1.0]

    found = sides([inputs], seed=4)
    shapes = {name: side.by_image.shape for name, side in found.items()}
    assert shapes == {"conv": (1, 6, 6), "grouped": (3, 2, 2), "fc": (1, 5, 5)}
    for name, side in found.items():
        for matrix in (side.by_image, side.by_position):
            assert matrix.dtype == np.float64
            np.testing.assert_allclose(matrix, matrix.swapaxes(1, 2), rtol=1e-6)
            assert np.linalg.eigvalsh(matrix).min() > -1e-6 * np.abs(matrix).max()
        np.testing.assert_array_equal(side.by_image, sides(halves, seed=4)[name].by_image)
    assert not np.array_equal(sides([inputs], seed=5)["fc"].by_image, found["fc"].by_image)
    some = sides([inputs], images=[3, 9, 20], seed=4)["conv"].by_image
    np.testing.assert_array_equal(some, sides([{"data": inputs["data"][[3, 9, 20]]}], seed=4)["conv"].by_image)


DEAD = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 4 } }
layer { name: "ra" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "b" top: "prob" }
layer { name: "u" type: "InnerProduct" bottom: "data" top: "u" inner_product_param { num_output: 3 } }
layer { name: "s" type: "Silence" bottom: "u" }
"""


def test_layers_of_which_nothing_can_be_told_are_named_with_the_reason(tmp_path):
    graph = network(tmp_path, DEAD)
    graph = with_error(graph, "a", -1e3 * np.ones((4, 4)))
    inputs = {"data": np.abs(feeds(graph)["data"]) + 1}
    found = collect_output_sides(graph, [inputs])
    assert found.layers == {1.0: {}}
    assert found.unknown == {
        "a": "its gradient is zero: the outputs do not depend on it, or are constant or saturated",
        "b": "its inputs are constant",
        "u": "no output of the network has a gradient there",
    }


def test_what_is_not_finite_is_named(tmp_path):
    graph = network(tmp_path, DEAD)
    inputs = feeds(graph)
    inputs["data"][5:7, 2] = np.inf, -np.inf
    found = collect_output_sides(graph, [inputs])
    assert found.unknown["a"] == found.unknown["b"] == "its inputs or gradients are not finite"


def test_constant_results_are_named(tmp_path):
    graph = network(tmp_path, REGRESSION)
    found = collect_output_sides(with_error(graph, "out", -graph.by_name["out"].blobs[0]), [feeds(graph)])
    assert [head.is_constant for head in found.heads] == [True]
    assert set(found.unknown) == {"fc", "out"}


MIXING = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 4 } }
layer { name: "one" type: "Reshape" bottom: "a" top: "one" reshape_param { shape { dim: 1 dim: -1 } } }
layer { name: "b" type: "InnerProduct" bottom: "one" top: "b" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "b" top: "prob" }
"""


def test_of_a_network_that_mixes_its_batch_a_pass_is_an_image(tmp_path):
    graph = network(tmp_path, MIXING)
    found = collect_output_sides(graph, [feeds(graph, 2, seed) for seed in range(5)])
    assert found.images == 5 and set(found.layers[1.0]) == {"a", "b"} and not found.unknown


def test_images_are_chosen_evenly_within_the_budget(tmp_path, monkeypatch):
    graph = network(tmp_path, TEXT)
    assert affordable_images(graph, [feeds(graph, 10)]) == list(range(10))
    many = affordable_images(graph, [feeds(graph, 400), feeds(graph, 200)])
    assert many == list(range(0, 600, 600 // MOST_IMAGES))
    monkeypatch.setattr("autonuq.compress.output_side.BUDGET", 2_000_000)
    few = affordable_images(graph, [feeds(graph, 400)])
    assert 1 < len(few) < 100 and max(few) > 300
    assert len(affordable_images(graph, [feeds(graph, 400)], temperatures=2)) < len(few)
    monkeypatch.setattr("autonuq.compress.output_side.BUDGET", 1)
    assert affordable_images(graph, [feeds(graph, 400)]) == [0]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"images": []}, "at least one"), ({"temperatures": (0.0,)}, "positive"), ({"draws": 0}, "at least 1")],
    ids=["images", "temperatures", "draws"],
)
def test_misuse_is_refused(tmp_path, wrong, text):
    graph = network(tmp_path, TEXT)
    with pytest.raises(ValueError, match=text):
        collect_output_sides(graph, [feeds(graph)], **wrong)


REAL = ["cifar10-quick", "efficientnet-lite0", "hyperlpr-segfree-inception", "lenet-fashion", "mtcnn-det3",
        "resnet20-fashion", "squeezenet-v1.0", "ultraface-rfb-320", "wechat-detect"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_networks(shared, name):
    """Every layer has an output side; what a small error of one layer does is predicted up to a factor of 3."""
    folder = shared / "models" / name
    graph = fold_batch_norm(load_graph(folder / "deploy.prototxt", folder / "weights.caffemodel"))
    rng = np.random.default_rng(0)
    inputs = {blob: rng.uniform(-1, 1, (2, *shape[1:])).astype(np.float32) for blob, shape in graph.inputs.items()}
    found = collect_output_sides(graph, [inputs], draws=8)
    layers = [layer.name for layer in graph.layers if layer.type in WEIGHT_TYPES]
    assert list(found.layers[1.0]) == [layer for layer in layers if layer not in found.unknown]
    assert not found.unknown
    layer = layers[len(layers) // 2]
    moments, mean = second_moments(graph, layer, inputs)
    weights, came, said = graph.by_name[layer].blobs[0], [], []
    originals = [values(graph, inputs, head.blob) for head in found.heads]
    for _ in range(6):
        error = rng.standard_normal(weights.shape) * 0.003 * weights.std()
        changed = compensated(graph, layer, error, mean)
        ends = zip(found.heads, originals, strict=True)
        came.append(sum(head.divergence(one, values(changed, inputs, head.blob)) for head, one in ends))
        said.append(predicted(found.layers[1.0][layer].by_image, rows_of(graph.by_name[layer], error), moments))
    assert 1 / 3 < np.mean(said) / np.mean(came) < 3
