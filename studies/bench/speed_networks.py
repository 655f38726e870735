"""The six networks whose forward passes are measured, as pairs of files with something to feed them.

Three have trained weights and real images, from the folder `shared` that the other benches use, too; the weights of
the others are random and keep their activations near 1, and their images are noise of several coarsenesses.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from networks import efficientnet, fashion, imagenet
from wide import convolution, pooling

from autonuq.graph.files import ModelPair, load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.graph.passes import WEIGHT_TYPES

RESNET = Path(__file__).parent / "data/resnet50.prototxt"
BATCHES = (1, 8, 100)
_RESIDUAL_ENDS = ("branch2c", "bn2", "conv2")  # what is added to another branch: it adds little


@dataclass(frozen=True)
class SpeedNetwork:
    """One network.

    Attributes
    ----------
    shape : tuple of int
        Of one image.
    classes : int
        The score output ends in groups of so many; the largest of a group is a decision.
    text : callable, or None
        Makes the prototxt of a network with random weights.
    images : callable, or None
        Loads real images from the data folder.
    largest_batch : int
        Where 100 images take more than 4 GB.
    """

    shape: Shape
    classes: int
    text: Callable[[], str] | None = None
    images: Callable[[Path], tuple[Array, Array, Array]] | None = None
    largest_batch: int = BATCHES[-1]

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes to measure."""
        return tuple(min(batch, self.largest_batch) for batch in BATCHES)

    def some_images(self, count: int, shared: Path, seed: int) -> Array:
        """Return images, float32, shape (count, channels, height, width)."""
        if self.images is not None:
            found = np.asarray(self.images(shared / "data")[0], np.float32)
            return np.ascontiguousarray(np.resize(found, (count, *self.shape)))
        return noise((count, *self.shape), seed)

    def write(self, name: str, shared: Path, folder: Path, seed: int) -> ModelPair:
        """Put the pair of files into a folder."""
        pair = ModelPair(folder / "net.prototxt", folder / "net.caffemodel")
        if self.text is None:
            shutil.copy(shared / "models" / name / "deploy.prototxt", pair.model)
            shutil.copy(shared / "models" / name / "weights.caffemodel", pair.weights)
        else:
            pair.model.write_text(self.text())
            write_model(random_weights(load_graph(pair.model), seed), pair.model, pair.weights)
        return pair


def decisions(scores: Array, classes: int) -> Array:
    """Return the largest of each group of so many scores."""
    return scores.reshape(-1, classes).argmax(axis=1)


def noise(shape: Shape, seed: int) -> Array:
    """Return images of sums of fine and coarse noise, so that they differ in more than single pixels."""
    rng = np.random.default_rng(seed)
    total = np.zeros(shape, np.float32)
    for cell in (1, 8, 32):
        coarse = rng.standard_normal((*shape[:2], *(-(-size // cell) for size in shape[2:])), np.float32)
        total += coarse.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, : shape[2], : shape[3]]
    return total


def random_weights(graph: Graph, seed: int) -> Graph:
    """Fill a network so that every layer keeps the size of its input; residual branches add little."""
    rng, shapes = np.random.default_rng(seed), infer_shapes(graph)
    return graph.with_layers(
        layer.with_(blobs=_blobs(layer, blob_shapes(graph, layer, shapes), rng)) for layer in graph.layers
    )


def _blobs(layer: Layer, shapes: list[Shape], rng: np.random.Generator) -> list[Array]:
    normal = [rng.standard_normal(shape, np.float32) for shape in shapes]
    small = np.float32(0.3 if any(end in layer.name for end in _RESIDUAL_ENDS) else 1)
    if layer.type in WEIGHT_TYPES:
        weights, *bias = normal
        return [small * weights * np.sqrt(2 / weights[0].size, dtype=np.float32), *(values / 10 for values in bias)]
    if layer.type == "BatchNorm":
        return [normal[0] / 10, 1 + np.abs(normal[1]) / 10, np.ones(1, np.float32)]
    if layer.type == "Scale":
        return [small * (1 + normal[0] / 10), normal[1] / 10]
    return [1 + np.abs(values) for values in normal]  # Normalize


def vgg_like() -> str:
    """Write ten convolutions 3x3 and two inner products, no sums."""
    text, bottom = _input(3, 64), "data"
    for stage, (count, outputs) in enumerate(((2, 64), (2, 128), (3, 256), (3, 256)), start=1):
        for index in range(1, count + 1):
            text += convolution(f"conv{stage}_{index}", bottom, outputs, 3, pad=1)
            bottom = f"conv{stage}_{index}"
        text += pooling(f"pool{stage}", bottom, 2)
        bottom = f"pool{stage}"
    text += _layer("fc1", "InnerProduct", [bottom], "inner_product_param { num_output: 512 }")
    text += _in_place("fc1_relu", "ReLU", "fc1")
    text += _layer("fc2", "InnerProduct", ["fc1"], "inner_product_param { num_output: 100 }")
    return text + _layer("prob", "Softmax", ["fc2"])


def res10_ssd() -> str:
    """Write a face detector: a pre-activated residual network and an SSD head that ends before DetectionOutput."""
    text = _input(3, 300) + _normed("data", "data", relu=False)
    text += _conv("conv1", "data", 32, 7, stride=2, pad=3, bias_term=True) + _normed("conv1", "conv1")
    text += _layer("pool1", "Pooling", ["conv1"], "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    text += _conv("res64_conv1", "pool1", 32, 3, pad=1) + _normed("res64_bn2", "res64_conv1")
    text += _conv("res64_conv2", "res64_conv1", 32, 3, pad=1)
    text += _layer("res64", "Eltwise", ["res64_conv2", "pool1"])
    bottom = "res64"
    for name, inner, outputs, stride, last in (
        ("res128", 128, 128, 2, {"pad": 1}),
        ("res256", 256, 256, 2, {"pad": 1}),
        ("res512", 128, 256, 1, {"pad": 2, "dilation": 2}),
    ):
        text += _normed(f"{name}_bn1", bottom, f"{name}_bn1")
        text += _conv(f"{name}_conv1", f"{name}_bn1", inner, 3, stride=stride, pad=1)
        text += _normed(f"{name}_bn2", f"{name}_conv1") + _conv(f"{name}_conv2", f"{name}_conv1", outputs, 3, **last)
        text += _conv(f"{name}_expand", f"{name}_bn1", outputs, 1, stride=stride)
        text += _layer(name, "Eltwise", [f"{name}_conv2", f"{name}_expand"])
        bottom = name
    text += _normed("last_bn", bottom, "fc7")
    return text + _ssd_head("res256_bn1", "fc7")


def _ssd_head(early: str, bottom: str) -> str:
    """Boxes and scores from six sizes of maps, the first one normalized."""
    text = _layer("norm", "Normalize", [early], "norm_param { across_spatial: false channel_shared: false }")
    sources = [("norm", 4), (bottom, 6)]
    for name, inner, outputs, stride, pad in (
        ("conv6", 128, 256, 2, 1),
        ("conv7", 64, 128, 2, 1),
        ("conv8", 64, 128, 1, 0),
        ("conv9", 64, 128, 1, 0),
    ):
        text += _conv(f"{name}_1", bottom, inner, 1, bias_term=True) + _in_place(f"{name}_1_relu", "ReLU", f"{name}_1")
        text += _conv(f"{name}_2", f"{name}_1", outputs, 3, stride=stride, pad=pad, bias_term=True)
        text += _in_place(f"{name}_2_relu", "ReLU", f"{name}_2")
        bottom = f"{name}_2"
        sources.append((bottom, 6 if name < "conv8" else 4))
    for kind, values in (("loc", 4), ("conf", 2)):
        for source, boxes in sources:
            text += _conv(f"{source}_{kind}", source, boxes * values, 3, pad=1, bias_term=True)
            order = " ".join(f"order: {axis}" for axis in (0, 2, 3, 1))
            text += _layer(f"{source}_{kind}_perm", "Permute", [f"{source}_{kind}"], f"permute_param {{ {order} }}")
            text += _layer(f"{source}_{kind}_flat", "Flatten", [f"{source}_{kind}_perm"], "flatten_param { axis: 1 }")
        flat = [f"{source}_{kind}_flat" for source, _ in sources]
        text += _layer(f"mbox_{kind}", "Concat", flat, "concat_param { axis: 1 }")
    text += _layer("pairs", "Reshape", ["mbox_conf"], "reshape_param { shape { dim: 0 dim: -1 dim: 2 } }")
    return text + _layer("scores", "Softmax", ["pairs"], "softmax_param { axis: 2 }")


def _input(channels: int, size: int) -> str:
    shape = f"shape {{ dim: 1 dim: {channels} dim: {size} dim: {size} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {shape} }} }}\n'


def _layer(name: str, kind: str, bottoms: list[str], settings: str = "", top: str | None = None) -> str:
    read = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{name}" type: "{kind}" {read} top: "{top or name}" {settings} }}\n'


def _in_place(name: str, kind: str, blob: str, settings: str = "") -> str:
    return _layer(name, kind, [blob], settings, blob)


def _conv(name: str, bottom: str, outputs: int, kernel: int, **more: int | bool) -> str:
    settings = {"num_output": outputs, "kernel_size": kernel, "bias_term": False, **more}
    written = " ".join(f"{key}: {str(value).lower()}" for key, value in settings.items())
    return _layer(name, "Convolution", [bottom], f"convolution_param {{ {written} }}")


def _normed(name: str, bottom: str, top: str | None = None, *, relu: bool = True) -> str:
    """Normalize and scale, into a blob of its own if `top` is given."""
    blob = top or bottom
    text = _layer(f"{name}_norm", "BatchNorm", [bottom], "batch_norm_param { use_global_stats: true }", blob)
    text += _in_place(f"{name}_scale", "Scale", blob, "scale_param { bias_term: true }")
    return text + _in_place(f"{name}_relu", "ReLU", blob) if relu else text


NETWORKS = {
    "resnet20-fashion": SpeedNetwork((1, 28, 28), 10, images=fashion),
    "vgg-like": SpeedNetwork((3, 64, 64), 100, vgg_like),
    "squeezenet-v1.0": SpeedNetwork((3, 227, 227), 1000, images=imagenet),
    "res10-ssd": SpeedNetwork((3, 300, 300), 2, res10_ssd),
    "efficientnet-lite0": SpeedNetwork((3, 224, 224), 1000, images=efficientnet),
    "resnet50-shape": SpeedNetwork((3, 224, 224), 1000, RESNET.read_text, largest_batch=16),
}
