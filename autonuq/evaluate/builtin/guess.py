"""How a network wants its pictures, guessed where nobody knows: from what its own layers say of some of them.

A BatchNorm layer remembers mean and variance of what it saw in training: the preparation under which it sees the same
again is the right one. Without such layers two things are left. Of values that are too small a network makes the same
results for every picture, for its biases drown them. Of values that are too large it makes results as different as
ever, for a network of ReLUs only scales them. So the smallest values under which the results depend on the picture are
taken, and of those the most usual ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.evaluate.builtin.sources import Order
from autonuq.evaluate.builtin.transform import Transform, TransformSettings
from autonuq.graph.heads import find_heads
from autonuq.graph.hosted.registry import HOST_LAYERS
from autonuq.graph.lowering import lower
from autonuq.graph.model import FED_LAYERS, Array, Graph, Layer
from autonuq.graph.operators.channels import batch_norm_statistics
from autonuq.graph.shapes.channels import uses_stored_statistics
from autonuq.runtime.session import Session

MOST_PICTURES, FEWEST_PICTURES = 32, 8
_BUDGET_S = 20.0
_NORMS = 3  # the first BatchNorm layers; deeper ones say the same
_LEAST_VARIANCE = 1e-3  # of the mean one: channels that nearly never change tell nothing
_FEWEST_CLASSES = 3
_COLOURS: tuple[Order, ...] = ("BGR", "RGB")
_ALIVE = 1 / 20  # of the largest dependence: small values that leave less are too small
_USUAL = 0.7  # a more usual preparation is taken if its dependence is at least this share of the largest
_FAR, _FACTOR = 0.5, 4.0  # nats, and times as many as under the best candidate: what is seen is not what was seen
_SAME = 0.97  # and BGR, Caffe's order, at this one: the results of 32 pictures differ by no less


@dataclass(frozen=True)
class Preparation:
    """What is done to the values 0..255 of a picture.

    Attributes
    ----------
    mean : tuple of float
        Of red, green and blue.
    scale : float
    """

    mean: tuple[float, float, float]
    scale: float

    @property
    def is_small(self) -> bool:
        """Whether values of about 1 come of it."""
        return self.scale < 0.5

    def say(self, colours: Order) -> str:
        """Write it as the keys of a study file."""
        mean = ", ".join(f"{number:g}" for number in (self.mean if colours == "RGB" else self.mean[::-1]))
        return f'mean = [{mean}], scale = {self.scale:.4g}, channels = "{colours}"'


_Candidate = tuple[Preparation, Order]
PREPARATIONS = (  # what networks for Caffe are trained with, the usual first
    Preparation((127.5, 127.5, 127.5), 1 / 127.5),
    Preparation((0.0, 0.0, 0.0), 1 / 255),
    Preparation((123.68, 116.78, 103.94), 0.017),
    Preparation((123.0, 117.0, 104.0), 1.0),
    Preparation((0.0, 0.0, 0.0), 1.0),
    Preparation((128.0, 128.0, 128.0), 1.0),
)
"""What is tried."""
_RAW = PREPARATIONS[3]
_GREYS = tuple(PREPARATIONS[place] for place in (1, 0, 4, 5))


@dataclass(frozen=True)
class Guess:
    """How pictures are prepared, and why that is thought.

    Attributes
    ----------
    transform : TransformSettings
    why : str
        In a line.
    """

    transform: TransformSettings
    why: str


def guess_transform(
    graph: Graph, blob: str, pictures: Sequence[NDArray[Any]], order: Order, geometry: TransformSettings
) -> Guess:
    """Guess mean, scale and order of the colours.

    Parameters
    ----------
    graph : Graph
        With weights.
    blob : str
        The input that takes pictures, shape (batch, 1 or 3, height, width).
    pictures : sequence of ndarray, shape (height, width, channels)
        Of values 0..255.
    order : {"RGB", "BGR"}
        Of their colours.
    geometry : TransformSettings
        How they get their size.

    Raises
    ------
    EvaluatorError
        They have not the size that the network takes.
    ModelError, RuntimeFailure
        The network cannot be run.

    Notes
    -----
    **Cost**: 12 passes over 32 pictures at most, of fewer where that takes more than 20 seconds.
    **Source**: own measurements on nine networks (studies/LOG.md).
    """
    plain = sized(graph, blob, pictures[:MOST_PICTURES], order, geometry)
    candidates, seen = _candidates_seen(_Look(graph, blob), plain)
    place, why = _best(candidates, seen)
    preparation, colours = candidates[place]
    ordered = preparation.mean if colours == "RGB" else preparation.mean[::-1]
    is_grey = graph.inputs[blob][1] == 1
    mean = (round(sum(ordered) / 3, 1),) if is_grey else tuple(dict.fromkeys(ordered))
    own = replace(geometry, mean=mean, scale=preparation.scale, channels=None if is_grey else colours)
    return Guess(own, why)


def doubt_preparation(graph: Graph, blob: str, values: Array, plain: Array) -> str:
    """Say what speaks against a preparation; empty where nothing does.

    Parameters
    ----------
    graph : Graph
        With weights.
    blob : str
        The input that takes pictures.
    values : ndarray of float32, shape (pictures, channels, height, width)
        Pictures as they are prepared, whole batches of them.
    plain : ndarray of float32, the same shape
        The same ones as RGB values 0..255.

    Notes
    -----
    Preparations differ by factors, pictures of another kind than the training's by less. **Cost**: two passes over the
    pictures; where something is found, see `guess_transform`.
    """
    look = _Look(graph, blob)
    own, size = look.at(values), look.affordable(plain, 1)
    if own.distance is not None:
        what = "the first BatchNorm layers see quite other values than in training" if own.distance > _FAR else ""
    else:
        is_dead = own.dependence < _ALIVE * look.at(prepared(plain[:size], _RAW, "BGR")).dependence
        what = "the results hardly depend on the picture" if is_dead else ""
    if not what:
        return ""
    candidates, seen = _candidates_seen(look, plain)
    place, _ = _best(candidates, seen)
    best, (preparation, colours) = seen[place], candidates[place]
    if best.distance is not None and own.distance is not None and own.distance < _FACTOR * best.distance:
        return ""  # pictures of another kind than the training's
    return f"{what}; not so with {preparation.say(colours)}"


def _candidates_seen(look: _Look, plain: Array) -> tuple[list[_Candidate], list[_Seen]]:
    """Return the preparations, and what the network makes of pictures under each."""
    is_grey = plain.shape[1] == 1
    preparations, orders = (_GREYS, _COLOURS[:1]) if is_grey else (PREPARATIONS, _COLOURS)
    candidates = [(preparation, colours) for preparation in preparations for colours in orders]
    plain = plain[: look.affordable(plain, len(candidates))]
    return candidates, [look.at(prepared(plain, *candidate)) for candidate in candidates]


def prepared(values: Array, preparation: Preparation, colours: Order) -> Array:
    """Return RGB values 0..255, shape (pictures, 1 or 3, height, width), as a network takes them."""
    mean = np.array(preparation.mean, np.float32)
    if values.shape[1] == 1:
        mean = mean.mean(keepdims=True)
    changed = (values - mean.reshape(1, -1, 1, 1)) * np.float32(preparation.scale)
    return np.ascontiguousarray(changed if colours == "RGB" else changed[:, ::-1])


def sized(
    graph: Graph, blob: str, pictures: Sequence[NDArray[Any]], order: Order, geometry: TransformSettings
) -> Array:
    """Return pictures as RGB values 0..255 in the size that the network takes, whole batches of them.

    Raises
    ------
    EvaluatorError
        They have not that size after all.
    """
    size, *shape = graph.inputs[blob]
    plain = Transform(TransformSettings(geometry.resize, geometry.crop, "RGB"), (shape[0], shape[1], shape[2]))
    values = plain.apply(list(pictures), order, "RGB")
    return np.resize(values, (-(-len(values) // size) * size, *shape))  # the last batch is filled up from the first


@dataclass(frozen=True)
class _Seen:
    """What a network makes of some values.

    Attributes
    ----------
    distance : float or None
        Nats, mean over the channels of the first BatchNorm layers, between the normal distributions of what they see
        and of what they saw in training; None without such layers.
    dependence : float
        How much the results depend on the picture: nats that a decision tells of it, or, of results that are no
        decisions, the logarithm of 1 + their variance between pictures by their mean square.
    """

    distance: float | None
    dependence: float


class _Look:
    """Runs a network from its input to its first BatchNorm layers, and to its heads."""

    def __init__(self, graph: Graph, blob: str) -> None:
        self._blob, self._size = blob, graph.inputs[blob][0]
        self._others = {name: np.zeros(shape, np.float32) for name, shape in graph.inputs.items() if name != blob}
        hosted = [place for place, layer in enumerate(graph.layers) if layer.type in HOST_LAYERS]
        end = min([*hosted, len(graph.layers)])  # what lies behind a layer in Python is not looked at
        norms = [
            place
            for place, layer in enumerate(graph.layers[:end])
            if layer.type == "BatchNorm" and len(layer.blobs) >= 3 and uses_stored_statistics(layer)
        ]
        self._norms = [(graph.layers[place], self._before(graph, place)) for place in norms[:_NORMS]]
        self._heads = [head for head in find_heads(graph) if head.value[0] < end]
        blobs = [head.blob for head in self._heads]
        self._ends = Session(lower(graph, outputs=blobs, last=max((head.value[0] for head in self._heads), default=0)))

    def _before(self, graph: Graph, place: int) -> Session | None:
        """Return what makes a layer's bottom; None where that is the input itself."""
        bottom, source = graph.layers[place].bottoms[0], graph.sources[place][0][0]
        if graph.layers[source].type in FED_LAYERS:
            return None
        return Session(lower(graph, outputs=[bottom], last=place - 1))

    def affordable(self, values: Array, candidates: int) -> int:
        """Return how many pictures may be looked at, whole batches of them."""
        started = time.monotonic()
        self._run(self._ends, values[: self._size])
        batches = _BUDGET_S / max(1e-3, time.monotonic() - started) / candidates
        return self._size * max(1, -(-FEWEST_PICTURES // self._size), int(batches))

    def at(self, values: Array) -> _Seen:
        """Say what the network makes of values, whole batches of them."""
        distances = [self._distance(layer, session, values) for layer, session in self._norms]
        found = self._run(self._ends, values)
        dependences = [_dependence(found[head.blob], head.classes) for head in self._heads]
        return _Seen(float(np.mean(distances)) if distances else None, max(dependences, default=0.0))

    def _distance(self, layer: Layer, session: Session | None, values: Array) -> float:
        seen = values if session is None else self._run(session, values)[layer.bottoms[0]]
        axes = (0, *range(2, seen.ndim))
        mean, variance = (kept.astype(np.float64) for kept in batch_norm_statistics(layer))
        least = layer.message.batch_norm_param.eps + _LEAST_VARIANCE * float(variance.mean())
        own, kept = seen.var(axes, dtype=np.float64) + least, variance + least
        shift = seen.mean(axes, dtype=np.float64) - mean
        return float(np.mean(np.log(kept / own) + (own + shift * shift) / kept - 1) / 2)

    def _run(self, session: Session, values: Array) -> dict[str, Array]:
        """Run whole batches and join what comes of them along the first axis."""
        feeds = {name: array for name, array in self._others.items() if name in session.inputs}
        parts = [
            session.run(feeds | {self._blob: values[start : start + self._size]})
            for start in range(0, len(values), self._size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _dependence(values: Array, axis: int | None) -> float:
    """Return how much a head's values depend on the picture; see `_Seen`."""
    values = values.astype(np.float64)
    single = values.ndim == 2 or (values.ndim == 4 and values.shape[2:] == (1, 1))
    if axis is None and (not single or values.shape[1] < _FEWEST_CLASSES):
        spread = values.var(axis=0) / np.maximum((values**2).mean(axis=0), 1e-30)
        return float(np.mean(np.log1p(spread)))
    shares = np.exp(values - values.max(axis=axis or 1, keepdims=True))
    shares = np.moveaxis(shares / shares.sum(axis=axis or 1, keepdims=True), axis or 1, -1)
    return float(np.mean(_entropy(shares.mean(axis=0))) - np.mean(_entropy(shares)))


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-(shares * np.log(shares + 1e-30)).sum(axis=-1))


def _best(candidates: Sequence[_Candidate], seen: Sequence[_Seen]) -> tuple[int, str]:
    """Return the place of the most plausible candidate, and why it is."""
    distances = [one.distance for one in seen if one.distance is not None]
    if distances:
        place = int(np.argmin(distances))
        return place, "under it the first BatchNorm layers see what they saw in training"
    colours = len({order for _, order in candidates})
    dependences = np.reshape([one.dependence for one in seen], (-1, colours))
    of_preparation = dependences.max(axis=1)
    small = np.array([candidates[place][0].is_small for place in range(0, len(candidates), colours)])
    is_alive = bool(of_preparation[small].max() >= _ALIVE * of_preparation.max())
    of_preparation = np.where(small == is_alive, of_preparation, 0.0)
    row = int(np.argmax(of_preparation >= _USUAL * of_preparation.max()))  # the first, which is the most usual
    column = int(np.argmax(dependences[row] >= _SAME * dependences[row].max()))
    small_ones = "" if is_alive else "; of smaller values they hardly do"
    return row * colours + column, f"under it the results depend on the picture{small_ones}"
