"""A plan's network, built in order: each layer against what the quantized layers before it really give it.

The original network runs once over inputs of the calibration, and what its layers' weights meet is kept. The quantized
network runs from one layer with weights to the next. There its inputs are compared with the original's
(`quant.paired`), the layer is rounded to its point's grid again, and its bias takes up the mean of what it lacks; then
it goes on. So what a layer spoils the next ones make up for. At the end the results are compared (`divergence`).

Layers with groups keep their codes; their biases take up the mean. So do layers that read the network's own inputs, for
those are as they were. What depends on a layer that runs in Python keeps its codes and its biases, and so does what the
quantized network gives values that are not finite.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BufferedRandom
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from autonuq.atomic import allocate, writing
from autonuq.compress.candidate import Candidate, Made
from autonuq.compress.chip import codecs_of
from autonuq.compress.head_metrics import HeadMetric, SoftmaxMetric, Spread, SquaresMetric
from autonuq.compress.operating_points import layers_behind_weights
from autonuq.compress.output_side import BUDGET, image_cost
from autonuq.compress.quantized import QuantizedModel
from autonuq.graph.gradients import computable_layers
from autonuq.graph.heads import Head, find_heads
from autonuq.graph.integers import grid_of
from autonuq.graph.layers import canonical_axis, infer_shapes
from autonuq.graph.lowering import lower
from autonuq.graph.model import FED_LAYERS, Array, Graph, Layer, Shape
from autonuq.quant.cores import one_blas_thread
from autonuq.quant.feedback import assign, assignment_bytes, build_feedback, targets_of
from autonuq.quant.paired import InputPairing, PairedInputs, samples_of
from autonuq.quant.points import OperatingPoints, pairs_of
from autonuq.runtime.inputs import first_images
from autonuq.runtime.integers import integer_plan
from autonuq.runtime.moments import InputPatches, is_observable, sum_of_items
from autonuq.runtime.program import source_layer
from autonuq.runtime.session import Session

_IN_MEMORY = 1 << 28  # bytes of a blob in all passes; larger ones go to temporary files


def is_buildable(graph: Graph) -> bool:
    """Say whether anything of a network can be built in order: whether not all of it depends on layers in Python."""
    return bool(find_heads(graph.with_layers(computable_layers(graph))))


@dataclass(frozen=True)
class Built:
    """What came of a plan.

    Attributes
    ----------
    candidate : Candidate
        With what its layers became.
    divergences : sequence of float
        From the original network, in each pass, in nats; infinite where results are not finite.
    """

    candidate: Candidate
    divergences: Sequence[float]

    def divergence(self, passes: Iterable[int]) -> float:
        """Return the mean over some passes."""
        return float(np.mean([self.divergences[index] for index in passes]))


class NetworkBuilder:
    """Builds plans of one network in order.

    Parameters
    ----------
    model : QuantizedModel
        Calibrated, of a graph that `is_buildable`.
    passes : sequence of mapping of str to ndarray of float32
        Input blobs of the calibration.
    learning : collection of int, optional
        The passes that layers are rounded against; all by default.

    Notes
    -----
    **Cost**: of a plan a forward pass over the inputs, and a factorization and an assignment a layer; of the first plan
    another forward pass, whose samples stay in a temporary file.
    """

    def __init__(
        self, model: QuantizedModel, passes: Sequence[Mapping[str, Array]], learning: Collection[int] | None = None
    ) -> None:
        whole = model.graph.with_layers(computable_layers(model.graph))
        heads = find_heads(whole)
        graph = whole.with_layers(_needed(whole, heads))
        last = {top: layer.name for layer in graph.layers for top in layer.tops}
        # What a layer in place makes of a head for another one is not that head.
        self._heads = [head for head in heads if last[head.blob] == whole.layers[head.value[0]].name]
        names = set(graph.by_name)
        self._model = model.leaving_float(model.factors.keys() - names)
        self._model = replace(self._model, graph=graph)
        self._behind, self._codecs = layers_behind_weights(model.graph), codecs_of(model)
        self.passes = passes
        self._learning = range(len(passes)) if learning is None else sorted(learning)
        self._stops = [name for name in self._model.weights if is_observable(graph.by_name[name])]

    @one_blas_thread()
    def build(self, candidate: Candidate) -> Built:
        """Build a plan's network; several threads may, if one has built before."""
        own = replace(candidate, model=self._model, points=self._of_ours(candidate.points), made={})
        quantized = _Flow(own.fake_quant_graph(), self._stops, self.passes, self._ends)
        made: dict[str, Made] = {}
        layer: Layer | None = None
        for name in self._stops:
            quantized.advance(layer)
            found = self._made(own, name, quantized)
            layer = quantized.layer
            if found is not None:
                made[name] = found
                blobs = replace(own, made={name: found}).blobs(self._model.graph.by_name[name])
                layer = layer.with_(blobs=blobs)
        quantized.advance(layer)
        divergences = [self._divergence(quantized, index) for index in range(len(self.passes))]
        return Built(replace(candidate, made=made), np.nan_to_num(divergences, nan=np.inf).tolist())

    @cached_property
    def build_bytes(self) -> float:
        """Memory that a build takes, about: of its widest layer the values in all passes, weights, and rounding one."""
        graph = self._model.graph
        shapes = infer_shapes(graph, {blob: values.shape for blob, values in self.passes[0].items()})
        blobs = {blob: min(4.0 * math.prod(shape) * len(self.passes), _IN_MEMORY) for blob, shape in shapes.items()}
        values = max(sum(blobs[blob] for blob in {*layer.bottoms, *layer.tops}) for layer in graph.layers)
        weights = sum(4.0 * blob.size for layer in graph.layers for blob in layer.blobs)
        layers = [self._rounding_bytes(graph.by_name[name], shapes) for name in self._stops]
        return values + 2 * weights + max(layers, default=0.0)

    def _rounding_bytes(self, layer: Layer, shapes: Mapping[str, Shape]) -> float:
        """Return about what a layer's inputs take, paired and factored, and an assignment."""
        outputs = int(layer.blobs[0].shape[layer.type == "Deconvolution"])
        columns = layer.blobs[0].size // outputs
        samples = samples_of(columns, len(self.passes) * math.prod(shapes[layer.tops[0]]) // outputs)
        carried = min(columns, samples)
        return 24.0 * columns * carried + assignment_bytes(outputs, columns, carried)

    def _divergence(self, quantized: _Flow, index: int) -> float:
        """Return how far a pass's results are from the original ones."""
        return sum(
            metric.divergence(self._original.results[metric.blob][index], quantized.values(metric.blob)[index])
            for metric in self._original.metrics
        )

    @cached_property
    def _ends(self) -> set[str]:
        return {head.blob for head in self._heads}

    @cached_property
    def _original(self) -> _Original:
        """What the original network makes of the inputs."""
        stream = tempfile.TemporaryFile(prefix="autonuq-")  # noqa: SIM115
        weakref.finalize(self, stream.close)
        file = _SharedFile(stream)
        flow = _Flow(self._model.graph, self._stops, self.passes, self._ends)
        met = {}
        for name in self._stops:
            flow.advance()
            layer = self._model.graph.by_name[name]
            if name in self._behind and len(layer.bottoms) == 1:
                met[name] = self._met(layer, flow.values(layer.bottoms[0]), _Kept(file))
        flow.advance()
        results = {blob: _Kept(file, flow.values(blob)) for blob in self._ends}
        return _Original(met, results, [_metric(head, results[head.blob]) for head in self._heads])

    def _met(self, layer: Layer, bottom: Sequence[Array], samples: _Kept) -> _Met:
        """Return what a layer's weights meet in the original network, samples where it can be rounded anew."""
        seen = [InputPatches(layer, bottom[index]).samples for index in self._learning]
        used = samples_of(layer.blobs[0][0].size, sum(seen))
        stops = [used * place // len(self._learning) for place in range(len(self._learning) + 1)]
        shares = [end - begin for begin, end in pairwise(stops)]
        with np.errstate(all="ignore"):  # what is not finite is looked at with each plan
            if layer.name in self._model.nuq_layers:
                samples.extend(self._samples(layer, bottom, shares))
            return _Met(self._mean(layer, bottom), shares, samples)

    def _samples(self, layer: Layer, bottom: Sequence[Array], shares: Sequence[int]) -> Iterator[Array]:
        """Yield samples of each pass that is learnt from, at the same places in every network."""
        for index, share in zip(self._learning, shares, strict=True):
            for chunk in InputPatches(layer, bottom[index]).patches(share, seed=index):
                yield chunk[0]

    def _of_ours(self, points: Mapping[str, OperatingPoints]) -> dict[str, OperatingPoints]:
        return {name: found for name, found in points.items() if name in self._model.weights}

    @np.errstate(all="ignore")  # what is not finite is looked at
    def _made(self, candidate: Candidate, name: str, quantized: _Flow) -> Made | None:
        """Return what a layer becomes; None: what it is."""
        layer, met = self._model.graph.by_name[name], self._original.met.get(name)
        points, kernel = candidate.points.get(name), layer.blobs[0]
        if met is None or points is None:
            return None
        has_bias = len(layer.blobs) > 1
        bottom = quantized.values(quantized.layer.bottoms[0])
        if points.prices is not None:
            inputs = self._paired(layer, met, bottom, has_bias)
            if not inputs.is_finite:
                return None
            codes = self._rounded(candidate, name, kernel, inputs)
        elif has_bias:
            codes = candidate.codes(name)
        else:
            return None
        if not has_bias:
            return Made(codes, None)
        means = met.mean, self._mean(layer, bottom)
        if not np.isfinite(means).all():
            return None
        weights = replace(candidate.weights(name), codes=codes).dequantize()
        lacking = _outputs(kernel, means[0], layer) - _outputs(weights, means[1], layer)
        bias = layer.blobs[1]
        return Made(codes, (bias + lacking.reshape(bias.shape)).astype(np.float32))

    def _rounded(self, candidate: Candidate, name: str, kernel: Array, inputs: PairedInputs) -> NDArray[np.int8]:
        points = candidate.points[name]
        codec = self._codecs[name]
        targets = targets_of(build_feedback(inputs.inputs, pairs_of(codec)), inputs.aims(), points.outputs)
        grid = points.grid(candidate.plan.get(name, 0), kernel, self._model.weights[name], codec)
        return assign(targets, grid).codes.reshape(kernel.shape)

    def _paired(self, layer: Layer, met: _Met, bottom: Sequence[Array], centred: bool) -> PairedInputs:
        pairing = InputPairing(layer.blobs[0].reshape(len(layer.blobs[0]), -1), sum(met.shares), centred)
        for own, other in zip(met.samples, self._samples(layer, bottom, met.shares), strict=True):
            pairing.add(own, other)
        return pairing.paired()

    def _mean(self, layer: Layer, passes: Sequence[Array]) -> NDArray[np.float64]:
        """Return the mean of what each group's weights meet, shape (groups, K)."""
        samples, sums = 0, dict[Shape, Array]()
        for index in self._learning:
            samples += InputPatches(layer, passes[index]).samples
            summed = sum_of_items(passes[index])
            sums[summed.shape] = sums[summed.shape] + summed if summed.shape in sums else summed
        return np.asarray(sum(InputPatches(layer, summed).total() for summed in sums.values()) / samples)


class _SharedFile:
    """A file that several threads read and lengthen.

    Parameters
    ----------
    stream : binary file
    """

    def __init__(self, stream: BufferedRandom) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def append(self, values: Array) -> int:
        """Write an array of float32 behind all others and return where it begins."""
        with self._lock:
            begin = self._stream.seek(0, os.SEEK_END)
            with writing(tempfile.gettempdir()):
                self._stream.write(np.ascontiguousarray(values, np.float32).data)
                self._stream.flush()
        return begin

    def read(self, begin: int, shape: Shape) -> Array:
        """Read an array."""
        values = np.empty(math.prod(shape), np.float32)
        with self._lock:
            self._stream.seek(begin)
            self._stream.readinto(values.data)
        return values.reshape(shape)


class _Kept(Sequence[Array]):
    """Arrays in a file, each read when it is asked for.

    Parameters
    ----------
    file : _SharedFile
        Others may use it, too.
    arrays : iterable of ndarray of float32
    """

    def __init__(self, file: _SharedFile, arrays: Iterable[Array] = ()) -> None:
        self._file = file
        self._places: list[tuple[int, Shape]] = []
        self.extend(arrays)

    def extend(self, arrays: Iterable[Array]) -> None:
        """Put more arrays behind the others."""
        for values in arrays:
            self._places.append((self._file.append(values), values.shape))

    def __len__(self) -> int:
        """Return the number of arrays."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | Sequence[Array]:
        """Read an array, or several."""
        if isinstance(index, slice):
            return [self[one] for one in range(len(self))[index]]
        return self._file.read(*self._places[index])


@dataclass(frozen=True)
class _Met:
    """What a layer's weights meet in the original network.

    Attributes
    ----------
    mean : ndarray of float64, shape (groups, K)
    shares : sequence of int
        Samples of each pass that is learnt from.
    samples : sequence of ndarray of float32, each of shape (some, K)
        None of a layer that keeps its codes.
    """

    mean: NDArray[np.float64]
    shares: Sequence[int]
    samples: Sequence[Array]


@dataclass(frozen=True)
class _Original:
    """What the original network makes of some inputs.

    Attributes
    ----------
    met : mapping of str to _Met
        By layer that can change.
    results : mapping of str to sequence of ndarray of float32
        By blob, in each pass.
    metrics : sequence of HeadMetric
        What tells how far other results are from them.
    """

    met: Mapping[str, _Met]
    results: Mapping[str, Sequence[Array]]
    metrics: Sequence[HeadMetric]


def affordable_passes(graph: Graph, passes: Sequence[Mapping[str, Array]], builds: int) -> list[Mapping[str, Array]]:
    """Return the first passes, at least one, on which so many networks are built with `BUDGET` multiplications."""
    images = BUDGET // max(1, builds * image_cost(graph, passes, 0))
    return first_images(passes, max(1, images))


def _metric(head: Head, passes: Sequence[Array]) -> HeadMetric:
    """Return the divergence at a head with these values in the original network."""
    if head.classes is not None:
        return SoftmaxMetric(head.blob, canonical_axis(head.classes, passes[0].ndim))
    spread = Spread()
    for values in passes:
        spread.add(values)
    return SquaresMetric(head.blob, spread.scale(passes[0].ndim))


def _needed(graph: Graph, heads: Iterable[Head]) -> list[Layer]:
    """Return the layers that some values are made by: one that works on a value in place is none of them."""
    wanted = {head.value[0] for head in heads}
    for index in reversed(range(len(graph.layers))):
        if index in wanted:
            wanted |= {maker for maker, _ in graph.sources[index]}
    return [layer for index, layer in enumerate(graph.layers) if index in wanted]


def _outputs(weights: Array, means: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Return what weights make of each group's mean input, shape (outputs,)."""
    if layer.type == "Deconvolution":
        weights = weights.swapaxes(0, 1)
    rows = weights.reshape(len(means), -1, means.shape[1])
    return np.asarray(np.einsum("grk,gk->gr", rows, means).ravel())


class _Flow:
    """A network's blobs in every pass, carried from one stop to the next.

    Parameters
    ----------
    graph : Graph
    stops : sequence of str
        Layers before which it stops, in the network's order.
    passes : sequence of mapping of str to ndarray of float32
        The network's inputs.
    wanted : collection of str
        Blobs that are kept to the end.
    """

    def __init__(
        self, graph: Graph, stops: Sequence[str], passes: Sequence[Mapping[str, Array]], wanted: Collection[str]
    ) -> None:
        self._graph, self._stops, self._plan = graph, stops, integer_plan(graph)
        self._quantizers = {layer.tops[0]: layer for layer in graph.layers if layer.type == "Quant"}
        self._parts: list[list[Layer]] = [[]]
        for layer in graph.layers:
            if layer.name in stops:
                self._parts.append([])
            if layer.type not in FED_LAYERS:
                self._parts[-1].append(layer)
        self._alive = list(_alive(self._parts, wanted))
        self._values = {blob: [one[blob] for one in passes] for blob in passes[0]}
        self._done = 0

    @property
    def layer(self) -> Layer:
        """The layer before which it stands."""
        return self._parts[self._done][0]

    def values(self, blob: str) -> Sequence[Array]:
        """Return a blob's value in each pass."""
        return self._values[blob]

    def advance(self, first: Layer | None = None) -> None:
        """Go on to the next stop, or to the end, with another first layer if there is one."""
        part, alive = self._parts[self._done], self._alive[self._done]
        layers = part if first is None else [first, *part[1:]]
        outputs = sorted({top for layer in layers for top in layer.tops} & alive)
        made = self._run(layers, outputs) if outputs else {}
        self._values = {blob: values for blob, values in (self._values | made).items() if blob in alive}
        self._done += 1

    def _run(self, layers: Sequence[Layer], outputs: Sequence[str]) -> dict[str, list[Array]]:
        inputs = _read(layers)
        # What stands on a grid is quantized once more, which changes nothing: so its readers find its codes.
        again = [self._quantizers[blob].with_(bottoms=[blob]) for blob in inputs if blob in self._quantizers]
        layers = [*again, *layers, *self._leaving(layers, outputs)]
        sessions: dict[tuple[Shape, ...], Session] = {}
        found: dict[str, list[Array]] = {blob: [] for blob in outputs}
        for index in range(len(next(iter(self._values.values())))):
            feeds = {blob: self._values[blob][index] for blob in inputs}
            shapes = tuple(values.shape for values in feeds.values())
            if shapes not in sessions:
                sources = [source_layer(blob, values.shape) for blob, values in feeds.items()]
                graph = self._graph.with_layers([*sources, *layers])
                sessions[shapes] = Session(lower(graph, outputs=outputs, plan=self._plan))
            for blob, values in sessions[shapes].run(feeds).items():
                found[blob].append(_stored(values, len(self._values[inputs[0]])))
        return found

    def _leaving(self, layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
        """Return Quant layers in place for blobs that only such layers will read: the network has them as codes."""
        if self._plan is None:
            return []
        grids = {
            top: self._plan.grids.get((layer.name, index)) for layer in layers for index, top in enumerate(layer.tops)
        }
        quantizers = {grid_of(layer): layer for layer in self._quantizers.values()}
        leaving = [blob for blob in outputs if blob not in self._quantizers and grids[blob] is not None]
        return [quantizers[grids[blob]].with_(bottoms=[blob], tops=[blob]) for blob in leaving]


def _stored(values: Array, passes: int) -> Array:
    """Return the values in a temporary file, if those of all passes are too many for the memory."""
    if values.nbytes * passes <= _IN_MEMORY:
        return values
    with writing(tempfile.gettempdir()), tempfile.TemporaryFile(prefix="autonuq-") as file:
        allocate(file, values.nbytes)
        mapped = np.memmap(file, np.float32, "w+", shape=values.shape)
    mapped[...] = values
    return mapped


def _read(layers: Sequence[Layer]) -> list[str]:
    """Return the blobs that some layers take from elsewhere."""
    made: set[str] = set()
    found: dict[str, None] = {}
    for layer in layers:
        found.update(dict.fromkeys(bottom for bottom in layer.bottoms if bottom not in made))
        made.update(layer.tops)
    return list(found)


def _alive(parts: Sequence[Sequence[Layer]], wanted: Collection[str]) -> list[set[str]]:
    """Return which blobs are read behind each part, or wanted at the end."""
    alive, found = set(wanted), []
    for layers in reversed(parts):
        found.append(set(alive))
        for layer in reversed(layers):
            alive -= set(layer.tops)
            alive |= set(layer.bottoms)
    return found[::-1]
