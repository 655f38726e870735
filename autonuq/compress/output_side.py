"""What a layer's weight errors do to the network's results: the output side of their second-order divergence.

Notation
--------
z          a head's values: the logits of a softmax, or other results (`graph.heads`)
D          the divergence of the changed results from the original ones, mean over images, a sum over heads
v          a random vector with E[v v'] = the metric of D at z: D = 1/2 E[(v . dz)^2] to second order
delta      gradient of v . z at the layer's output, before any activation in place; (R, P): R outputs, P positions
x          what an output's weights meet at a position, minus its mean over all positions and images; (P, K)
E          an error of the layer's weights, (R, K); H = E_positions[x x'], the mean over all positions and images
g          sum over positions of delta_p x_p', the gradient of v . z with respect to the weights; (R, K)

To second order D = 1/2 E_images E_draws[<E, g>^2]. That is a quadratic form of R K by R K numbers; two of its
factorizations into an input and an output side, D ~ 1/2 tr(G E H E'), are here:

- *by image*: G = E[g g'] / tr H. Right where E[vec(g) vec(g)'] is a product of two sides: then E[g g'] = G tr H.
- *by position*: G = E[sum over positions of delta_p delta_p']. Right where positions are independent of each other,
  and gradients of inputs: then E[(sum_p delta_p' E x_p)^2] = sum_p E[delta_p' E H E' delta_p].

A head that a softmax is taken of, p = softmax(z / T) at each of M positions of an image: D is the mean over positions
of KL(p || changed p), and v = (sqrt(p) e - p (sqrt(p) . e)) / (T sqrt(M)), e standard normal, for which E[v v'] =
(diag(p) - p p') / (T^2 M), the Gauss-Newton matrix of D. Another head: D is half the mean over its values of the
squared error in units of their variance, and v = e / (s sqrt(n)), n the number of values of an image and s the
standard deviation over images and positions.

Source: two sides of a layer's curvature after Martens & Grosse (arXiv 1503.05671), Gauss-Newton factors drawn at random
after Botev et al. (1706.03662), E[g g'] per image after YAQA (2505.22988); scales and centring are an own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.gradients import GradientHead, LayerPass, LoweredGradients, lower_gradients
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.graph.passes import WEIGHT_TYPES
from autonuq.runtime.moments import InputPatches, is_observable
from autonuq.runtime.session import Session

DRAWS = 2
"""Random vectors an image: their error averages out over images, too."""

_BATCH_VALUES = 1 << 23  # values of blobs that a batch may have; some 30 MB, and as much again for every gradient
_MOST_ITEMS = 32
_PENDING_COLUMNS = 512


@dataclass(frozen=True)
class OutputSide:
    """The output side of one layer's weight errors; see the module.

    Attributes
    ----------
    by_image, by_position : ndarray of float64, shape (groups, R / groups, R / groups)
        Symmetric, not negative definite; nats of divergence per unit of E H E' / 2. Of a depthwise convolution one
        number a channel.
    """

    by_image: NDArray[np.float64]
    by_position: NDArray[np.float64]


@dataclass(frozen=True)
class OutputSides:
    """The output sides of a network's layers.

    Attributes
    ----------
    layers : mapping of float to mapping of str to OutputSide
        By temperature and layer.
    unknown : mapping of str to str
        Layers that have none -> the reason.
    images : int
        How many were used.
    """

    layers: Mapping[float, Mapping[str, OutputSide]]
    unknown: Mapping[str, str]
    images: int


def collect_output_sides(
    graph: Graph,
    passes: Sequence[Mapping[str, Array]],
    *,
    temperatures: Sequence[float] = (1.0,),
    images: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> OutputSides:
    """Collect the output side of every layer that has weights.

    Parameters
    ----------
    graph : Graph
        Folded, float32, with blobs.
    passes : sequence of mapping of str to ndarray of float32
        The network's input blobs, by name, as `runtime.inputs.load_inputs` returns them.
    temperatures : sequence of float
        Of the softmax; a head without one does not know them.
    images : sequence of int, optional
        Which ones, counted through all passes; all by default. If the network does not treat the items of a batch
        apart, a whole pass counts as one image.
    draws : int
        Random vectors an image.
    seed : int
        Of the random vectors.

    Notes
    -----
    **Cost**: two forward passes, and for each draw and temperature a backward pass and the gradient of the weights
    (each multiplies as often as a forward pass) and min(K, P) R^2 multiplications; the blobs of a batch and R^2 numbers
    a layer in memory.
    """
    layers = [layer for layer in graph.layers if layer.type in WEIGHT_TYPES]
    left_out = {
        layer.name: "its inputs are not of a kind that is collected" for layer in layers if not is_observable(layer)
    }
    collector = _Collector(graph, [layer for layer in layers if layer.name not in left_out], tuple(temperatures), draws)
    items = _Items(graph, passes)
    chosen = range(items.count) if images is None else images
    for feeds, count in items.batches(chosen):
        collector.describe(feeds, count)
    rng = np.random.default_rng(seed)
    for feeds, count in items.batches(chosen):
        collector.differentiate(feeds, count, rng)
    found, unknown = collector.result(len(chosen))
    return OutputSides(found, left_out | unknown, len(chosen))


class _Items:
    """The images of some passes, in batches that can be run."""

    def __init__(self, graph: Graph, passes: Sequence[Mapping[str, Array]]) -> None:
        self._passes = passes
        self._apart, self._most = _items_apart(graph)
        self._places = [(index, item) for index, one in enumerate(passes) for item in range(self._length(one))]

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self._places)

    def batches(self, chosen: Iterable[int]) -> Iterator[tuple[dict[str, Array], int]]:
        """Yield input blobs of some images, and how many these are."""
        batch: list[dict[str, Array]] = []
        for image in chosen:
            item = self._item(*self._places[image])
            if batch and (len(batch) >= self._most or _shapes(batch[0]) != _shapes(item)):
                yield _stacked(batch), len(batch)
                batch = []
            batch.append(item)
        if batch:
            yield _stacked(batch), len(batch)

    def _length(self, one: Mapping[str, Array]) -> int:
        return len(next(iter(one.values()))) if self._apart else 1

    def _item(self, index: int, item: int) -> dict[str, Array]:
        if not self._apart:
            return dict(self._passes[index])
        return {blob: values[item : item + 1] for blob, values in self._passes[index].items()}


def _shapes(feeds: Mapping[str, Array]) -> dict[str, Shape]:
    return {blob: values.shape for blob, values in feeds.items()}


def _stacked(batch: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    if len(batch) == 1:
        return dict(batch[0])
    return {blob: np.concatenate([item[blob] for item in batch]) for blob in batch[0]}


def _items_apart(graph: Graph) -> tuple[bool, int]:
    """Say whether the network treats images one by one, and how many are run at a time."""
    try:
        batch = find_batch(graph)
    except MixesItems:
        return False, 1
    if any(batch.axes.values()):  # they do not lie in front of every blob
        return True, 1
    values = sum(math.prod(shape) for shape in infer_shapes(graph).values()) // batch.size
    return True, max(1, min(_MOST_ITEMS, _BATCH_VALUES // max(1, values)))


@dataclass
class _Use:
    """What the first pass says of a layer's inputs: sums over samples, shape (groups, K)."""

    samples: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, layer: Layer, bottom: Array) -> None:
        self.samples += InputPatches(layer, bottom).samples
        self.total = self.total + _total(layer, bottom)
        self.squares = self.squares + _total(layer, np.square(bottom))

    @property
    def mean(self) -> Array:
        return np.asarray(self.total / self.samples)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Tr H of each group."""
        variances = self.squares / self.samples - self.mean**2
        return np.asarray(np.maximum(variances, 0).sum(axis=1))


def _total(layer: Layer, bottom: Array) -> Array:
    """Return the sum of all that a layer's weights meet, shape (groups, K): summed over the batch before it is cut."""
    summed = bottom.sum(axis=0, keepdims=True, dtype=np.float64)
    return np.asarray(InputPatches(layer, summed).of_items(slice(None)).sum(axis=1))


@dataclass
class _Spread:
    """The spread of a head's values over images and positions, channel by channel (axis 1) or overall."""

    values: int = 0
    total: Array | float = 0.0
    squares: Array | float = 0.0

    def add(self, values: Array) -> None:
        rows = values.reshape(len(values), values.shape[1] if values.ndim > 1 else 1, -1).astype(np.float64)
        self.values += rows.shape[0] * rows.shape[2]
        self.total = self.total + rows.sum(axis=(0, 2))
        self.squares = self.squares + np.square(rows).sum(axis=(0, 2))

    def scale(self, axes: int) -> Array:
        """Return 1 / standard deviation, to multiply values with so many axes; 0 where they are constant.

        Channels with fewer values than there are channels have one spread together.
        """
        total, squares, values = np.atleast_1d(self.total), np.atleast_1d(self.squares), self.values
        if values < len(total):
            total, squares, values = total.sum(keepdims=True), squares.sum(keepdims=True), values * len(total)
        mean = total / values
        variance = squares / values - mean**2
        varies = variance > 1e-9 * (mean**2)
        scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        return scale.reshape(1, -1, *(1,) * (axes - 2)) if axes > 1 else scale


class _Gram:
    """Sum of a a' over columns a that come in portions, shape (..., R, columns)."""

    def __init__(self) -> None:
        self._sum: Array | None = None
        self._pending: list[Array] = []

    def add(self, columns: Array) -> None:
        """Take columns in."""
        self._pending.append(columns)
        if sum(some.shape[-1] for some in self._pending) >= _PENDING_COLUMNS:
            self._flush()

    def total(self) -> NDArray[np.float64]:
        """Return the sum."""
        if self._pending:
            self._flush()
        return np.asarray(self._sum)

    def _flush(self) -> None:
        columns = np.concatenate(self._pending, axis=-1)
        product = columns @ columns.swapaxes(-1, -2)
        self._pending = []
        self._sum = product.astype(np.float64) if self._sum is None else self._sum + product


@dataclass
class _Sums:
    """What is added up for one layer over images, shape (temperatures, groups, R, R)."""

    by_image: _Gram = field(default_factory=_Gram)
    by_position: _Gram = field(default_factory=_Gram)

    def add(self, deltas: Array, patches: Array) -> None:
        """Take one image in: gradients (temperatures, draws, groups, R, P), centred inputs (groups, P, K)."""
        if patches.shape[1] < patches.shape[2]:  # fewer columns with the same products
            patches = _same_products(patches)
        self.by_image.add(_side_by_side(deltas @ patches))
        self.by_position.add(_side_by_side(deltas))


def _same_products(patches: Array) -> Array:
    """Return S, shape (groups, P, P), with S S' = x x' for x of shape (groups, P, K)."""
    if patches.shape[1] == 1:
        return np.asarray(np.sqrt(np.square(patches).sum(axis=2, keepdims=True)))
    return np.asarray(np.linalg.qr(patches.swapaxes(1, 2), mode="r")).swapaxes(1, 2)


def _side_by_side(values: Array) -> Array:
    """Put the columns of all draws beside each other: (temperatures, groups, R, draws * columns)."""
    turned = np.moveaxis(values, 1, 3)
    return turned.reshape(*turned.shape[:3], -1)


class _Collector:
    """Runs a network forwards and backwards and adds up."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], temperatures: tuple[float, ...], draws: int) -> None:
        self._graph, self._temperatures, self._draws = graph, temperatures, draws
        self._layers = {layer.name: layer for layer in layers}
        self._models: dict[tuple[tuple[str, Shape], ...], _Models] = {}
        self._uses: dict[str, _Use] = {}
        self._spreads: dict[str, _Spread] = {}
        self._sums: dict[str, _Sums] = {}
        self._unreached: dict[str, str] = {}

    def describe(self, feeds: Mapping[str, Array], count: int) -> None:
        """Take in what the inputs of layers and the heads are like."""
        models = self._lowered(feeds)
        values = models.forward_values(feeds)
        for name, passes in models.lowered.layers.items():
            for one in passes:
                self._uses.setdefault(name, _Use()).add(self._layers[name], values[one.bottom])
        for head in models.lowered.heads:
            if head.classes is None:
                self._spreads.setdefault(head.value, _Spread()).add(values[head.value])

    def differentiate(self, feeds: Mapping[str, Array], count: int, rng: np.random.Generator) -> None:
        """Take the gradients of some images in."""
        models = self._lowered(feeds)
        values = models.forward_values(feeds)
        found = [
            [models.gradients(values, self._seeds(models, values, temperature, count, rng)) for _ in range(self._draws)]
            for temperature in self._temperatures
        ]
        for name, passes in models.lowered.layers.items():
            self._add(name, passes, values, found, count)

    def _seeds(
        self, models: _Models, values: Mapping[str, Array], temperature: float, count: int, rng: np.random.Generator
    ) -> dict[str, Array]:
        return {
            head.seed: self._seed(head, values[head.value], temperature, count, rng) for head in models.lowered.heads
        }

    def _seed(
        self, head: GradientHead, values: Array, temperature: float, count: int, rng: np.random.Generator
    ) -> Array:
        noise = rng.standard_normal(values.shape, np.float32)
        if head.classes is None:
            scale = self._spreads[head.value].scale(values.ndim) / math.sqrt(values.size / count)
            return (noise * scale).astype(np.float32)
        positions = values.size // values.shape[head.classes] / count
        return softmax_factor(values, noise, head.classes, temperature) / np.float32(math.sqrt(positions))

    def _add(
        self,
        name: str,
        passes: Sequence[LayerPass],
        values: Mapping[str, Array],
        found: Sequence[Sequence[Mapping[str, Array]]],
        count: int,
    ) -> None:
        layer, mean = self._layers[name], self._uses[name].mean.astype(np.float32)[:, None]
        inputs = [InputPatches(layer, values[one.bottom]) for one in passes]
        rows = [len(values[one.bottom]) // count for one in passes]
        for item in range(count):
            patches = [
                each.of_items(slice(item * step, (item + 1) * step)) - mean
                for each, step in zip(inputs, rows, strict=True)
            ]
            deltas = [
                np.array([[_grouped(draw[one.gradient], item, step, len(mean)) for draw in draws] for draws in found])
                for one, step in zip(passes, rows, strict=True)
            ]
            self._sums.setdefault(name, _Sums()).add(np.concatenate(deltas, -1), np.concatenate(patches, 1))

    def _lowered(self, feeds: Mapping[str, Array]) -> _Models:
        key = tuple(sorted(_shapes(feeds).items()))
        if key not in self._models:
            self._models[key] = _Models(lower_gradients(self._graph, dict(key), self._layers))
            self._unreached.update(self._models[key].lowered.unreached)
        return self._models[key]

    def result(self, images: int) -> tuple[dict[float, dict[str, OutputSide]], dict[str, str]]:
        """Return the output sides by temperature, and why layers have none."""
        found: dict[float, dict[str, OutputSide]] = {temperature: {} for temperature in self._temperatures}
        unknown = dict(self._unreached)
        for name, sums in self._sums.items():
            variance = self._uses[name].variance[:, None, None]
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                by_image = np.where(variance > 0, sums.by_image.total() / variance, 0) / (images * self._draws)
                by_position = sums.by_position.total() / (images * self._draws)
            reason = _why_unusable(variance, by_image, by_position)
            if reason is not None:
                unknown[name] = reason
                continue
            for index, temperature in enumerate(self._temperatures):
                found[temperature][name] = OutputSide(by_image[index], by_position[index])
        return found, unknown


def _why_unusable(variance: Array, by_image: Array, by_position: Array) -> str | None:
    if not (np.isfinite(variance).all() and np.isfinite(by_image).all() and np.isfinite(by_position).all()):
        return "its inputs or gradients are not finite"
    if not variance.any():
        return "its inputs are constant"
    if not (by_image.any(axis=(1, 2, 3)) & by_position.any(axis=(1, 2, 3))).all():
        return "its gradient is zero"
    return None


def softmax_factor(values: Array, noise: Array, axis: int, temperature: float) -> Array:
    """Return v = (sqrt(p) e - p (sqrt(p) . e)) / T, p = softmax(z / T); E[v v'] = (diag(p) - p p') / T^2."""
    powers = np.exp((values - values.max(axis=axis, keepdims=True)) / np.float32(temperature))
    p = powers / powers.sum(axis=axis, keepdims=True)
    spread = np.sqrt(p) * noise
    return np.asarray((spread - p * spread.sum(axis=axis, keepdims=True)) / np.float32(temperature))


def _grouped(gradient: Array, item: int, rows: int, groups: int) -> Array:
    """Return one item's part of a gradient (items * rows, R, positions): (groups, R / groups, rows * positions)."""
    some = gradient[item * rows : (item + 1) * rows]
    some = some.reshape(rows, some.shape[1], -1).swapaxes(0, 1)
    return some.reshape(groups, some.shape[0] // groups, -1)


class _Models:
    """A network's two sessions for inputs of one shape."""

    def __init__(self, lowered: LoweredGradients) -> None:
        self.lowered = lowered
        self._forward, self._backward = Session(lowered.forward), Session(lowered.backward)

    def forward_values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run forwards and return all that is read afterwards."""
        return {**feeds, **self._forward.run({blob: feeds[blob] for blob in self._forward.inputs})}

    def gradients(self, values: Mapping[str, Array], seeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run backwards from some seeds."""
        every = {**values, **seeds}
        return self._backward.run({name: every[name] for name in self._backward.inputs})
