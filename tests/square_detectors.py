"""Detectors that see red and green squares of 8x8 pixels, as an SSD and as a YOLO, and pictures of such squares."""

from pathlib import Path

import numpy as np
from PIL import Image

from autonuq.graph.files import load_graph, write_caffemodel

INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [%d, 3, 32, 32] } } }'
CONVOLUTION = """
layer { name: "%s" type: "Convolution" bottom: "data" top: "%s"
        convolution_param { num_output: %d kernel_size: 8 stride: 8 } }"""
SSD = """
layer { name: "loc_turned" type: "Permute" bottom: "loc" top: "loc_turned" permute_param { order: [0, 2, 3, 1] } }
layer { name: "loc_flat" type: "Flatten" bottom: "loc_turned" top: "loc_flat" }
layer { name: "conf_turned" type: "Permute" bottom: "conf" top: "conf_turned" permute_param { order: [0, 2, 3, 1] } }
layer { name: "conf_rows" type: "Reshape" bottom: "conf_turned" top: "conf_rows"
        reshape_param { shape { dim: [0, -1, 3] } } }
layer { name: "prob" type: "Softmax" bottom: "conf_rows" top: "prob" softmax_param { axis: 2 } }
layer { name: "prob_flat" type: "Flatten" bottom: "prob" top: "prob_flat" }
layer { name: "priors" type: "PriorBox" bottom: "conf" bottom: "data" top: "priors"
        prior_box_param { min_size: 8 variance: [0.1, 0.1, 0.2, 0.2] } }
layer { name: "out" type: "DetectionOutput" bottom: "loc_flat" bottom: "prob_flat" bottom: "priors" top: "out"
        detection_output_param { num_classes: 3 code_type: CENTER_SIZE keep_top_k: 50 confidence_threshold: 0.01
                                 nms_param { nms_threshold: 0.45 top_k: 100 } } }
"""


def write_ssd(folder: Path, batch: int = 1, *, output: bool = True) -> None:
    """Write net.prototxt and net.caffemodel; without `output` the network ends before its DetectionOutput."""
    text = INPUT % batch + CONVOLUTION % ("loc", "loc", 4) + CONVOLUTION % ("conf", "conf", 3) + SSD
    write(folder, text if output else text[: text.index('layer { name: "out"')], loc=[], conf=[-12, 12, 12])


def write_yolo(folder: Path, batch: int = 1) -> None:
    """Write a YOLO of two anchors of 8x8 and 16x16 pixels, of which the larger one sees nothing."""
    kernels = [0, 0, 0, 0, 12, 12, 12, 0, 0, 0, 0, 0, 0, 0]
    write(folder, INPUT % batch + CONVOLUTION % ("map", "map", 14), map=kernels)


SIDES = {8: 3, 16: 2, 32: 2, 64: 3}  # boxes of each pixel of the maps of a stride


def write_face_detector(folder: Path) -> None:
    """Write deploy.prototxt and weights.caffemodel with inputs and outputs as Ultra-Light-Fast's RFB-320.

    The smallest box of every pixel, of 8 to 64 pixels, sees what is not dark.
    """
    random = np.random.default_rng(0)
    text = [
        'layer { name: "input" type: "Input" top: "input" input_param { shape { dim: [1, 3, 240, 320] } } }',
        'layer { name: "pool" type: "Pooling" bottom: "input" top: "pool" '
        "pooling_param { pool: AVE kernel_size: 8 stride: 8 } }",
    ]
    for stride, count in SIDES.items():
        for kind, width in (("scores", 2), ("boxes", 4)):
            name, side = f"{kind}_{stride}", stride // 8
            text.append(
                f'layer {{ name: "{name}" type: "Convolution" bottom: "pool" top: "{name}" convolution_param {{ '
                f"num_output: {width * count} kernel_size: {side} stride: {side} pad: {int(side > 2)} }} }}"
                f'layer {{ name: "{name}_turned" type: "Permute" bottom: "{name}" top: "{name}_turned" '
                "permute_param { order: [0, 2, 3, 1] } }"
                f'layer {{ name: "{name}_rows" type: "Reshape" bottom: "{name}_turned" top: "{name}_rows" '
                f"reshape_param {{ shape {{ dim: [1, -1, {width}] }} }} }}"
            )
    for kind, top in (("scores", "logits"), ("boxes", "boxes")):
        bottoms = " ".join(f'bottom: "{kind}_{stride}_rows"' for stride in SIDES)
        text.append(f'layer {{ name: "{top}" type: "Concat" {bottoms} top: "{top}" concat_param {{ axis: 1 }} }}')
    text.append('layer { name: "scores" type: "Softmax" bottom: "logits" top: "scores" softmax_param { axis: 2 } }')
    (folder / "deploy.prototxt").write_text("\n".join(text))
    graph, layers = load_graph(folder / "deploy.prototxt"), []
    for layer in graph.layers:
        if layer.type == "Convolution":
            kind, side = layer.name.split("_")[0], layer.message.convolution_param.kernel_size[0]
            shape = (layer.message.convolution_param.num_output, 3, side, side)
            weights, bias = random.normal(0, 0.1 / np.prod(shape[1:]), shape), np.zeros(shape[0])
            if kind == "scores":
                weights[1] += random.uniform(0.5, 1.5, shape[1:]) * 12 / np.prod(shape[1:])
                bias[1], bias[2::2] = 8, 4  # black is -1
            layer = layer.with_(blobs=[weights.astype(np.float32), bias.astype(np.float32)])
        layers.append(layer)
    write_caffemodel(graph.with_layers(layers), folder / "weights.caffemodel")


def write(folder: Path, text: str, **strengths: list[float]) -> None:
    """Write a network whose kernels answer red and green squares; the last class of each is green."""
    random = np.random.default_rng(0)
    (folder / "net.prototxt").write_text(text)
    graph, layers = load_graph(folder / "net.prototxt"), []
    for layer in graph.layers:
        if layer.type == "Convolution":
            count = layer.message.convolution_param.num_output
            shape = random.uniform(0.5, 1.5, (3, 8, 8))
            shape /= shape.sum(axis=(1, 2), keepdims=True)
            weights, bias = random.normal(0, 1e-4, (count, 3, 8, 8)), np.zeros(count)
            for place, strength in enumerate(strengths[layer.name]):
                colours = {5: [1, 0, 0], 6: [0, 1, 0]} if layer.name == "map" else {1: [1, 0, 0], 2: [0, 1, 0]}
                weights[place] += strength * shape * np.array(colours.get(place, [1, 1, 0])).reshape(3, 1, 1)
                bias[place] = -strength / 2
            if layer.name == "map":
                bias[11] = -9
            layer = layer.with_(blobs=[weights.astype(np.float32), bias.astype(np.float32)])
        layers.append(layer)
    write_caffemodel(graph.with_layers(layers), folder / "net.caffemodel")


def draw(folder: Path, count: int, size: tuple[int, int] = (32, 32), corner: tuple[int, int] = (0, 0)):
    """Write pictures of squares, and return the squares of each: (class, x1, y1, x2, y2) in pixels.

    Parameters
    ----------
    size : tuple of int
        Height and width of a picture.
    corner : tuple of int
        Where the field of 4x4 places begins; it reaches as far on the other side.
    """
    random = np.random.default_rng(1)
    folder.mkdir()
    squares = []
    step = ((size[0] - 2 * corner[0]) // 4, (size[1] - 2 * corner[1]) // 4)
    for number in range(count):
        pixels, own = random.integers(0, 20, (*size, 3)).astype(np.uint8), []
        for place in random.permutation(16)[: number % 4].tolist():
            y, x, colour = corner[0] + place // 4 * step[0], corner[1] + place % 4 * step[1], int(random.integers(2))
            pixels[y : y + step[0], x : x + step[1], colour] = random.integers(160, 256)
            own.append((colour, x, y, x + step[1], y + step[0]))
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        squares.append(own)
    return squares
