"""The preparation of pictures is guessed from what a network's own layers say; made-up networks know the answer."""

from pathlib import Path

import numpy as np
import pytest

from autonuq.evaluate.builtin.guess import PREPARATIONS, doubt_preparation, guess_transform, prepared
from autonuq.evaluate.builtin.transform import TransformSettings
from autonuq.graph.files import fill_weights, parse_graph
from autonuq.graph.lowering import lower
from autonuq.runtime.session import Session

BODY = """
layer {{ name: "data" type: "Input" top: "data"
        input_param {{ shape {{ dim: {batch} dim: {channels} dim: 12 dim: 12 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param {{ num_output: 16 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
{norm}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param {{ num_output: 6 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}
"""
NORM = (
    """layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" batch_norm_param { use_global_stats: true } }"""
)


def pictures(channels, seed=0):
    """Return 40 pictures with a tint, larger than the network's input."""
    rng = np.random.default_rng(seed)
    tint = np.array([170, 110, 60])[:channels]
    return [np.clip(rng.normal(tint, 50, (16, 16, channels)), 0, 255).astype(np.uint8) for _ in range(40)]


def network(channels, norm="", batch=4):
    text = BODY.format(batch=batch, channels=channels, norm=norm)
    return fill_weights(parse_graph(text.encode(), Path("net.prototxt")), np.random.default_rng(1))


def with_blobs(graph, **blobs):
    layers = tuple(layer.with_(blobs=blobs.get(layer.name, layer.blobs)) for layer in graph.layers)
    return type(graph)(graph.name, layers, graph.path)


def plain_values(channels, seed):
    cut = np.stack([picture[2:14, 2:14] for picture in pictures(channels, seed)])
    return cut.transpose(0, 3, 1, 2).astype(np.float32)


def trained_with(channels, preparation, colours):
    """Return a network whose BatchNorm has seen other pictures under a preparation."""
    graph = network(channels, NORM)
    session = Session(lower(graph, outputs=["conv"], last=1))
    values = prepared(plain_values(channels, 7), preparation, colours)
    seen = np.concatenate([session.run({"data": values[at : at + 4]})["conv"] for at in range(0, 40, 4)])
    mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
    return with_blobs(graph, bn=(mean, variance, np.ones(1, np.float32)))


@pytest.mark.parametrize("colours", ["BGR", "RGB"])
@pytest.mark.parametrize("preparation", PREPARATIONS, ids=str)
def test_batch_norm_tells_mean_scale_and_colours(preparation, colours):
    graph = trained_with(3, preparation, colours)
    guess = guess_transform(graph, "data", pictures(3), "RGB", TransformSettings(crop=(12, 12)))
    mean = preparation.mean if colours == "RGB" else preparation.mean[::-1]
    assert guess.transform == TransformSettings(
        crop=(12, 12), channels=colours, mean=mean if len(set(mean)) > 1 else mean[:1], scale=preparation.scale
    )
    assert "BatchNorm" in guess.why


def test_pictures_that_are_bgr_already(tmp_path):
    graph = trained_with(3, PREPARATIONS[3], "BGR")
    turned = [picture[..., ::-1] for picture in pictures(3)]
    assert guess_transform(graph, "data", turned, "BGR", TransformSettings(crop=(12, 12))).transform.channels == "BGR"


def test_grey_pictures_have_one_mean_and_no_colours():
    graph = trained_with(1, PREPARATIONS[1], "RGB")
    guess = guess_transform(graph, "data", pictures(1), "RGB", TransformSettings(crop=(12, 12)))
    assert (guess.transform.mean, guess.transform.channels) == ((0.0,), None)
    assert guess.transform.scale == pytest.approx(1 / 255)


def test_doubts_about_what_batch_norm_never_saw():
    right, wrong = PREPARATIONS[0], PREPARATIONS[4]
    graph, plain = trained_with(3, right, "RGB"), plain_values(3, 0)
    assert doubt_preparation(graph, "data", prepared(plain, right, "RGB"), plain) == ""
    said = doubt_preparation(graph, "data", prepared(plain, wrong, "RGB"), plain)
    assert "BatchNorm layers see quite other values" in said
    assert 'mean = [127.5, 127.5, 127.5], scale = 0.007843, channels = "RGB"' in said


def test_without_batch_norm_values_must_not_drown_in_biases():
    graph = network(3)
    conv, fc = (graph.by_name[name].blobs for name in ("conv", "fc"))
    noise = np.random.default_rng(3).normal(0, 30, len(conv[1])).astype(np.float32)
    large = with_blobs(graph, conv=(conv[0], noise), fc=(fc[0] / 10, fc[1]))
    guess = guess_transform(large, "data", pictures(3), "RGB", TransformSettings(crop=(12, 12)))
    assert guess.transform.scale == 1
    assert "of smaller values they hardly do" in guess.why
    plain = plain_values(3, 0)
    assert "hardly depend on the picture" in doubt_preparation(large, "data", plain / 255, plain)
    assert doubt_preparation(large, "data", plain - 128, plain) == ""
    small = with_blobs(graph, conv=(conv[0], noise / 300), fc=fc)
    assert guess_transform(small, "data", pictures(3), "RGB", TransformSettings(crop=(12, 12))).transform.scale < 0.1


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_any_batch_size_and_few_pictures(batch):
    graph = network(3, batch=batch)
    assert guess_transform(graph, "data", pictures(3)[:2], "RGB", TransformSettings(crop=(12, 12))).transform.mean
