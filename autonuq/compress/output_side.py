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

D and v are those of `head_metrics`.

Source: two sides of a layer's curvature after Martens & Grosse (arXiv 1503.05671), Gauss-Newton factors drawn at random
after Botev et al. (1706.03662), E[g g'] per image after YAQA (2505.22988); scales and centring are an own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.head_metrics import HeadMetric, SoftmaxMetric, Spread, SquaresMetric
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.gradients import GradientHead, LayerPass, LoweredGradients, lower_gradients
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.graph.passes import WEIGHT_TYPES
from autonuq.quant.cores import one_blas_thread
from autonuq.runtime.moments import InputPatches, is_observable
from autonuq.runtime.session import Session

DRAWS = 2
"""Random vectors an image: their error averages out over images, too."""

MOST_IMAGES = 300
BUDGET = 10**12
"""Multiplications of a collection, about a minute of one core: SqueezeNet took 0.65 s an image at two temperatures."""

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
    heads : tuple of HeadMetric
        Where the divergence is taken.
    images : int
        How many were used.
    """

    layers: Mapping[float, Mapping[str, OutputSide]]
    unknown: Mapping[str, str]
    heads: tuple[HeadMetric, ...]
    images: int


@one_blas_thread()
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
        Which ones, counted through all passes; by default `affordable_images`. If the network does not treat the items
        of a batch apart, a whole pass counts as one image.
    draws : int
        Random vectors an image.
    seed : int
        Of the random vectors.

    Raises
    ------
    ValueError
        There is no image, temperature or draw, or a temperature is not positive.

    Notes
    -----
    **Cost**: two forward passes, and for each draw and temperature a backward pass and the gradient of the weights
    (each multiplies as often as a forward pass) and min(K, P) R^2 multiplications; the blobs of a batch and R^2 numbers
    a layer in memory.
    """
    _check(temperatures, draws)
    if images is None:
        images = affordable_images(graph, passes, temperatures=len(temperatures), draws=draws)
    if not len(images):
        raise ValueError("The 'images' of collect_output_sides must be at least one. Got none.")
    layers = [layer for layer in graph.layers if layer.type in WEIGHT_TYPES]
    covered = _covered(graph, layers)
    left_out = {layer.name for layer in layers} - {layer.name for layer in covered}
    refused = dict.fromkeys(sorted(left_out), "its kind of weights is not covered")
    collector, items = _Collector(graph, covered, temperatures, draws, seed), _Items(graph, passes)
    with np.errstate(all="ignore"):  # what is not finite is looked at in the end
        for feeds, _ in items.batches(images):
            collector.describe(feeds)
        for feeds, count in items.batches(images):
            collector.differentiate(feeds, count)
        found, unknown = collector.result(len(images))
    return OutputSides(found, refused | unknown, collector.metrics, len(images))


def _covered(graph: Graph, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers whose inputs can be cut into what the weights meet."""
    shapes = infer_shapes(graph)
    return [
        layer
        for layer in layers
        if is_observable(layer) and (layer.type == "InnerProduct" or len(shapes[layer.bottoms[0]]) == 4)
    ]


def _check(temperatures: Sequence[float], draws: int) -> None:
    if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
        raise ValueError(
            f"The 'temperatures' of collect_output_sides must be positive numbers, at least one. Got {temperatures!r}."
        )
    if draws < 1:
        raise ValueError(f"The 'draws' parameter of collect_output_sides must be at least 1. Got {draws} instead.")


def affordable_images(
    graph: Graph, passes: Sequence[Mapping[str, Array]], *, temperatures: int = 1, draws: int = DRAWS
) -> list[int]:
    """Choose images, evenly over all passes, for which the collection costs `BUDGET` multiplications at most.

    Parameters
    ----------
    temperatures, draws : int
        How many of each are asked for.

    Returns
    -------
    list of int
        At most `MOST_IMAGES`, at least one if there is one; see `collect_output_sides`.
    """
    count, cost = _Items(graph, passes).count, image_cost(graph, passes, temperatures * draws)
    used = min(count, MOST_IMAGES, max(1, BUDGET // max(1, cost)))
    return [index * count // used for index in range(used)]


def image_cost(graph: Graph, passes: Sequence[Mapping[str, Array]], seeds: int) -> int:
    """Count the multiplications of one image: 2 + 2 seeds forward passes, and the squares of so many gradients."""
    shapes = infer_shapes(graph, _shapes(passes[0]) if passes else None)
    total = 0
    for layer in graph.layers:
        if layer.type in WEIGHT_TYPES:
            top, weights = shapes[layer.tops[0]], layer.blobs[0]
            rows = weights.shape[1 if layer.type == "Deconvolution" else 0]
            columns = weights.size // rows
            values = math.prod(top) * len(layer.tops)
            total += values * columns * (2 + 2 * seeds) + (values + min(values, rows * columns)) * rows * seeds
    return total // _Items(graph, passes[:1]).count if passes else total


def collection_bytes(
    graph: Graph, passes: Sequence[Mapping[str, Array]], temperatures: int = 1, draws: int = DRAWS
) -> float:
    """Return the memory that a collection takes, about: a batch's blobs with all gradients, and the output sides."""
    shapes = infer_shapes(graph, _shapes(passes[0]) if passes else None)
    values = sum(math.prod(shape) for shape in shapes.values()) / _Items(graph, passes[:1]).count
    rows = [
        int(layer.blobs[0].shape[layer.type == "Deconvolution"]) for layer in graph.layers if layer.type in WEIGHT_TYPES
    ]
    sides = 16.0 * temperatures * sum(count**2 for count in rows)
    return 4.0 * values * _items_apart(graph)[1] * (1 + temperatures * draws) + sides


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
    return InputPatches(layer, summed).total()


class _Products:
    """Sum of a b' over columns a, b that come in portions, shape (..., R, columns)."""

    def __init__(self) -> None:
        self._sum: Array | None = None
        self._pending: list[tuple[Array, Array]] = []

    def add(self, left: Array, right: Array) -> None:
        """Take columns in."""
        self._pending.append((left, right))
        if sum(some.shape[-1] for some, _ in self._pending) >= _PENDING_COLUMNS:
            self._flush()

    def total(self) -> NDArray[np.float64]:
        """Return the sum, symmetric."""
        if self._pending:
            self._flush()
        total = np.asarray(self._sum)
        return np.asarray((total + total.swapaxes(-1, -2)) / 2)

    def _flush(self) -> None:
        left = _joined([one for one, _ in self._pending])
        same = all(one is other for one, other in self._pending)  # then the engine does half of it
        right = left if same else _joined([other for _, other in self._pending])
        product = left @ right.swapaxes(-1, -2)
        self._pending = []
        self._sum = product.astype(np.float64) if self._sum is None else self._sum + product


def _joined(columns: Sequence[Array]) -> Array:
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=-1)


@dataclass
class _Sums:
    """What is added up for one layer over images, shape (temperatures, groups, R, R)."""

    by_image: _Products = field(default_factory=_Products)
    by_position: _Products = field(default_factory=_Products)

    def add(self, deltas: Array, patches: Array) -> None:
        """Take one image in: gradients (temperatures, draws, groups, R, P), centred inputs (groups, P, K).

        With fewer positions than weights, g g' = delta (x x') delta' takes less than g = delta x itself.
        """
        columns = _side_by_side(deltas)
        self.by_position.add(columns, columns)
        if patches.shape[1] < patches.shape[2]:
            self.by_image.add(_side_by_side(deltas @ (patches @ patches.swapaxes(1, 2))), columns)
        else:
            gradients = _side_by_side(deltas @ patches)
            self.by_image.add(gradients, gradients)


def _side_by_side(values: Array) -> Array:
    """Put the columns of all draws beside each other: (temperatures, groups, R, draws * columns)."""
    turned = np.moveaxis(values, 1, 3)
    return turned.reshape(*turned.shape[:3], -1)


class _Collector:
    """Runs a network forwards and backwards and adds up."""

    def __init__(
        self, graph: Graph, layers: Sequence[Layer], temperatures: Sequence[float], draws: int, seed: int
    ) -> None:
        self._graph, self._temperatures, self._draws = graph, tuple(temperatures), draws
        self._rng = np.random.default_rng(seed)
        self._layers = {layer.name: layer for layer in layers}
        self._models: dict[tuple[tuple[str, Shape], ...], _Models] = {}
        self._uses: dict[str, _Use] = {}
        self._spreads: dict[str, Spread] = {}
        self._sums: dict[str, _Sums] = {}
        self._unreached: dict[str, str] = {}

    def describe(self, feeds: Mapping[str, Array]) -> None:
        """Take in what the inputs of layers and the heads are like."""
        models = self._lowered(feeds)
        values = models.forward_values(feeds)
        for name, passes in models.lowered.layers.items():
            for one in passes:
                self._uses.setdefault(name, _Use()).add(self._layers[name], values[one.bottom])
        for head in models.lowered.heads:
            if head.classes is None:
                self._spreads.setdefault(head.value, Spread()).add(values[head.value])

    def differentiate(self, feeds: Mapping[str, Array], count: int) -> None:
        """Take the gradients of some images in."""
        models = self._lowered(feeds)
        values, heads = models.forward_values(feeds), models.lowered.heads
        found = [
            [models.gradients(values, self._seeds(heads, values, temperature, count)) for _ in range(self._draws)]
            for temperature in self._temperatures
        ]
        for name, passes in models.lowered.layers.items():
            self._add(name, passes, values, found, count)

    def metric(self, head: GradientHead) -> HeadMetric:
        """Return the divergence at a head, as the first pass makes it."""
        if head.classes is not None:
            return SoftmaxMetric(head.blob, head.classes)
        return SquaresMetric(head.blob, self._spreads[head.value].scale(len(head.shape)))

    def _seeds(
        self, heads: Sequence[GradientHead], values: Mapping[str, Array], temperature: float, count: int
    ) -> dict[str, Array]:
        found = {}
        for head in heads:
            noise = self._rng.standard_normal(head.shape, np.float32)
            found[head.seed] = self.metric(head).factor(values[head.value], noise, count, temperature)
        return found

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

    @property
    def metrics(self) -> tuple[HeadMetric, ...]:
        """The divergence at every head."""
        heads = {head.value: head for models in self._models.values() for head in models.lowered.heads}
        return tuple(self.metric(head) for head in heads.values())

    def result(self, images: int) -> tuple[dict[float, dict[str, OutputSide]], dict[str, str]]:
        """Return the output sides by temperature, and why layers have none."""
        found: dict[float, dict[str, OutputSide]] = {temperature: {} for temperature in self._temperatures}
        unknown = dict(self._unreached)
        for name, sums in self._sums.items():
            variance = self._uses[name].variance[:, None, None]
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
        return "its gradient is zero: the outputs do not depend on it, or are constant or saturated"
    return None


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
