"""A network with layers that run in Python: parts that the engine executes, those layers in between.

A part is lowered as a network of its own, for the shapes that its inputs have when it runs, because how many boxes a
detector finds depends on the data. Networks without such layers never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby

from autonuq.graph import caffe_pb2
from autonuq.graph.hosted import HOST_LAYERS, HostLayer
from autonuq.graph.hosted.registry import raised_by
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.lowering import Lowered, lower
from autonuq.graph.model import FED_LAYERS, Array, Graph, Layer, Shape
from autonuq.runtime.calibration import OBSERVER_TYPES
from autonuq.runtime.limits import refuse_pass
from autonuq.runtime.session import Session

_MAX_SHAPES = 8  # sessions of one part that are kept


def has_host_layers(graph: Graph) -> bool:
    """Say whether a graph needs a `Program`."""
    return any(layer.type in HOST_LAYERS for layer in graph.layers)


def host_blobs(graph: Graph) -> set[str]:
    """Return the blobs that layers in Python make: the data may decide their shapes."""
    return {top for layer in graph.layers if layer.type in HOST_LAYERS for top in layer.tops}


class HostLayers:
    """The layers of one net that run in Python, and what they made in the last pass."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[Layer, HostLayer]] = {}
        self._made: dict[int, list[Array]] = {}

    def begin(self) -> None:
        """Start a pass."""
        self._made.clear()

    def run(self, index: int, layer: Layer, bottoms: Callable[[], list[Array]]) -> list[Array]:
        """Return the tops of a layer: each runs once a pass, however many programs ask."""
        if index not in self._made:
            if index not in self._running or self._running[index][0] is not layer:
                self._running[index] = (layer, HOST_LAYERS[layer.type](layer))
            with raised_by(layer):
                tops = list(self._running[index][1](*bottoms()))
                if len(tops) < len(layer.tops):
                    raise ValueError(f"it made {len(tops)} tops instead of {len(layer.tops)}")
            self._made[index] = tops
        return self._made[index]


@dataclass
class _Part:
    """Layers that the engine executes in one go, and what is read of them."""

    layers: list[Layer]
    outputs: tuple[str, ...]
    sessions: dict[tuple[Shape, ...], Session] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> list[str]:
        """Blobs that come from elsewhere."""
        made: set[str] = set()
        found: dict[str, None] = {}
        for layer in self.layers:
            found.update(dict.fromkeys(bottom for bottom in layer.bottoms if bottom not in made))
            made.update(layer.tops)
        return list(found)


class Program:
    """Executes a range of a graph's layers; the interface is that of `Session`.

    Parameters
    ----------
    graph : Graph
    host : HostLayers
        State of those layers, shared by the programs of a net.
    outputs : sequence of str
        Blobs that are wanted.
    first, last : int
        Indices into `graph.layers`, `last` included.
    observe : bool
        Also put out what the calibration layers read.
    again : bool
        The pass is over: layers that run in Python do not run again.
    plan : IntegerPlan, optional
        What of the graph runs in integers.
    make_session : callable
        Makes a session of a lowered part.
    """

    def __init__(
        self,
        graph: Graph,
        host: HostLayers,
        outputs: Sequence[str],
        *,
        first: int,
        last: int,
        observe: bool,
        again: bool,
        plan: IntegerPlan | None = None,
        make_session: Callable[[Lowered], Session] = Session,
    ) -> None:
        self._graph, self._host, self._observe, self._make_session = graph, host, observe, make_session
        self._plan = plan
        self._outputs = tuple(outputs)
        kept, needs = _needed(graph, outputs, first, last, observe, again)
        self.inputs = sorted(needs[0])
        self._steps = list(_steps(graph, kept, needs))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Execute; see `Session.run`. What calibration layers read comes along under `observed_blob`.

        Raises
        ------
        RuntimeFailure
            The engine failed, or a layer that runs in Python raised.
        """
        values = dict(feeds)
        observed: dict[str, Array] = {}
        for step in self._steps:
            if isinstance(step, int):
                layer = self._graph.layers[step]
                tops = self._host.run(step, layer, partial(_picked, values, layer.bottoms))
                values.update(zip(layer.tops, tops, strict=False))
            else:
                made = self._session(step, values).run({name: values[name] for name in step.inputs})
                values.update({name: made[name] for name in step.outputs})
                observed.update({name: array for name, array in made.items() if name not in values})
        return {name: values[name] for name in self._outputs} | observed

    def _session(self, part: _Part, values: Mapping[str, Array]) -> Session:
        inputs = part.inputs
        shapes = tuple(values[name].shape for name in inputs)
        if shapes not in part.sessions:
            sources = [source_layer(name, shape) for name, shape in zip(inputs, shapes, strict=True)]
            graph = self._graph.with_layers([*sources, *part.layers])
            refuse_pass(graph)
            if len(part.sessions) >= _MAX_SHAPES:
                part.sessions.pop(next(iter(part.sessions)))
            lowered = lower(graph, outputs=part.outputs, observe=self._observe, plan=self._plan)
            part.sessions[shapes] = self._make_session(lowered)
        return part.sessions[shapes]


def _picked(values: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    return [values[name] for name in names]


def source_layer(name: str, shape: Shape) -> Layer:
    """Return the layer that stands for what a part of a network is fed with."""
    message = caffe_pb2.LayerParameter(name=f"input {name}", type="Input", top=[name])
    message.input_param.shape.add().dim.extend(shape)
    return Layer(message)


def _needed(
    graph: Graph, outputs: Sequence[str], first: int, last: int, observe: bool, again: bool
) -> tuple[list[int], dict[int, set[str]]]:
    """Return the layers to run, and which blobs are needed before each of them (key 0: before all of them)."""
    wanted = set(outputs)
    kept: list[int] = []
    needs: dict[int, set[str]] = {len(graph.layers): set(wanted)}
    for index in range(last, first - 1, -1):
        layer = graph.layers[index]
        is_host = layer.type in HOST_LAYERS
        acts = is_host and not again or observe and layer.type in OBSERVER_TYPES
        if layer.type in FED_LAYERS or not (acts or wanted.intersection(layer.tops)):
            continue
        wanted -= set(layer.tops)
        if not (is_host and again):
            wanted |= set(layer.bottoms)
        kept.insert(0, index)
        needs[index] = set(wanted)
    needs[0] = set(wanted)
    return kept, needs


def _steps(graph: Graph, kept: Sequence[int], needs: Mapping[int, set[str]]) -> Iterator[int | _Part]:
    """Join neighbours that the engine executes; a layer that runs in Python stays an index."""
    following = dict(zip(kept, [*kept[1:], len(graph.layers)], strict=True))
    for is_host, indices in groupby(kept, lambda index: graph.layers[index].type in HOST_LAYERS):
        if is_host:
            yield from indices
            continue
        run = list(indices)
        layers = [graph.layers[index] for index in run]
        made = {top for layer in layers for top in layer.tops}
        yield _Part(layers, tuple(sorted(made & needs[following[run[-1]]])))
