"""How fast this machine makes the parts of a study: each is made of a few images, layers and networks, and timed.

What a part takes is put together as the part itself is: `ways.what_is_tried` says of how many images and networks. A
piece is timed as large as it will be where that takes about a second; otherwise at two sizes, and the rest follows from
the line through them, which must not rise faster than the pieces themselves. Pieces are timed by the processor's time,
for other programs may hold up any one of them; what all pieces of a kind took by the clock, over that, makes clock time
of it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate
from autonuq.compress.chip import codecs_of
from autonuq.compress.in_order import NetworkBuilder
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.output_side import OutputSides, collect_output_sides
from autonuq.compress.quantized import QuantizedModel
from autonuq.compress.ways import COARSE, PLAIN, Trying, Way, completed, first_way
from autonuq.errors import QuantizationError
from autonuq.graph.model import Array
from autonuq.quant.codebook import code_histogram, codebook_of
from autonuq.quant.cores import available_cores, one_blas_thread
from autonuq.quant.curve import Curve
from autonuq.quant.feedback import factor_outputs
from autonuq.quant.needs import LayerNeeds
from autonuq.quant.points import OperatingPoints, Tuning

Passes = Sequence[Mapping[str, Array]]

_PIECE_S = 1.0  # a piece that takes less is timed as large as it will be
_LAYERS_S = 2.0  # that is spent on layers' points, but for the last one
_FEW_STEPS, _MORE_STEPS = 1, 4  # widths of a layer's grids with which its points are timed
SEARCHES = 3
"""Networks that are built to find the size at which others are compared, about."""
_STEP, _PRICE = 4.0, 1e-9  # of the networks that are built: in int8 steps, and of a bit


class _Clock:
    """Compares what goes by on the wall with what this process has of the processors."""

    def __init__(self) -> None:
        self._wall, self._own = time.monotonic(), time.process_time()

    def ratio(self) -> float:
        """Return seconds on the wall for each of the processors', since this was made."""
        own = time.process_time() - self._own
        return (time.monotonic() - self._wall) / own if own > 0 else 1.0


def in_turns(items: int) -> int:
    """Return how many times the cores are taken by so many items that run side by side."""
    return math.ceil(items / available_cores())


@dataclass(frozen=True)
class PointsPace:
    """What all layers' operating points take, in seconds.

    Attributes
    ----------
    once_s, grid_s : float
        Of all layers together: once, and for each width of a step that is tried.
    found : int
        Points of the layer that was looked at first.
    first : str
        Its name; empty where no layer has a codebook.
    """

    once_s: float
    grid_s: float
    found: int = 0
    first: str = ""

    def of(self, tuning: Tuning) -> float:
        """Return the seconds of the points of all layers."""
        return self.once_s + tuning.steps * self.grid_s


@dataclass(frozen=True)
class BuildPace:
    """What networks take that are built in order of the same images, in seconds.

    Attributes
    ----------
    first_s : float
        What the first one takes more: the original network's pass, and what the engine prepares.
    each_s : float
    """

    first_s: float = 0.0
    each_s: float = 0.0


def time_sides(model: QuantizedModel, passes: Passes, trying: Trying) -> tuple[float, OutputSides]:
    """Return the seconds of all gradients, and those of a few images."""

    def timed(images: int) -> tuple[float, OutputSides]:
        started = time.process_time()
        found = collect_output_sides(model.graph, passes, temperatures=trying.temperatures, images=range(images))
        return time.process_time() - started, found

    images, clock = trying.images(model.graph), _Clock()
    first_s, sides = timed(1)
    more = min(max(images), max(2, int(_PIECE_S / max(first_s, 1e-3))))
    more_s, each_s = first_s, 0.0
    if more > 1:
        more_s, sides = timed(more)
        each_s = _slope(1, first_s, more, more_s)
    halves_s = sum(max(first_s, more_s + (own - more) * each_s) for own in images)
    return halves_s * in_turns(len(images)) / len(images) * clock.ratio(), sides


def _slope(few: int, few_s: float, more: int, more_s: float) -> float:
    """Return what one item more takes, which is not more than an item takes of many."""
    return min(max(0.0, more_s - few_s) / (more - few), more_s / more)


def known_costs(model: QuantizedModel, record_file: Path, sides: OutputSides | None) -> dict[str, NDArray[np.float64]]:
    """Return what errors of the layers' outputs cost by a few images; nothing where that is not known."""
    if sides is None:
        return {}
    costs = completed(first_way([sides]).costs([sides]), model, record_file)
    usable = {}
    for name, own in costs.items():
        with suppress(QuantizationError):  # too few images: of all of them it may be positive definite
            factor_outputs(own)
            usable[name] = own
    return usable


def time_points(
    model: QuantizedModel,
    record_file: Path,
    costs: Mapping[str, NDArray[np.float64]],
    now: Sequence[LayerNeeds],
    later: Sequence[LayerNeeds],
) -> PointsPace:
    """Time the points of some layers, and tell from them what all take.

    Parameters
    ----------
    now, later : sequence of LayerNeeds
        Of all layers: with the images that there are, and with those of the whole calibration.

    Notes
    -----
    Layers with a codebook and layers without one are looked at apart. What is not timed lies on the line between those
    that are, over what it is expected to take.
    """
    expected = {one.layer: one.seconds for one in now}
    grows = {one.layer: one.seconds / max(expected[one.layer], 1e-12) for one in later}
    searched = set(model.nuq_layers)

    def points(name: str, steps: int) -> tuple[float, int]:
        single: QuantizedModel = replace(model, weights={name: model.weights[name]})
        tuning, started = replace(COARSE, steps=steps), time.process_time()
        found = dict(build_network_points(single, record_file, costs=costs, tuning=tuning))[name]
        return time.process_time() - started, len(found.curve.rates_bytes)

    once_s = grid_s = 0.0
    first, count = "", 0
    clock: _Clock | None = None
    for names in ([n for n in model.weights if n in searched], [n for n in model.weights if n not in searched]):
        if not names:
            continue
        timed: dict[str, tuple[float, float]] = {}
        ordered = _spread_out(names, expected)
        points(ordered[0], _FEW_STEPS)  # what is only done the first time
        clock = clock or _Clock()
        began = time.process_time()
        for name in [*ordered, *ordered]:  # by what is known then, some are quicker than they seemed
            if name in timed or timed and _soon(timed, expected, name) > _LAYERS_S - (time.process_time() - began):
                continue
            few_s, found = points(name, _FEW_STEPS)
            many_s = few_s
            if name in searched:
                many_s, found = points(name, _MORE_STEPS)
                first, count = (first, count) if first else (name, found)
            each_s = _slope(_FEW_STEPS, few_s, _MORE_STEPS, many_s)
            timed[name] = max(0.0, few_s - _FEW_STEPS * each_s), each_s
        for name in names:
            own = _between(timed, expected, name)
            once_s, grid_s = once_s + grows[name] * own[0], grid_s + grows[name] * own[1]
    ratio = clock.ratio() if clock else 1.0
    return PointsPace(ratio * once_s, ratio * grid_s, count, first)


def _spread_out(names: Sequence[str], expected: Mapping[str, float]) -> list[str]:
    """Order layers for timing: the quickest one, the slowest one, and between them by halves of all their time."""
    ranked = sorted(names, key=expected.__getitem__)
    reached = np.cumsum([expected[name] for name in ranked])
    chosen = [ranked[0]]
    for level in range(1, 5):
        for place in range(1, 1 << level, 2):
            index = min(int(np.searchsorted(reached, place / (1 << level) * reached[-1])), len(ranked) - 1)
            chosen.append(ranked[index])
    return list(dict.fromkeys([*chosen[:2], ranked[-1], *chosen[2:]]))


def _soon(timed: Mapping[str, tuple[float, float]], expected: Mapping[str, float], name: str) -> float:
    """Return what the timing of a layer will take."""
    once_s, each_s = _between(timed, expected, name)
    return 2 * once_s + (_FEW_STEPS + _MORE_STEPS) * each_s


def _between(timed: Mapping[str, tuple[float, float]], expected: Mapping[str, float], name: str) -> tuple[float, float]:
    """Return what a layer takes by those that were timed: by the nearest one beyond them, between two in between."""
    if name in timed:
        return timed[name]
    known = sorted(timed, key=expected.__getitem__)
    places, own = [expected[one] for one in known], expected[name]
    nearest = min(max(own, places[0]), places[-1])
    beyond = max(1.0, own / max(nearest, 1e-12))
    once_s, each_s = (float(np.interp(nearest, places, [timed[one][part] for one in known])) for part in (0, 1))
    return beyond * once_s, beyond * each_s


@one_blas_thread()
def time_builds(
    model: QuantizedModel, costs: Mapping[str, NDArray[np.float64]], one: Mapping[str, Array], wanted: Sequence[int]
) -> list[BuildPace]:
    """Time networks that are built in order, of so many passes each.

    Parameters
    ----------
    costs : mapping of str to ndarray of float64
        See `build_points`.
    one : mapping of str to ndarray of float32
        The inputs of a pass: the others are taken to be like it.
    wanted : sequence of int
        Numbers of passes.
    """
    candidate = Candidate(model, {name: _stand_in(model, name, costs.get(name)) for name in model.weights})
    known: dict[int, BuildPace] = {}

    def timed(passes: int) -> BuildPace:
        if passes not in known:
            builder, seconds = NetworkBuilder(model, [one] * passes), []
            for _ in range(2):
                started = time.process_time()
                builder.build(candidate)
                seconds.append(time.process_time() - started)
            known[passes] = BuildPace(max(0.0, seconds[0] - seconds[1]), seconds[1])
        return known[passes]

    if timed(1).each_s < _PIECE_S:  # what is only done the first time is seen there
        known.clear()
    clock = _Clock()
    found = [_of_passes(timed, passes) for passes in wanted]
    ratio = clock.ratio()
    return [BuildPace(ratio * one.first_s, ratio * one.each_s) for one in found]


def _of_passes(timed: Callable[[int], BuildPace], passes: int) -> BuildPace:
    """Return what a network of some passes takes: as timed, or by the line through one pass and several."""
    single = timed(1)
    several = max(2, int(2 * _PIECE_S / max(single.first_s + 2 * single.each_s, 1e-3)))
    if passes <= several:
        return timed(passes)
    found, more = timed(several), passes - several
    return BuildPace(
        found.first_s + more * _slope(1, single.first_s, several, found.first_s),
        found.each_s + more * _slope(1, single.each_s, several, found.each_s),
    )


def _stand_in(model: QuantizedModel, name: str, costs: NDArray[np.float64] | None) -> OperatingPoints:
    """Return a layer's points as they cost a build the time that real ones do: one, of wide steps."""
    uniform, codebook = model.weights[name], codebook_of(code_histogram(model.weights[name].codes))
    curve = Curve(name, np.array([uniform.codes.size]), np.zeros(1), (codebook,))
    if name not in model.nuq_layers:
        return OperatingPoints(curve, uniform.codes[None])
    outputs = None if costs is None else factor_outputs(costs)
    scale = np.float32(_STEP) * np.atleast_1d(uniform.scale).reshape(1, -1)
    return OperatingPoints(curve, uniform.codes[None], scale=scale, prices=np.array([_PRICE]), outputs=outputs)


def ways_s(trying: Trying, sides_s: float, points_s: float, build: BuildPace, sizes_s: float) -> float:
    """Return the seconds of a choice of ways.

    Parameters
    ----------
    sides_s : float
        Of the gradients.
    points_s : float
        Of all layers' points as they are compared.
    build : BuildPace
        Of networks of both halves' images.
    sizes_s : float
        Of counting a network's bytes.
    """
    if not trying.compared:
        return sides_s
    halves, ways = len(trying.halves), count_ways(trying)
    built = in_turns(halves) * (build.first_s + ways * (build.each_s + sizes_s))
    searched = SEARCHES * (build.each_s + sizes_s)
    return sides_s + ways * halves * points_s + built + searched


def count_ways(trying: Trying) -> float:
    """Return how many ways are tried, in the middle between those that follow where gradients help and where not."""
    helped, not_helped = (len(list(trying.ways(Way(), best))) for best in (Way, lambda: PLAIN))
    return (helped + not_helped) / 2


def time_sizes(model: QuantizedModel) -> float:
    """Return the seconds that it takes to count a network's bytes."""
    codecs, started = codecs_of(model), time.monotonic()
    for name, uniform in model.weights.items():
        codecs[name].size_bytes(np.clip(uniform.codes // int(_STEP), -127, 127).astype(np.int8))
    return time.monotonic() - started
