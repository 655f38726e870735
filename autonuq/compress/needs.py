"""What a study of a network takes of memory, disk and time, before any of it is spent."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from autonuq.compress.output_side import BUDGET, MOST_IMAGES, image_cost
from autonuq.compress.ways import GRADIENTS_UP_TO
from autonuq.graph.layers import blob_shapes, infer_shapes, input_window
from autonuq.graph.model import Graph, Shape
from autonuq.graph.passes import WEIGHT_TYPES
from autonuq.quant.cores import BESIDE_BYTES, available_cores
from autonuq.quant.needs import LayerNeeds, layer_needs
from autonuq.quant.paired import samples_of
from autonuq.runtime.inputs import MOST_BYTES

# Bytes of the process with its libraries, and of what a calibration layer remembers of its values; how often a
# network's weights are in memory while it runs: read, as codes and in the engine's order.
_PROCESS, _REMEMBERED, _COPIES = 0.3e9, 4e6, 5.0
_SIDES = 24.0  # bytes for each pair of outputs: two forms, and what is made of one
_COMPARED = 24.0  # bytes for each weight of a network that is compared with others: its points, and its own twice
# What comes before the trials takes so many times the curves, so many seconds a layer, and for each image of three
# parts so many seconds a multiplication: within a factor of 1.7 on six networks (studies/LOG.md).
_CURVES_IN_ALL, _LAYER_S, _MULTIPLICATION_S = 5.0, 0.6, 2.5e-11
# At the end: the winner's files over the weights', and the report.
_EXPORTED, _REPORT = 1.6, 5.5e6
_GRADIENT_SEEDS = 4  # two temperatures, two draws
_NOTABLE = 0.2  # of all: a layer that is worth a word


@dataclass(frozen=True)
class StudyNeeds:
    """What a study takes.

    Attributes
    ----------
    layers : tuple of LayerNeeds
        Of every layer with int8 weights.
    weights_bytes : float
        Of the float network.
    observed_bytes : float
        What the calibration layers see in one forward pass.
    kept_bytes : float
        The network's inputs in the calibration, as far as they are kept.
    sides_bytes : float
        What is known of the cost of the layers' output errors.
    beside_bytes : float
        Memory of what is worked on beside a layer, on the other cores that this process may use.
    samples_bytes : float
        What the original network's layers meet where networks are built in order: in a temporary file.
    image_multiplications : float
        Of the gradients of one image; 0 for a network too large for them.
    """

    layers: tuple[LayerNeeds, ...]
    weights_bytes: float
    observed_bytes: float
    kept_bytes: float
    sides_bytes: float
    beside_bytes: float
    samples_bytes: float
    image_multiplications: float

    @property
    def memory_bytes(self) -> float:
        """At most: in the calibration, or for one layer's points."""
        return _PROCESS + self.beyond_process_bytes

    @property
    def beyond_process_bytes(self) -> float:
        """Memory beyond that of the process with its libraries."""
        calibration = _COPIES * self.weights_bytes + 2 * self.observed_bytes + _REMEMBERED * len(self.layers)
        points = 2 * self.weights_bytes + max((layer.memory_bytes for layer in self.layers), default=0.0)
        return max(calibration, points + self.sides_bytes + self.beside_bytes) + self.kept_bytes

    @property
    def disk_bytes(self) -> float:
        """At most: in the calibration, among the trials, or at the end."""
        inputs = sum(layer.inputs_bytes for layer in self.layers)
        points = sum(layer.points_bytes for layer in self.layers)
        calibration = self.weights_bytes + inputs
        building = points + max(inputs, 2 * self.samples_bytes)
        published = self.weights_bytes + self.kept_bytes + points  # points are linked
        trials = published + self.weights_bytes + self.samples_bytes
        end = published + _EXPORTED * self.weights_bytes + _REPORT
        return self.kept_bytes + max(calibration, building, trials, end)

    @property
    def curves_s(self) -> float:
        """About the time that all points take, in seconds."""
        return sum(layer.seconds for layer in self.layers)

    def preparation_s(self, images: int) -> float:
        """About the seconds of all that comes before the trials, with so many images, on one core."""
        if not self.image_multiplications:
            return self.curves_s + _LAYER_S * len(self.layers)
        gradients = min(BUDGET, min(images, MOST_IMAGES) * self.image_multiplications)
        builds = 2 * min(BUDGET, images * self.image_multiplications)
        return _CURVES_IN_ALL * self.curves_s + _LAYER_S * len(self.layers) + _MULTIPLICATION_S * (gradients + builds)

    @property
    def notable(self) -> tuple[LayerNeeds, ...]:
        """The layers that take a fifth of something, the largest first."""
        found = [
            layer
            for layer in self.layers
            if layer.memory_bytes > _NOTABLE * self.memory_bytes
            or layer.points_bytes + layer.inputs_bytes > _NOTABLE * self.disk_bytes
            or layer.seconds > _NOTABLE * self.curves_s
        ]
        return tuple(sorted(found, key=lambda layer: -layer.memory_bytes))

    def say(self) -> str:
        """Say it in a line."""
        text = f"about {say_bytes(self.memory_bytes)} of memory, {say_bytes(self.disk_bytes)} of disk"
        shares = [
            f"'{layer.layer}' {say_bytes(layer.memory_bytes)} of memory, "
            f"{say_bytes(layer.points_bytes + layer.inputs_bytes)} of disk, {layer.seconds:.0f} s"
            for layer in self.notable[:3]
        ]
        return f"{text}; of it {'; '.join(shares)}" if shares and self.memory_bytes > 1e9 else text


def say_bytes(size: float) -> str:
    """Write a size so that a person can read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def study_needs(
    graph: Graph,
    quantized: Collection[str],
    searched: Collection[str],
    passes: int,
    inputs: Mapping[str, Shape] | None = None,
) -> StudyNeeds:
    """Say what a study of a network takes.

    Parameters
    ----------
    graph : Graph
        With blobs or without.
    quantized, searched : collection of str
        Names of the layers with int8 inputs, and of those with a codebook.
    passes : int
        Forward passes of the calibration.
    inputs : mapping of str to tuple of int, optional
        Shapes of the inputs of a forward pass; as the graph has them by default.
    """
    shapes = infer_shapes(graph, dict(inputs) if inputs else None)
    layers, weights, observed, pairs, met = [], 0, 0, 0, 0
    for layer in graph.layers:
        blobs = blob_shapes(graph, layer, shapes)
        weights += sum(map(math.prod, blobs))
        if layer.name not in quantized:
            continue
        observed += math.prod(shapes[layer.bottoms[0]])
        if layer.type not in WEIGHT_TYPES or len(blobs[0]) not in (2, 4):
            continue
        turned = layer.type == "Deconvolution"
        outputs, columns = blobs[0][turned], math.prod(blobs[0]) // blobs[0][turned]
        groups = 1 if layer.type == "InnerProduct" else input_window(layer).groups
        samples = passes * math.prod(shapes[layer.tops[0]]) // outputs
        nuq = layer.name in searched
        pairs += outputs**2 if nuq else 0
        met += columns * samples_of(columns, samples) if nuq else 0
        layers.append(layer_needs(layer.name, outputs, columns, groups=groups, samples=samples, nuq=nuq))
    sides = _SIDES * pairs if weights <= GRADIENTS_UP_TO else 0.0
    reads = [sum(math.prod(shapes[blob]) for blob in {*layer.bottoms, *layer.tops}) for layer in graph.layers]
    beside = _beside_bytes(layers, weights, 4.0 * passes * max(reads, default=0))
    kept = min(4.0 * passes * sum(math.prod(shapes[blob]) for blob in graph.inputs), float(MOST_BYTES))
    has_gradients = weights <= GRADIENTS_UP_TO and any(layer.blobs for layer in graph.layers)
    per_image = image_cost(graph, (), _GRADIENT_SEEDS) / _batch(graph) if has_gradients else 0.0
    return StudyNeeds(tuple(layers), 4.0 * weights, 4.0 * observed, kept, sides, beside, 4.0 * met, per_image)


def _batch(graph: Graph) -> int:
    """Return how many images a forward pass takes as the graph has it."""
    return max(1, next((shape[0] for shape in graph.inputs.values() if shape), 1))


def _beside_bytes(layers: Collection[LayerNeeds], weights: int, values_bytes: float) -> float:
    """Return what the other cores work on: more grids of a layer, or more networks where several are compared."""
    grid = max((layer.beside_bytes for layer in layers), default=0.0)
    network = values_bytes + _COMPARED * weights + max((layer.memory_bytes for layer in layers), default=0.0)
    each = max(grid, network) if weights <= GRADIENTS_UP_TO else grid
    return min((available_cores() - 1) * each, float(BESIDE_BYTES))
