"""How a network's layers are best rounded: found on calibration images that took no part in it.

A way says what an error of a layer's outputs is taken to cost (`output_side`) and what a bit is worth (`quant.points`).
No way is the best for every network. So some images are learnt from, and the network that each way makes of them, built
in order, is compared with the original on the others: the way whose results diverge least at equal bytes is taken, with
its figures. The oldest one, which takes all outputs for equal, is among them, so that nothing gets worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate, Plan
from autonuq.compress.chip import codecs_of, floor_bytes
from autonuq.compress.in_order import NetworkBuilder, affordable_passes, is_buildable
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.output_side import OutputSides, affordable_images, collect_output_sides, collection_bytes
from autonuq.compress.quantized import QuantizedModel
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.heads import find_heads
from autonuq.graph.model import Array, Graph, Layer
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.cores import one_blas_thread, side_by_side
from autonuq.quant.inputs import InputRows
from autonuq.quant.points import OperatingPoints, Tuning
from autonuq.runtime.moments import load_moments

Passes = Sequence[Mapping[str, Array]]

GRADIENTS_UP_TO = 1 << 24
"""Weights: of a network with more the gradients are not taken."""

_AIM = 0.02  # divergence near which ways are compared: some networks lose a point of accuracy there, none many
_SLOPE = 3.5  # of its logarithm over that of the ratio, seen on four networks
_SLOPE_ABOVE_FLOOR = 2.0  # over that of the bytes beyond a codec's floor, seen on three
_NEAR = 0.8  # of a size: nobody looks further
MOST_SEARCHES = 4
"""Builds that look for the size with that divergence, at most."""
COARSE = Tuning(steps=12, widths=(0.8, 9.0))
"""While ways are compared."""
_COARSE_BYTES = 16.0  # of memory for each weight, in all points of its layer as they are compared
_ITERATIONS = 30
_BUILDS = 18  # networks that a comparison builds, about
_FEW = 1 << 13  # weights below which there is nothing to gain
_MANY = 1 << 22  # weights above which fewer ways are compared


@dataclass(frozen=True)
class Way:
    """One way to round a network's layers.

    Attributes
    ----------
    side : {"image", "position", ""}
        Which of `OutputSide`'s forms says what errors cost; none: all outputs are equal.
    temperature : float
        Of the softmax.
    by_largest, by_mean : float
        What is added to the diagonal of G, as shares of its largest eigenvalue and of its diagonal's mean.
    price : float
        See `Tuning`.
    """

    side: str = "position"
    temperature: float = 4.0
    by_largest: float = 0.015
    by_mean: float = 0.0
    price: float = 0.3

    @property
    def tuning(self) -> Tuning:
        """How grids are made for this way."""
        return Tuning(self.price)

    def costs(self, sides: Sequence[OutputSides]) -> dict[str, NDArray[np.float64]]:
        """Return what errors of the layers' outputs cost by several collections together.

        Layers with groups have no codebook, and need none.
        """
        if not self.side:
            return {}
        images = sum(one.images for one in sides)
        each = [one.layers[self.temperature] for one in sides]
        names = [name for name in each[0] if all(name in one for one in each) and len(each[0][name].by_image) == 1]
        shares = [one.images / images for one in sides]
        forms = {name: [getattr(one[name], f"by_{self.side}")[0] for one in each] for name in names}
        return {name: self._damped(sum(map(np.multiply, own, shares))) for name, own in forms.items()}

    def _damped(self, costs: NDArray[np.float64]) -> NDArray[np.float64]:
        largest = _largest_eigenvalue(costs) if self.by_largest else 0.0
        damped = costs.copy()
        damped[np.diag_indices_from(damped)] += self.by_largest * largest + self.by_mean * float(np.diag(costs).mean())
        return damped

    def say(self) -> str:
        """Describe the way in a few words."""
        if not self.side:
            return f"all outputs equal, a bit's price {self.price:g}"
        damping = f"{self.by_largest:g} of the largest" if self.by_largest else f"{self.by_mean:g} of the mean"
        return f"gradients by {self.side} at temperature {self.temperature:g}, {damping}, a bit's price {self.price:g}"


PLAIN = Way(side="", by_largest=0.0)
"""The oldest way: all outputs are equal."""


def _largest_eigenvalue(matrix: NDArray[np.float64]) -> float:
    """Return the largest eigenvalue of a matrix that is not negative definite, to a few percent, by power iteration."""
    vector = np.diag(matrix) + 1e-12
    for _ in range(_ITERATIONS):
        vector = matrix @ (vector / np.linalg.norm(vector))
    return float(np.linalg.norm(vector))


@dataclass(frozen=True)
class TriedWay:
    """What a way made of images that it did not learn from.

    Attributes
    ----------
    way : Way
    ratio, divergence : float
        Of the plan that was built; the divergence is the mean over images, in nats.
    at_equal_size : float
        The logarithm of the divergence, less what the size explains of it.
    """

    way: Way
    ratio: float
    divergence: float
    at_equal_size: float


@dataclass(frozen=True)
class ChosenWay:
    """The way that was chosen, and why.

    Attributes
    ----------
    way : Way
    costs : mapping of str to ndarray of float64
        By layer; see `build_points`.
    tried : sequence of TriedWay
        In the order in which they were; empty where nothing could be compared.
    unknown : mapping of str to str
        Layers whose errors' costs are not known -> the reason.
    """

    way: Way
    costs: Mapping[str, NDArray[np.float64]]
    tried: Sequence[TriedWay]
    unknown: Mapping[str, str]


@one_blas_thread()
def choose_way(
    model: QuantizedModel, record_file: Path, passes: Passes, on_way: Callable[[str], None] = lambda text: None
) -> ChosenWay:
    """Choose how a network's layers are rounded.

    Parameters
    ----------
    model : QuantizedModel
        Calibrated.
    record_file : Path
        Beside it lie the moments of its layers' inputs.
    passes : sequence of mapping of str to ndarray of float32
        Input blobs of the calibration.
    on_way : callable
        Told each way that was tried.

    Notes
    -----
    **Cost**: gradients of at most 300 images at one or two temperatures, and for each of up to seven ways some ten
    assignments a layer and two networks built in order, on as many images as `BUDGET` allows; from 4 M weights on three
    ways, below 8,192 the first one as it is. From 16 M on all outputs are equal: gradients and what is made of them
    would take longer than all else, and the memory of three numbers for each pair of outputs.
    """
    trying = what_is_tried(model, passes)
    if trying is None:
        return ChosenWay(PLAIN, {}, (), {})
    sides = _output_sides(model.graph, trying)
    unknown = {name: reason for one in sides for name, reason in one.unknown.items() if name in model.nuq_layers}
    first = first_way(sides)
    if not trying.compared:
        return ChosenWay(first, completed(first.costs(sides), model, record_file), (), unknown)
    comparison = _Comparison(model, record_file, trying.compared, sides)
    tried: list[TriedWay] = []
    for way in trying.ways(first, lambda: _best(tried)):
        tried.append(comparison.tried(way))
        on_way(f"{way.say()}: {tried[-1].divergence:.4f} nats at {tried[-1].ratio:.1f}x")
    best = _best(tried)
    return ChosenWay(best, completed(best.costs(sides), model, record_file), tried, unknown)


@dataclass(frozen=True)
class Trying:
    """What a choice works on.

    Attributes
    ----------
    halves : sequence of Passes
        Images of which gradients are taken; one half where they cannot be split.
    temperatures : sequence of float
        Of the softmax.
    compared : sequence of Passes
        As many halves on which networks are built; none where no ways are compared.
    few, priced : bool
        Fewer ways are compared; other prices of a bit are among them.
    """

    halves: Sequence[Passes]
    temperatures: Sequence[float]
    compared: Sequence[Passes]
    few: bool
    priced: bool

    def images(self, graph: Graph) -> list[int]:
        """Return how many images of each half the gradients are taken of."""
        return [len(self._images(graph, half)) for half in self.halves]

    def sides(self, graph: Graph, half: Passes) -> OutputSides:
        """Collect the output sides of one half."""
        images = self._images(graph, half)
        return collect_output_sides(graph, half, temperatures=self.temperatures, images=images)

    def _images(self, graph: Graph, half: Passes) -> list[int]:
        """Choose half as many images as can be afforded of all."""
        return affordable_images(graph, half, temperatures=2 * len(self.temperatures))

    def ways(self, first: Way, best: Callable[[], Way]) -> Iterator[Way]:
        """Yield one way after the other, each but for one thing the best so far."""
        yield first
        if first.side:
            yield PLAIN
            if best().side and 1.0 in self.temperatures:
                yield replace(best(), temperature=1.0)
            if best().side and not self.few:
                yield replace(best(), side="image")
                yield replace(best(), by_largest=0.0, by_mean=1.0)
        if self.priced and not self.few:
            yield replace(best(), price=2 * Way.price)
            yield replace(best(), price=Way.price / 3)


def what_is_tried(model: QuantizedModel, passes: Passes) -> Trying | None:
    """Say what a choice works on; None where there is none, for the network is too large."""
    weights = sum(model.weight_counts.values())
    if weights > GRADIENTS_UP_TO:
        return None
    halves = _halves(model, passes)
    is_softmax = any(head.classes is not None for head in find_heads(model.graph))
    temperatures = (Way.temperature, 1.0) if is_softmax else (Way.temperature,)
    is_compared = weights >= _FEW and len(halves) > 1 and is_buildable(model.graph)
    compared = [affordable_passes(model.graph, half, _BUILDS) for half in halves] if is_compared else []
    return Trying(halves, temperatures, compared, few=weights > _MANY, priced=_has_prices(model))


def first_way(sides: Sequence[OutputSides]) -> Way:
    """Return the way that is tried first."""
    return Way() if any(one.layers[Way.temperature] for one in sides) else PLAIN


def completed(
    costs: dict[str, NDArray[np.float64]], model: QuantizedModel, record_file: Path
) -> dict[str, NDArray[np.float64]]:
    """Add the layers of which nothing is known: all their weights cost as much as those of others do in the median.

    The distortions of all layers then have one unit.
    """
    missing = [name for name in model.nuq_layers if name not in costs]
    energies = {name: _energy(model.graph.by_name[name], record_file) for name in model.nuq_layers if missing and costs}
    known = [float((costs[name] * energy).sum()) for name, energy in energies.items() if name in costs]
    typical, found = float(np.median(known)) if known else 0.0, dict(costs)
    for name in missing:
        if typical > 0 and energies[name].any():
            found[name] = typical / np.trace(energies[name]) * np.eye(len(energies[name]))
    return found


def _energy(layer: Layer, record_file: Path) -> NDArray[np.float64]:
    """Return W H W' of a layer with one group, shape (outputs, outputs); zeros where its inputs are not known."""
    rows = layer.blobs[0].reshape(len(layer.blobs[0]), -1).astype(np.float64)
    inputs = load_moments(record_file, layer)
    if not inputs:
        return np.zeros((len(rows), len(rows)))
    (own,) = inputs
    if isinstance(own, InputRows):
        outputs = rows @ own.rows.T
        return np.asarray(outputs @ outputs.T / max(1, own.samples))
    return np.asarray(rows @ (own.sums @ rows.T) / max(1, own.samples))


def _best(tried: Sequence[TriedWay]) -> Way:
    return min(tried, key=lambda one: one.at_equal_size).way


def _has_prices(model: QuantizedModel) -> bool:
    """Say whether bits have a price in any layer's grids."""
    codecs = codecs_of(model)
    return not model.config.amct_levels and any(codecs[name].entropy_coded for name in model.nuq_layers)


def _output_sides(graph: Graph, trying: Trying) -> list[OutputSides]:
    """Collect the output sides of each half."""
    each_bytes = collection_bytes(graph, trying.halves[0], len(trying.temperatures))
    return side_by_side(lambda half: trying.sides(graph, half), trying.halves, each_bytes=each_bytes)


def _halves(model: QuantizedModel, passes: Passes) -> list[Passes]:
    """Split a calibration's inputs in two, by images if there is one pass only; as they are if they cannot be split."""
    if len(passes) > 1:
        return [passes[::2], passes[1::2]]
    (one,) = passes
    items = min(len(values) for values in one.values())
    if items < 2 or not _are_apart(model.graph):
        return [passes]
    middle = items // 2
    return [[{blob: v[:middle] for blob, v in one.items()}], [{blob: v[middle:] for blob, v in one.items()}]]


def _are_apart(graph: Graph) -> bool:
    """Say whether images lie one behind the other in every blob."""
    try:
        return not any(find_batch(graph).axes.values())
    except MixesItems:
        return False


class _Comparison:
    """Tries ways on both halves of the images, learning from one and judging by the other."""

    def __init__(
        self, model: QuantizedModel, record_file: Path, halves: Sequence[Passes], sides: Sequence[OutputSides]
    ) -> None:
        self._model, self._record_file, self._sides = model, record_file, sides
        passes, split = [*halves[0], *halves[1]], len(halves[0])
        self._parts = range(split), range(split, len(passes))
        self._builders = [NetworkBuilder(model, passes, learning) for learning in self._parts]
        self._half_bytes = self._builders[0].build_bytes + _COARSE_BYTES * sum(model.weight_counts.values())
        self._fall = _Fall.of(model)
        self._size: float | None = None

    def tried(self, way: Way) -> TriedWay:
        """Try one way."""
        halves, own_bytes = range(len(self._sides)), self._half_bytes
        points = side_by_side(lambda half: self._points(way, self._sides[half]), halves, each_bytes=own_bytes)
        if self._size is None:
            self._size = divergent_size(self._builders[0], Candidate(self._model, points[0]), self._parts[1])
        size = self._size
        found = side_by_side(lambda half: self._built(half, points[half], size), halves, each_bytes=own_bytes)
        sizes, divergences = zip(*found, strict=True)
        mean_size, divergence = float(np.mean(sizes)), float(np.mean(divergences))
        original = 4 * sum(self._model.weight_counts.values())
        return TriedWay(way, original / mean_size, divergence, self._fall.at_equal_size(mean_size, divergence))

    def _built(self, half: int, points: Mapping[str, OperatingPoints], size: float) -> tuple[float, float]:
        """Return bytes and divergence of the network that learns from a half, judged by the other one."""
        return built_at(self._builders[half], Candidate(self._model, points), size, self._parts[1 - half])

    def _points(self, way: Way, sides: OutputSides) -> dict[str, OperatingPoints]:
        tuning = replace(COARSE, price=way.price)
        costs = completed(way.costs([sides]), self._model, self._record_file)
        return dict(build_network_points(self._model, self._record_file, costs=costs, tuning=tuning))


@dataclass(frozen=True)
class _Fall:
    """How a network's divergence falls with its bytes: as a power of those beyond a floor.

    Attributes
    ----------
    floor : int
        Bytes that no plan gets below.
    slope : float
    """

    floor: int
    slope: float

    @staticmethod
    def of(model: QuantizedModel) -> _Fall:
        """Return a model's: other codecs than the chip's pack zeros into next to nothing."""
        is_ascend = model.config.target.codec_name == AscendCodec.name
        return _Fall(floor_bytes(model), _SLOPE_ABOVE_FLOOR) if is_ascend else _Fall(0, _SLOPE)

    def at_equal_size(self, size: float, divergence: float) -> float:
        """Return the logarithm of the divergence at some bytes, less what they explain of it."""
        return math.log(max(divergence, 1e-12)) + self.slope * math.log(max(size - self.floor, 1.0))

    def size_at_aim(self, size: float, divergence: float) -> float:
        """Return the bytes at which the divergence is `_AIM`, if it is so much at some bytes; at most a third."""
        step = float(np.clip((divergence / _AIM) ** (1 / self.slope), 1 / 3, 3)) if np.isfinite(divergence) else 3.0
        return self.floor + (size - self.floor) * step


def divergent_size(builder: NetworkBuilder, candidate: Candidate, judging: Collection[int]) -> float:
    """Look for the bytes at which a network diverges by what ways are compared at."""
    fall = _Fall.of(candidate.model)
    size = max(sum(4 * count for count in candidate.model.weight_counts.values()) / 16, 1.1 * fall.floor)
    for _ in range(MOST_SEARCHES):
        real, divergence = built_at(builder, candidate, size, judging)
        size = fall.size_at_aim(real, divergence)
        if _NEAR < (size - fall.floor) / max(1, real - fall.floor) < 1 / _NEAR:
            break
    return size


def built_at(
    builder: NetworkBuilder, candidate: Candidate, size: float, judging: Collection[int]
) -> tuple[float, float]:
    """Return bytes and divergence, on some passes, of the plan that takes about so many bytes."""
    built, codecs = builder.build(candidate.with_plan(plan_of_size(candidate.points, size))), codecs_of(candidate.model)
    sizes = [codecs[name].size_bytes(built.candidate.codes(name)) for name in candidate.points]
    return sum(sizes), built.divergence(judging)


def plan_of_size(points: Mapping[str, OperatingPoints], size: float) -> Plan:
    """Return the plan of least distortion, by one slope for all layers, of at most so many bytes if there is one."""
    low, high = -40.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        plan = _plan_at(points, math.exp(middle))
        over = sum(int(points[name].curve.rates_bytes[point]) for name, point in plan.items()) > size
        low, high = (middle, high) if over else (low, middle)
    return _plan_at(points, math.exp(high))


def _plan_at(points: Mapping[str, OperatingPoints], slope: float) -> dict[str, int]:
    return {
        name: int(np.argmin(found.curve.distortions + slope * found.curve.rates_bytes))
        for name, found in points.items()
    }
