"""A drop-in for `caffe.Net`: the parts of pycaffe that evaluation scripts use.

One forward pass is one run of an onnxruntime session. Outputs are fetched at once; an intermediate blob is computed
when somebody looks at it, and fetched along with the outputs from then on.

Source: pycaffe (`_caffe.cpp`, `pycaffe.py`): argument orders, names, and what a forward pass returns.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from autonuq.errors import RuntimeFailure
from autonuq.graph.caffemodel import load_caffemodel, read_bytes
from autonuq.graph.files import attach_weights, parse_graph, write_caffemodel
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower, observed_blob
from autonuq.graph.model import TEST, Array, Graph, Shape
from autonuq.graph.record import Factors
from autonuq.runtime.calibration import OBSERVER_TYPES, Observer, update_record
from autonuq.runtime.device import selected_device
from autonuq.runtime.program import HostLayers, Program, has_host_layers, host_blobs
from autonuq.runtime.session import Session


@lru_cache(maxsize=16)
def _structure(text: bytes, path: Path, phase: int, level: int, stages: tuple[str, ...]) -> Graph:
    """Parse a prototxt once: every trial of a study brings the same one. A graph is never changed."""
    return parse_graph(text, path, phase=phase, level=level, stages=stages)


class Blob:
    """One blob: `data` is a float32 array that keeps its identity until the shape changes; made when looked at."""

    def __init__(self, runner: _Runner, name: str, shape: Shape) -> None:
        self._runner, self._name, self._shape = runner, name, tuple(shape)
        self._array: Array | None = None

    @property
    def _data(self) -> Array:
        if self._array is None:
            self._array = np.zeros(self._shape, np.float32)
        return self._array

    @property
    def data(self) -> Array:
        """The values; computed now if the last forward pass left them out."""
        values = self._runner.left_out(self._name)
        if values is not None:
            self.take(values)
        return self._data

    def take(self, values: Array) -> None:
        """Hold values that a pass made; their number may depend on the data."""
        self.reshape(*values.shape)
        np.copyto(self._data, values)

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        return self._shape

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self._shape)

    num = property(lambda self: self._legacy_shape(0))
    channels = property(lambda self: self._legacy_shape(1))
    height = property(lambda self: self._legacy_shape(2))
    width = property(lambda self: self._legacy_shape(3))

    def _legacy_shape(self, axis: int) -> int:
        return (*self.shape, 1, 1, 1, 1)[axis] if len(self._shape) <= 4 else self.shape[axis]

    def reshape(self, *dims: int) -> None:
        """Change the dimensions; `Net.reshape` or the next forward pass carries it on to the other blobs."""
        if tuple(dims) != self._shape:
            self._shape, self._array = tuple(dims), None


class Parameter:
    """One weight blob of a layer; `data` may be written, the next forward pass uses it."""

    def __init__(self, values: Array) -> None:
        self._values = values
        self.touched = False

    @property
    def data(self) -> Array:
        """The values, writable: a copy of the file's bytes is made the first time."""
        if not self.touched:
            self._values, self.touched = np.array(self._values), True
        return self._values

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        return self._values.shape

    @property
    def count(self) -> int:
        """Number of values."""
        return self._values.size


@dataclass(frozen=True)
class NetLayer:
    """One layer of `Net.layers`: its Caffe type and its weight blobs."""

    type: str
    blobs: list[Parameter]


@dataclass
class _Pass:
    """A forward pass whose intermediate blobs can still be computed."""

    feeds: dict[str, Array]
    first: int
    last: int
    pending: set[str]


class _Runner:
    """The sessions of a net and its last pass. Blobs refer to this and not to the net, so that both die at once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.host = HostLayers()
        self.shapes = tuple(graph.inputs.items())
        self.watched = host_blobs(graph)  # these are there anyway; and blobs that somebody looks at
        self.done: _Pass | None = None
        self._sessions: dict[tuple[object, ...], Session | Program] = {}

    def adopt(self, graph: Graph) -> None:
        """Go on with other weights."""
        self.graph, self.done = graph, None
        self._sessions.clear()

    def reshape(self, shapes: tuple[tuple[str, Shape], ...]) -> None:
        """Go on with other input shapes."""
        if shapes != self.shapes:
            self.shapes, self.done = shapes, None

    def session(
        self, first: int, last: int, outputs: tuple[str, ...], observe: bool, *, again: bool = False
    ) -> Session | Program:
        """Return the session of a range of layers; make it the first time."""
        key = (selected_device(), self.shapes, first, last, outputs, observe, again)
        if key in self._sessions:
            return self._sessions[key]
        if has_host_layers(self.graph):
            self._sessions[key] = Program(
                self.graph, self.host, outputs, first=first, last=last, observe=observe, again=again
            )
        else:
            lowered = lower(self.graph, dict(self.shapes), outputs=outputs, first=first, last=last, observe=observe)
            self._sessions[key] = Session(lowered)
        return self._sessions[key]

    def left_out(self, name: str) -> Array | None:
        """Compute a blob that the last pass left out, and watch it from now on."""
        if self.done is None or name not in self.done.pending:
            return None
        self.watched.add(name)
        session = self.session(self.done.first, self.done.last, (name,), False, again=True)
        values = session.run({blob: self.done.feeds[blob] for blob in session.inputs})
        self.done.pending.discard(name)
        return values[name]


class Net:
    """A network that can be run, with pycaffe's interface.

    Parameters
    ----------
    network_file : str or Path
        prototxt.
    *args
        `(weights, phase)`, `(phase,)`, `(phase, level, stages, weights)` or `(weights,)`, told apart by type as
        in pycaffe's two constructors.
    phase : {TRAIN, TEST}
        Only TEST can be executed.
    level, stages
        Caffe's NetState.
    weights : str or Path, optional
        caffemodel.

    Raises
    ------
    ModelError
        The files cannot be used.
    RuntimeFailure
        The phase is TRAIN.
    """

    def __init__(
        self,
        network_file: str | Path,
        *args: Any,
        phase: int = TEST,
        level: int = 0,
        stages: Sequence[str] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        given: dict[str, Any] = {"phase": phase, "level": level, "stages": stages, "weights": weights}
        if args and isinstance(args[0], (str, Path)):
            given["weights"], args = args[0], args[1:]
        given.update(zip(("phase", "level", "stages", "weights"), args, strict=False))
        phase, weights = given["phase"], given["weights"]
        if phase != TEST:
            raise RuntimeFailure("only nets in phase TEST can be executed", path=network_file)
        path = Path(network_file)
        graph = _structure(read_bytes(path), path, phase, given["level"], tuple(given["stages"] or ()))
        self._stored = None if weights is None else load_caffemodel(weights)
        self._runner = _Runner(graph if self._stored is None else attach_weights(graph, self._stored))
        self._observers = {
            layer.name: Observer(layer, self._graph.by_name)
            for layer in self._graph.layers
            if layer.type in OBSERVER_TYPES
        }
        self.blobs = OrderedDict(
            (name, Blob(self._runner, name, shape)) for name, shape in infer_shapes(self._graph).items()
        )
        self.params = OrderedDict(
            (layer.name, [Parameter(blob) for blob in layer.blobs]) for layer in self._graph.layers if layer.blobs
        )

    @property
    def _graph(self) -> Graph:
        return self._runner.graph

    @property
    def inputs(self) -> list[str]:
        """Names of the input blobs."""
        return list(self._graph.inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the blobs that no layer reads, in alphabetical order, as Caffe keeps them."""
        return sorted(self._graph.outputs)

    @property
    def _layer_names(self) -> list[str]:
        return [layer.name for layer in self._graph.layers]

    @property
    def layer_dict(self) -> OrderedDict[str, NetLayer]:
        """Layers by name."""
        return OrderedDict(
            (layer.name, NetLayer(layer.type, self.params.get(layer.name, []))) for layer in self._graph.layers
        )

    @property
    def layers(self) -> list[NetLayer]:
        """Layers in order, as `_layer_names` has them."""
        return list(self.layer_dict.values())

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """Bottoms of every layer."""
        return OrderedDict((layer.name, list(layer.bottoms)) for layer in self._graph.layers)

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """Tops of every layer."""
        return OrderedDict((layer.name, list(layer.tops)) for layer in self._graph.layers)

    def reshape(self) -> None:
        """Give every blob the shape that follows from the present input shapes."""
        self._runner.reshape(self._input_shapes())
        for name, shape in infer_shapes(self._graph, dict(self._runner.shapes)).items():
            self.blobs[name].reshape(*shape)

    def copy_from(self, weights: str | Path) -> None:
        """Load other weights."""
        self._stored = load_caffemodel(weights)
        self._runner.adopt(attach_weights(self._graph, self._stored))
        for layer in self._graph.layers:
            if layer.blobs:
                self.params[layer.name] = [Parameter(blob) for blob in layer.blobs]

    def save(self, path: str | Path) -> None:
        """Write the present weights as a caffemodel; what was not changed stays as the loaded file has it."""
        self._take_parameters()
        if self._stored is None:
            write_caffemodel(self._graph, path)
        else:
            blobs = {layer.name: layer.blobs for layer in self._graph.layers if layer.blobs}
            self._stored.write(path, {name: arrays for name, arrays in blobs.items() if name in self._stored})

    def forward(
        self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: Array
    ) -> dict[str, Array]:
        """Run the layers from `start` to `end`.

        Parameters
        ----------
        blobs : sequence of str, optional
            Blobs to return besides the outputs.
        start, end : str, optional
            Layer names, both included.
        **kwargs
            Input blobs by name; their shapes must be those of the blobs.

        Returns
        -------
        dict of str to ndarray
            Outputs (or the tops of `end`), then `blobs`; the arrays are those of `Net.blobs`.

        Raises
        ------
        Exception
            The inputs' names or batch sizes do not match (pycaffe's own type and words).
        """
        self._set_inputs(kwargs)
        names = self._layer_names
        first = names.index(start) if start is not None else 0
        last = names.index(end) if end is not None else len(names) - 1
        if self._input_shapes() != self._runner.shapes:
            self.reshape()
        self._take_parameters()
        results = self.top_names[end] if end is not None else self.outputs
        wanted = list(dict.fromkeys([*results, *(blobs or ())]))
        self._run(first, last, wanted)
        return {name: self.blobs[name].data for name in wanted}

    def forward_all(self, blobs: Sequence[str] | None = None, **kwargs: Array) -> dict[str, Array]:
        """Run inputs of any length in batches of the net's size and join the results."""
        count = len(next(iter(kwargs.values())))
        parts: dict[str, list[Array]] = {}
        for batch in self._batches(kwargs):
            for name, values in self.forward(blobs, None, None, **batch).items():
                parts.setdefault(name, []).append(values.copy())
        return {name: np.concatenate(values)[:count] for name, values in parts.items()}

    def _batches(self, inputs: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Cut inputs into batches, the last one filled up with zeros."""
        size = self.blobs[self.inputs[0]].shape[0]
        for begin in range(0, len(next(iter(inputs.values()))), size):
            batch = {}
            for name, values in inputs.items():
                part = np.asarray(values[begin : begin + size])
                missing = size - len(part)
                batch[name] = np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
            yield batch

    def _set_inputs(self, inputs: dict[str, Array]) -> None:
        if not inputs:
            return
        if set(inputs) != set(self.inputs):
            raise Exception("Input blob arguments do not match net inputs.")  # noqa: TRY002 - pycaffe's own
        for name, values in inputs.items():
            if np.shape(values)[0] != self.blobs[name].shape[0]:
                raise Exception("Input is not batch sized")  # noqa: TRY002 - pycaffe's own
            self.blobs[name].data[...] = values

    def _input_shapes(self) -> tuple[tuple[str, Shape], ...]:
        return tuple((name, self.blobs[name].shape) for name in self._graph.inputs)

    def _run(self, first: int, last: int, wanted: Sequence[str]) -> None:
        made = self._made(first, last)
        fetched = [name for name in dict.fromkeys([*wanted, *sorted(self._runner.watched)]) if name in made]
        observers = [
            self._observers[layer.name]
            for layer in self._graph.layers[first : last + 1]
            if layer.name in self._observers and not self._observers[layer.name].finished
        ]
        session = self._runner.session(first, last, tuple(fetched), bool(observers))
        feeds = {name: self.blobs[name].data.copy() for name in session.inputs}
        self._runner.host.begin()
        values = session.run(feeds)
        self._runner.done = _Pass(feeds, first, last, made - set(fetched))
        for name in fetched:
            self.blobs[name].take(values[name])
        self._calibrate(observers, values)

    def _made(self, first: int, last: int) -> set[str]:
        return {top for layer in self._graph.layers[first : last + 1] if layer.type != "Input" for top in layer.tops}

    def _calibrate(self, observers: Sequence[Observer], values: dict[str, Array]) -> None:
        """Let the observers see a pass; what they find goes to each record file at once: it is long to read."""
        found: dict[Path, dict[str, Factors]] = {}
        for observer in observers:
            name, count = observer.layer.name, len(observer.layer.bottoms)
            factors = observer.observe([values[observed_blob(name, index)] for index in range(count)])
            found.setdefault(observer.record_file, {}).update(factors or {})
        for path, of_layers in found.items():
            if of_layers:
                update_record(path, of_layers)

    def _take_parameters(self) -> None:
        """Adopt weights that somebody wrote through `params`."""
        layers = []
        for layer in self._graph.layers:
            parameters = self.params.get(layer.name, [])
            changed = any(
                parameter.touched and not np.array_equal(parameter.data, blob)
                for parameter, blob in zip(parameters, layer.blobs, strict=False)
            )
            layers.append(layer.with_(blobs=[p.data.copy() for p in parameters]) if changed else layer)
        if any(new is not old for new, old in zip(layers, self._graph.layers, strict=True)):
            self._runner.adopt(self._graph.with_layers(layers))
