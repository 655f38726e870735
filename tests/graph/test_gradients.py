"""Gradients of lowered layers and networks, against finite differences of the forward pass."""

import re
from pathlib import Path

import numpy as np
import pytest

from autonuq.graph import caffe_pb2, operators
from autonuq.graph.backward import RULES
from autonuq.graph.files import load_graph
from autonuq.graph.gradients import lower_gradients
from autonuq.graph.heads import find_heads
from autonuq.graph.hosted import register_layer
from autonuq.graph.hosted.registry import HOST_LAYERS
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.model import Graph, Layer
from autonuq.graph.shapes.registry import LAYER_TYPES
from autonuq.runtime.session import Session

STEP = 4e-3


def input_text(feeds):
    return "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ '
        + " ".join(f"dim: {dim}" for dim in values.shape)
        + " } } }\n"
        for name, values in feeds.items()
    )


def graph_of(folder, text, weights=None, seed=3):
    """Load a network; layers get random weights unless they are given."""
    path = folder / "net.prototxt"
    path.write_text(text)
    graph, rng = load_graph(path), np.random.default_rng(seed)
    shapes = infer_shapes(graph)

    def filled(layer):
        if weights and layer.name in weights:
            return layer.with_(blobs=[np.float32(blob) for blob in weights[layer.name]])
        wanted = LAYER_TYPES[layer.type].blobs(layer, [shapes[bottom] for bottom in layer.bottoms])
        size = 1 / np.sqrt(np.prod(wanted[0][1:])) if wanted else 1
        return layer.with_(blobs=[np.float32(rng.uniform(0.5, 1.5, s) * rng.choice([-1, 1], s) * size) for s in wanted])

    return graph.with_layers(filled(layer) for layer in graph.layers)


def distinct(shape, rng, low=-2.0, high=2.0):
    """Return values in random order that are further from each other, and from 0, than a step goes."""
    count = int(np.prod(shape))
    return np.float32(rng.permutation(np.linspace(low, high, 2 * (count // 2 + 1))[:count]).reshape(shape))


def gradients(graph, feeds, layers, rng, shapes=None):
    """Return the lowered gradients, the seeds by head, and the gradient at each layer's output."""
    lowered = lower_gradients(graph, shapes, layers)
    values = {**feeds}
    values.update(Session(lowered.forward, threads=1).run({name: feeds[name] for name in lowered.forward.inputs}))
    seeds = {head.seed: rng.standard_normal(head.shape, np.float32) for head in lowered.heads}
    values.update(seeds)
    backward = Session(lowered.backward, threads=1)
    found = backward.run({name: values[name] for name in backward.inputs})
    return lowered, seeds, {name: [found[one.gradient] for one in passes] for name, passes in lowered.layers.items()}


def objective(session, feeds, lowered, seeds):
    values = session.run({name: feeds[name] for name in session.inputs})
    with np.errstate(invalid="ignore", over="ignore"):  # windows outside an image give no numbers
        terms = [np.float64(values[head.blob]) * seeds[head.seed] for head in lowered.heads]
    return sum(float(np.sum(term[np.isfinite(term)])) for term in terms)


def check_inputs(graph, feeds, probes, rng):
    """Compare the gradients at some inputs, each of which a layer named like it passes on, with differences."""
    lowered, seeds, found = gradients(graph, feeds, probes, rng)
    assert lowered.heads and not lowered.unreached
    session = Session(lower(graph, outputs=[head.blob for head in lowered.heads]), threads=1)
    for probe in probes:
        blob = graph.by_name[probe].bottoms[0]
        (gradient,) = found[probe]
        assert gradient.shape == feeds[blob].shape
        size = float(np.linalg.norm(gradient))
        for _ in range(4):
            way = rng.choice(np.array([-1, 1], np.float32), feeds[blob].shape)
            there = [objective(session, {**feeds, blob: feeds[blob] + sign * np.float32(STEP) * way}, lowered, seeds)
                     for sign in (1, -1)]  # fmt: skip
            slope = (there[0] - there[1]) / (2 * STEP)
            assert slope == pytest.approx(float(np.sum(np.float64(gradient) * way)), abs=0.01 * size + 1e-4), probe


def conv(more):
    return (
        f'layer {{ name: "c" type: "Convolution" bottom: "p" top: "y" convolution_param {{ num_output: 4 {more} }} }}'
    )


def deconv(more):
    return conv(more).replace("Convolution", "Deconvolution")


def pool(more):
    return f'layer {{ name: "c" type: "Pooling" bottom: "p" top: "y" pooling_param {{ {more} }} }}'


def one(kind, more="", bottoms='bottom: "p"'):
    return f'layer {{ name: "c" type: "{kind}" {bottoms} top: "y" {more} }}'


def two(kind, more=""):
    return one(kind, more, 'bottom: "p" bottom: "q"')


IMAGE = (2, 4, 9, 8)
CASES = {
    "convolution": (conv("kernel_size: 3 bias_term: false"), IMAGE),
    "convolution, stride that leaves a rest": (conv("kernel_size: 3 stride: 2"), IMAGE),
    "convolution, stride over kernel": (conv("kernel_size: 2 stride: 3"), (2, 4, 10, 9)),
    "convolution, padded": (conv("kernel_h: 3 kernel_w: 5 pad_h: 1 pad_w: 2 stride_h: 2 stride_w: 1"), IMAGE),
    "convolution, pad over kernel": (conv("kernel_size: 1 pad: 2 stride: 2"), IMAGE),
    "convolution, dilated": (conv("kernel_size: 3 dilation: 2 pad: 1"), IMAGE),
    "convolution, groups": (conv("kernel_size: 3 group: 2 stride: 2 pad: 1"), IMAGE),
    "depthwise": (conv("kernel_size: 3 group: 4 pad: 1"), IMAGE),
    "depthwise, stride": (conv("kernel_size: 3 group: 4 pad: 1 stride: 2"), IMAGE),
    "ConvolutionDepthwise": (
        one("ConvolutionDepthwise", "convolution_param { num_output: 4 kernel_size: 3 pad: 1 }"), IMAGE),
    "convolution, one axis": (conv("kernel_size: 3 stride: 2"), (2, 4, 9)),
    "convolution, three axes": (conv("kernel_size: 3 stride: 2 pad: 1"), (2, 4, 5, 6, 5)),
    "convolution, no axis": (conv(""), (3, 4)),
    "convolution, axis 2": (conv("kernel_size: 3 axis: 2"), (2, 2, 4, 5, 5)),
    "deconvolution": (deconv("kernel_size: 4 stride: 2 pad: 1"), (2, 4, 5, 4)),
    "deconvolution, groups": (deconv("kernel_size: 3 stride: 2 group: 2"), (2, 4, 5, 4)),
    "deconvolution, dilated": (deconv("kernel_size: 3 stride: 2 dilation: 2"), (2, 4, 5, 4)),
    "inner product": (one("InnerProduct", "inner_product_param { num_output: 3 }"), (2, 3, 4)),
    "inner product, transposed": (
        one("InnerProduct", "inner_product_param { num_output: 3 transpose: true bias_term: false }"), (2, 6)),
    "inner product, axis 2": (one("InnerProduct", "inner_product_param { num_output: 3 axis: 2 }"), (2, 3, 4)),
    "max pooling": (pool("kernel_size: 2 stride: 2"), (2, 3, 6, 8)),
    "max pooling, overlapping, clipped": (pool("kernel_size: 3 stride: 2"), (2, 3, 8, 9)),
    "max pooling, padded": (pool("kernel_size: 3 stride: 2 pad: 1"), (2, 3, 8, 7)),
    "max pooling, windows outside": (pool("kernel_size: 1 stride: 3"), (2, 3, 9, 8)),
    "max pooling, global": (pool("global_pooling: true"), (2, 3, 5, 4)),
    "average pooling": (pool("pool: AVE kernel_size: 2 stride: 2"), (2, 3, 6, 8)),
    "average pooling, clipped": (pool("pool: AVE kernel_size: 3 stride: 2"), (2, 3, 8, 9)),
    "average pooling, padded": (pool("pool: AVE kernel_size: 3 stride: 2 pad: 1"), (2, 3, 8, 7)),
    "average pooling, stride over kernel": (pool("pool: AVE kernel_size: 2 stride: 3"), (2, 3, 8, 9)),
    "average pooling, global": (pool("pool: AVE global_pooling: true"), (2, 3, 5, 4)),
    "SPP": (one("SPP", "spp_param { pyramid_height: 3 pool: MAX }"), (2, 3, 9, 8)),
    "Im2col": (one("Im2col", "convolution_param { kernel_size: 3 stride: 2 pad: 1 }"), (2, 3, 6, 5)),
    "LRN": (one("LRN", "lrn_param { local_size: 3 alpha: 0.5 }"), (2, 5, 3, 4)),
    "LRN, other power": (one("LRN", "lrn_param { local_size: 5 alpha: 0.5 beta: 0.5 k: 2 }"), (2, 6, 3, 4)),
    "LRN, within": (one("LRN", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }"), (2, 3, 6, 5)),
    "ReLU": (one("ReLU"), (2, 3, 4)),
    "ReLU, leaky": (one("ReLU", "relu_param { negative_slope: -0.3 }"), (2, 3, 4)),
    "ReLU6": (one("ReLU6", "relu_param { negative_slope: 0.2 }"), (2, 3, 4), -5, 9),
    "PReLU": (one("PReLU"), (2, 3, 4)),
    "ELU": (one("ELU", "elu_param { alpha: 0.7 }"), (2, 3, 4)),
    "Sigmoid": (one("Sigmoid"), (2, 3, 4)),
    "Sigmoid, saturated": (one("Sigmoid"), (2, 3, 4), -400, 400),
    "Swish": (one("Swish", "swish_param { beta: 1.5 }"), (2, 3, 4)),
    "Swish, saturated": (one("Swish"), (2, 3, 4), -200, 20),
    "TanH": (one("TanH"), (2, 3, 4)),
    "AbsVal": (one("AbsVal"), (2, 3, 4)),
    "BNLL": (one("BNLL"), (2, 3, 4)),
    "Clip": (one("Clip", "clip_param { min: -1 max: 0.5 }"), (2, 3, 4)),
    "Exp": (one("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }"), (2, 3, 4)),
    "Log": (one("Log", "log_param { base: 10 scale: 2 shift: 1 }"), (2, 3, 4), 0.5, 3),
    "Power": (one("Power", "power_param { power: 3 scale: 0.5 shift: 0.2 }"), (2, 3, 4)),
    "Power, root": (one("Power", "power_param { power: 0.5 scale: 2 shift: 1 }"), (2, 3, 4), 0.5, 3),
    "Power, reciprocal": (one("Power", "power_param { power: -1 }"), (2, 3, 4), 0.7, 3),
    "Dropout that scales": (one("Dropout", "dropout_param { scale_train: false }"), (2, 3, 4)),
    "Softmax": (one("Softmax"), (2, 4)),
    "Softmax of pixels": (one("Softmax"), (2, 4, 3, 2)),
    "BatchNorm": (one("BatchNorm"), (2, 3, 4, 2)),
    "BatchNorm of the batch": (one("BatchNorm", "batch_norm_param { use_global_stats: false }"), (3, 2, 4)),
    "MVN": (one("MVN"), (2, 3, 4, 2)),
    "MVN, across": (one("MVN", "mvn_param { across_channels: true }"), (2, 3, 4, 2)),
    "MVN, mean only": (one("MVN", "mvn_param { normalize_variance: false }"), (2, 3, 4, 2)),
    "Normalize": (one("Normalize", "norm_param { across_spatial: false }"), (2, 3, 4, 2)),
    "Scale": (one("Scale", "scale_param { bias_term: true }"), (2, 3, 4)),
    "Bias": (one("Bias"), (2, 3, 4)),
    "Reshape": (one("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }"), (2, 3, 4)),
    "Flatten": (one("Flatten"), (2, 3, 4)),
    "Tile": (one("Tile", "tile_param { axis: 1 tiles: 3 }"), (2, 3, 4)),
    "Permute": (one("Permute", "permute_param { order: 0 order: 2 order: 3 order: 1 }"), (2, 3, 4, 2)),
    "Reorg": (one("Reorg", "reorg_param { stride: 2 }"), (2, 4, 4, 6)),
    "Reorg, reverse": (one("Reorg", "reorg_param { stride: 2 reverse: true }"), (2, 8, 2, 3)),
    "ShuffleChannel": (one("ShuffleChannel", "shuffle_channel_param { group: 2 }"), (2, 4, 2, 3)),
    "Interp": (one("Interp", "interp_param { height: 7 width: 9 }"), (2, 3, 4, 5)),
    "Interp, cropped": (one("Interp", "interp_param { height: 3 width: 2 pad_beg: -1 pad_end: -1 }"), (2, 3, 6, 7)),
    "Upsample": (one("Upsample", "upsample_param { scale: 2 }"), (2, 3, 4, 5)),
    "Reduction": (one("Reduction", "reduction_param { axis: 1 coeff: 2 }"), (2, 3, 4)),
    "Reduction, mean": (one("Reduction", "reduction_param { axis: 1 operation: MEAN }"), (2, 3, 4)),
    "Reduction, magnitudes": (one("Reduction", "reduction_param { axis: 1 operation: ASUM }"), (2, 3, 4)),
    "Reduction, squares": (one("Reduction", "reduction_param { axis: 1 operation: SUMSQ }"), (2, 3, 4)),
    "Slice": (
        'layer { name: "c" type: "Slice" bottom: "p" top: "a" top: "y" slice_param { slice_point: 1 } } '
        'layer { name: "s" type: "Silence" bottom: "a" }', (2, 3, 4)),
    "Split": (
        'layer { name: "c" type: "Split" bottom: "p" top: "a" top: "b" } '
        'layer { name: "e" type: "Eltwise" bottom: "a" bottom: "b" top: "y" eltwise_param { operation: PROD } }',
        (2, 3, 4)),
    "pooling and its inverse": (
        'layer { name: "c" type: "Pooling" bottom: "p" top: "a" top: "mask" '
        "pooling_param { kernel_size: 2 stride: 2 } } "
        'layer { name: "u" type: "Upsample" bottom: "a" bottom: "mask" top: "y" upsample_param { scale: 2 } }',
        (2, 3, 4, 6)),
    "sum": (two("Eltwise", "eltwise_param { coeff: 2 coeff: -1 }"), (2, 3, 4)),
    "product": (two("Eltwise", "eltwise_param { operation: PROD }"), (2, 3, 4)),
    "maximum": (two("Eltwise", "eltwise_param { operation: MAX }"), (2, 3, 4)),
    "Concat": (two("Concat", "concat_param { axis: 2 }"), (2, 3, 4)),
    "Crop": (
        one("Crop", "crop_param { axis: 2 offset: 1 }", 'bottom: "p" bottom: "in_q"'), (2, 3, 5, 6), (2, 3, 3, 4)),
    "Scale by an input": (two("Scale", "scale_param { axis: 0 }"), (2, 3, 4), (2, 3)),
    "Bias by an input": (two("Bias", "bias_param { axis: 1 }"), (2, 3, 4), (3, 4)),
    "Axpy": (one("Axpy", "", 'bottom: "q" bottom: "p" bottom: "p"'), (2, 3, 4, 2), (2, 3, 1, 1)),
    "EuclideanLoss": (two("EuclideanLoss"), (2, 3, 4)),
    "LSTMUnit": (
        'layer { name: "m" type: "DummyData" top: "m" dummy_data_param { shape { dim: 1 dim: 3 } data_filler '
        '{ type: "constant" value: 1 } } } layer { name: "c" type: "LSTMUnit" bottom: "q" bottom: "p" bottom: "m" '
        'top: "cell" top: "y" } layer { name: "s" type: "Silence" bottom: "cell" }', (1, 3, 8), (1, 3, 2)),
}  # fmt: skip
END = 'layer { name: "end" type: "Power" bottom: "y" top: "end" power_param { scale: 1.5 } }'


@pytest.mark.parametrize("name", CASES)
def test_every_layer_type(tmp_path, rng, name):
    """The layer is followed by a factor, because what some types hide is looked for in front of them."""
    text, shape, *more = CASES[name]
    limits = more if more and not isinstance(more[0], tuple) else (-2.0, 2.0)
    other = more[0] if more and isinstance(more[0], tuple) else shape
    probes = ["p", "q"] if '"q"' in text else ["p"]
    feeds = {"in_p": distinct(shape, rng, *limits)}
    if 'q"' in text:
        feeds["in_q"] = distinct(other, rng) + np.float32(0.03)  # no value is one of the other's
    passing = "".join(f'layer {{ name: "{p}" type: "Dropout" bottom: "in_{p}" top: "{p}" }}' for p in probes)
    weights = {"c": [[0.3] * 3, [1.5] * 3, [1]]} if name == "BatchNorm" else None
    graph = graph_of(tmp_path, input_text(feeds) + passing + text + END, weights)
    check_inputs(graph, feeds, probes, rng)


def test_every_operator_of_a_lowering_has_a_rule_or_is_known_to_have_none():
    folder = Path(operators.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    used = set(re.findall(r'builder\.(?:add|add_many|scalar)\(\s*"(\w+)"', text))
    without = {
        "ArgMax", "Compress", "ConstantOfShape", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "MaxRoiPool",
        "Mod", "Not", "Scan", "TopK",
    }  # fmt: skip
    assert used - RULES.keys() == without


RESIDUAL = """
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "ra" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 stride: 2 } }
layer { name: "rb" type: "ReLU" bottom: "b" top: "b" relu_param { negative_slope: 0.1 } }
layer { name: "c" type: "Convolution" bottom: "a" top: "c"
        convolution_param { num_output: 6 kernel_size: 1 stride: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "sc" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "s" type: "Eltwise" bottom: "b" bottom: "c" top: "s" }
layer { name: "rs" type: "ReLU" bottom: "s" top: "s" }
layer { name: "g" type: "Pooling" bottom: "s" top: "g" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "g" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
INCEPTION = """
layer { name: "a" type: "Convolution" bottom: "data" top: "a" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "n" type: "LRN" bottom: "a" top: "n" lrn_param { local_size: 3 alpha: 0.1 } }
layer { name: "p" type: "Pooling" bottom: "n" top: "p" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "one" type: "Convolution" bottom: "p" top: "one" convolution_param { num_output: 3 kernel_size: 1 } }
layer { name: "three" type: "Convolution" bottom: "p" top: "three"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "q" type: "Pooling" bottom: "p" top: "q" pooling_param { kernel_size: 3 stride: 1 pad: 1 } }
layer { name: "cat" type: "Concat" bottom: "one" bottom: "three" bottom: "q" top: "cat" }
layer { name: "rc" type: "ReLU" bottom: "cat" top: "cat" }
layer { name: "e" type: "Pooling" bottom: "cat" top: "e" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "e" top: "fc" inner_product_param { num_output: 4 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "fc" }
"""
PIXELS = """
layer { name: "a" type: "Convolution" bottom: "data" top: "a"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 3 } }
layer { name: "r6" type: "ReLU6" bottom: "a" top: "a" }
layer { name: "p" type: "Pooling" bottom: "a" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "b" type: "DepthwiseConvolution" bottom: "p" top: "b"
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 } }
layer { name: "sw" type: "Swish" bottom: "b" top: "b" }
layer { name: "up" type: "Deconvolution" bottom: "b" top: "up"
        convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "crop" type: "Crop" bottom: "up" bottom: "data" top: "crop" crop_param { axis: 2 } }
layer { name: "prob" type: "Softmax" bottom: "crop" top: "prob" }
layer { name: "best" type: "ArgMax" bottom: "prob" top: "best" argmax_param { axis: 1 } }
"""
TWINS = """
layer { name: "one" type: "Power" bottom: "data" top: "one" power_param { scale: 0.5 } }
layer { name: "a" type: "Convolution" bottom: "data" bottom: "one" top: "x" top: "y"
        convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "rx" type: "ReLU" bottom: "x" top: "x" }
layer { name: "ty" type: "TanH" bottom: "y" top: "ty" }
layer { name: "m" type: "Eltwise" bottom: "x" bottom: "ty" top: "m" eltwise_param { operation: PROD } }
layer { name: "fc" type: "InnerProduct" bottom: "m" top: "fc" inner_product_param { num_output: 3 } }
layer { name: "box" type: "InnerProduct" bottom: "x" top: "box" inner_product_param { num_output: 2 } }
layer { name: "prob" type: "Sigmoid" bottom: "fc" top: "prob" }
"""
NETWORKS = {"residual": RESIDUAL, "inception": INCEPTION, "pixels": PIXELS, "twins": TWINS}
STATISTICS = {"bn": [[0.2] * 6, [0.8] * 6, [1]]}


def weighted(graph):
    kinds = ("Convolution", "Deconvolution", "DepthwiseConvolution", "InnerProduct")
    return [layer.name for layer in graph.layers if layer.type in kinds]


def moved(graph, name, way):
    """Change a layer's weights and bias."""
    return graph.with_layers(
        layer.with_(blobs=[blob + np.float32(part) for blob, part in zip(layer.blobs, way, strict=True)])
        if layer.name == name
        else layer
        for layer in graph.layers
    )


def slope_of(graph, feeds, lowered, seeds, name, way, step):
    sides = []
    for sign in (1, -1):
        changed = moved(graph, name, [sign * step * part for part in way])
        session = Session(lower(changed, outputs=[head.blob for head in lowered.heads], last=last_of(graph)), threads=1)
        sides.append(objective(session, feeds, lowered, seeds))
    return (sides[0] - sides[1]) / (2 * step)


def last_of(graph):
    """Stop in front of a Softmax that works in place: it would hide the head."""
    layer = graph.layers[-1]
    return len(graph.layers) - (2 if layer.type == "Softmax" and layer.bottoms == layer.tops else 1)


def told_slope(graph, lowered, deltas, values, name, way):
    """Multiply the gradients at a layer's output with what the change of its weights makes of its input."""
    layer = graph.by_name[name].with_(bottoms=["in"], tops=["out"], blobs=[np.float32(part) for part in way])
    total = 0.0
    for one, delta in zip(lowered.layers[name], deltas[name], strict=True):
        source = caffe_pb2.LayerParameter(name="in", type="Input", top=["in"])
        source.input_param.shape.add(dim=values[one.bottom].shape)
        session = Session(lower(Graph("alone", (Layer(source), layer))), threads=1)
        total += float(np.sum(np.float64(session.run({"in": values[one.bottom]})["out"]) * delta))
    return total


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(tmp_path, rng, name):
    """What the gradients say of a change of each layer's weights and bias is what differences of the network say."""
    feeds = {"data": np.float32(rng.standard_normal((2, 3, 12, 12)))}
    graph = graph_of(tmp_path, input_text(feeds) + NETWORKS[name], STATISTICS)
    layers = weighted(graph)
    lowered, seeds, deltas = gradients(graph, feeds, layers, rng)
    values = feeds | Session(lowered.forward, threads=1).run(feeds)
    assert not lowered.unreached and list(lowered.layers) == layers
    for layer in layers:
        for _ in range(2):
            way = [np.float64(rng.standard_normal(blob.shape)) for blob in graph.by_name[layer].blobs]
            told = told_slope(graph, lowered, deltas, values, layer, way)
            found = slope_of(graph, feeds, lowered, seeds, layer, way, 2e-4)
            size = float(np.sqrt(sum(np.sum(np.square(delta, dtype=np.float64)) for delta in deltas[layer])))
            assert found == pytest.approx(told, rel=0.03, abs=0.1 * size), layer


HOSTED = """
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" inner_product_param { num_output: 4 } }
layer { name: "ra" type: "TanH" bottom: "a" top: "a" }
layer { name: "t" type: "%s" bottom: "a" top: "t" }
layer { name: "b" type: "InnerProduct" bottom: "t" top: "b" inner_product_param { num_output: 3 } }
layer { name: "prob" type: "Softmax" bottom: "b" top: "prob" }
"""


@pytest.fixture
def twist():
    register_layer("Twist", lambda layer, values: values[::-1])
    yield "Twist"
    HOST_LAYERS.pop("Twist")
    LAYER_TYPES.pop("Twist")


def test_gradients_start_in_front_of_a_layer_that_runs_in_python(tmp_path, rng, twist):
    feeds = {"data": np.float32(rng.standard_normal((2, 5)))}
    graph = graph_of(tmp_path, input_text(feeds) + HOSTED % twist)
    lowered, seeds, found = gradients(graph, feeds, ["a", "b"], rng)
    assert [(head.blob, head.classes) for head in lowered.heads] == [("a", None)]
    assert lowered.unreached == {"b": "it lies behind a layer that runs in Python"}
    (seed,) = seeds.values()
    value = np.tanh(feeds["data"] @ graph.by_name["a"].blobs[0].T + graph.by_name["a"].blobs[1])
    np.testing.assert_allclose(found["a"][0], seed * (1 - value**2), rtol=1e-4, atol=1e-6)


def test_gradients_start_in_front_of_a_layer_without_derivative_and_at_the_end(tmp_path, rng):
    feeds = {"data": np.float32(rng.standard_normal((2, 5)))}
    lowered, _, _ = gradients(graph_of(tmp_path, input_text(feeds) + HOSTED % "Threshold"), feeds, ["a", "b"], rng)
    assert [(head.blob, head.classes) for head in lowered.heads] == [("b", 1), ("a", None)]
    assert not lowered.unreached


def test_a_layer_that_no_output_depends_on_is_named(tmp_path, rng):
    feeds = {"data": np.float32(rng.standard_normal((2, 5)))}
    dead = (
        'layer { name: "d" type: "InnerProduct" bottom: "data" top: "d" inner_product_param { num_output: 2 } }'
        'layer { name: "s" type: "Silence" bottom: "d" }'
    )
    graph = graph_of(tmp_path, input_text(feeds) + HOSTED % "ReLU" + dead)
    lowered, _, _ = gradients(graph, feeds, ["a", "d"], rng)
    assert lowered.unreached == {"d": "no output of the network has a gradient there"}
    assert list(lowered.layers) == ["a"]


def test_layers_that_do_not_exist_are_refused(tmp_path, rng):
    graph = graph_of(tmp_path, input_text({"data": np.zeros((2, 5))}) + HOSTED % "ReLU")
    with pytest.raises(ValueError, match=r"'layers' of lower_gradients .* Got nothing\."):
        lower_gradients(graph, None, ["a", "nothing"])


LABELS = np.zeros((2,))
TRAINED = """
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 4 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy" }
"""
DETECTOR = """
layer { name: "loc" type: "InnerProduct" bottom: "data" top: "loc" inner_product_param { num_output: 8 } }
layer { name: "conf" type: "InnerProduct" bottom: "data" top: "conf" inner_product_param { num_output: 6 } }
layer { name: "rows" type: "Reshape" bottom: "conf" top: "rows" reshape_param { shape { dim: 0 dim: -1 dim: 3 } } }
layer { name: "prob" type: "Softmax" bottom: "rows" top: "prob" softmax_param { axis: 2 } }
layer { name: "flat" type: "Flatten" bottom: "prob" top: "flat" }
layer { name: "prior" type: "Input" top: "prior" input_param { shape { dim: 1 dim: 2 dim: 8 } } }
layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "flat" bottom: "prior" top: "out"
        detection_output_param { num_classes: 3 } }
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(TRAINED, [("fc", 1)]), (DETECTOR, [("loc", None), ("rows", 2)]), (RESIDUAL, [("fc", 1)]),
     (INCEPTION, [("fc", 1)]), (PIXELS, [("crop", 1)]), (TWINS, [("box", None), ("fc", None)])],
    ids=["training", "detector", "residual", "in place", "decision", "two ends"],
)  # fmt: skip
def test_heads(tmp_path, text, wanted):
    shape = (2, 3, 12, 12) if "kernel_size" in text else (2, 5)
    feeds = {"data": np.zeros(shape)} | ({"label": LABELS} if "label" in text else {})
    (tmp_path / "net.prototxt").write_text(input_text(feeds) + text)
    assert [(head.blob, head.classes) for head in find_heads(load_graph(tmp_path / "net.prototxt"))] == wanted
