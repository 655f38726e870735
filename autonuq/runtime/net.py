"""A drop-in for `caffe.Net`: the parts of pycaffe that evaluation scripts use.

One forward pass is one run of an onnxruntime session. Outputs are fetched at once; an intermediate blob is computed
when somebody looks at it, and fetched along with the outputs from then on.

Source: pycaffe (`_caffe.cpp`, `pycaffe.py`): argument orders, names, and what a forward pass returns.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from autonuq.errors import RuntimeFailure
from autonuq.graph.caffemodel import Caffemodel, load_caffemodel, read_bytes
from autonuq.graph.deployed import bias_units, in_float, is_deployed
from autonuq.graph.extent import Extent, checked_sizes
from autonuq.graph.files import attach_weights, fill_weights, parse_graph, stored_names, write_caffemodel
from autonuq.graph.integers import IntegerPlan
from autonuq.graph.layers import infer_shapes
from autonuq.graph.lowering import lower, observed_blob
from autonuq.graph.model import FED_LAYERS, TEST, Array, Graph, Layer, Shape
from autonuq.graph.record import Factors
from autonuq.runtime.calibration import OBSERVER_TYPES, Observer, update_record
from autonuq.runtime.device import Device, selected_device
from autonuq.runtime.inputs import InputKeeper
from autonuq.runtime.integers import integer_plan
from autonuq.runtime.limits import refuse_blob, refuse_pass, refuse_weights
from autonuq.runtime.memory_data import MemoryData
from autonuq.runtime.program import HostLayers, Program, has_host_layers, host_blobs
from autonuq.runtime.seed import random_generator
from autonuq.runtime.session import Session

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@lru_cache(maxsize=16)
def _structure(text: bytes, path: Path, phase: int, level: int, stages: tuple[str, ...]) -> Graph:
    """Parse a prototxt once: every trial of a study brings the same one. A graph is never changed."""
    return parse_graph(text, path, phase=phase, level=level, stages=stages)


def refuse_to_train(*_args: object, **_kwargs: object) -> None:
    """Raise the RuntimeFailure of everything in pycaffe that trains."""
    raise RuntimeFailure("networks are executed here, not trained: there is no solver and no backward pass; use Caffe")


class Blob(Extent):
    """One blob: `data` is a float32 array that keeps its identity until the shape changes; made when looked at."""

    def __init__(self, runner: _Runner, name: str, shape: Shape) -> None:
        self._runner, self._name, self._shape = runner, name, tuple(shape)
        self._array: Array | None = None

    @property
    def _data(self) -> Array:
        if self._array is None:
            refuse_blob(self._name, self._shape)
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
        self.resize(values.shape)
        np.copyto(self._data, values)

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        return self._shape

    def reshape(self, *dims: int) -> None:
        """Change the dimensions; `Net.reshape` or the next forward pass carries it on to the other blobs.

        Raises
        ------
        TypeError, ValueError
            They are no positive whole numbers.
        """
        self.resize(checked_sizes(dims))

    def resize(self, shape: Shape) -> None:
        """Take a shape that is known to be one; a pass may make blobs without values."""
        if shape != self._shape:
            self._shape, self._array = shape, None


class Parameter(Extent):
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

    def reshape(self, *dims: int) -> None:
        """Change the dimensions: as many values as fit stay, others are 0. The layer must be made for such weights.

        Raises
        ------
        TypeError, ValueError
            They are no positive whole numbers.
        """
        shape = checked_sizes(dims)
        values = np.zeros(math.prod(shape), np.float32)
        kept = self._values.reshape(-1)[: values.size]
        values[: kept.size] = kept
        self._values, self.touched = values.reshape(shape), True


def _filled(graph: Graph) -> Graph:
    """Return a network with the weights that its fillers make."""
    refuse_weights(graph)
    return fill_weights(graph, random_generator())


def _parameters(graph: Graph) -> list[list[Parameter]]:
    """Return every layer's blobs; layers that share one have the same."""
    made: dict[tuple[int, Shape], Parameter] = {}
    return [
        [made.setdefault((blob.__array_interface__["data"][0], blob.shape), Parameter(blob)) for blob in layer.blobs]
        for layer in graph.layers
    ]


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
        self._blobs_made: dict[tuple[int, int], frozenset[str]] = {}
        self._plans: dict[Device, IntegerPlan | None] = {}

    @property
    def plan(self) -> IntegerPlan | None:
        """What runs in integers."""
        device = selected_device()
        if device not in self._plans:
            self._plans[device] = integer_plan(self.graph)
        return self._plans[device]

    def adopt(self, graph: Graph) -> None:
        """Go on with other weights."""
        self.graph, self.done = graph, None
        self._sessions.clear()
        self._plans.clear()

    def reshape(self, shapes: tuple[tuple[str, Shape], ...]) -> None:
        """Go on with other input shapes."""
        if shapes != self.shapes:
            self.shapes, self.done = shapes, None

    def made(self, first: int, last: int) -> frozenset[str]:
        """Return the blobs that a range of layers calculates; found once, for weights do not matter."""
        if (first, last) not in self._blobs_made:
            layers = [layer for layer in self.graph.layers[first : last + 1] if layer.type not in FED_LAYERS]
            self._blobs_made[first, last] = frozenset(top for layer in layers for top in layer.tops)
        return self._blobs_made[first, last]

    def session(
        self, first: int, last: int, outputs: tuple[str, ...], observe: bool, *, again: bool = False
    ) -> Session | Program:
        """Return the session of a range of layers; make it the first time."""
        key = (selected_device(), self.shapes, first, last, outputs, observe, again)
        if key in self._sessions:
            return self._sessions[key]
        refuse_pass(self.graph, dict(self.shapes))
        if has_host_layers(self.graph):
            self._sessions[key] = Program(
                self.graph, self.host, outputs, first=first, last=last, observe=observe, again=again, plan=self.plan
            )
        else:
            lowered = lower(
                self.graph,
                dict(self.shapes),
                outputs=outputs,
                first=first,
                last=last,
                observe=observe,
                plan=self.plan,
            )
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
        caffemodel, of a deploy pair too: that one runs with its int8 weights and int32 biases, as on the chip, and
        `params` holds the float32 values that they stand for. Without a file the blobs hold what the fillers make;
        `caffe.set_random_seed` seeds the random ones.

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
        self._stored: Caffemodel | None = None  # the file that `save` keeps as it is
        self._runner = _Runner(_filled(graph) if weights is None else self._loaded(graph, weights))
        self._observers = {
            index: Observer(layer, self._graph.by_name)
            for index, layer in enumerate(self._graph.layers)
            if layer.type in OBSERVER_TYPES
        }
        self._memory_data = {
            index: MemoryData(layer) for index, layer in enumerate(graph.layers) if layer.type == "MemoryData"
        }
        self._input_keeper = InputKeeper(observer.record_file for observer in self._observers.values())
        self.blobs = OrderedDict(
            (name, Blob(self._runner, name, shape)) for name, shape in infer_shapes(self._graph).items()
        )
        self._parameters = _parameters(self._graph)
        self.params = self._by_caffe_name(
            (layer, found) for layer, found in zip(self._graph.layers, self._parameters, strict=True) if found
        )

    def _loaded(self, graph: Graph, weights: str | Path) -> Graph:
        """Return the graph with a file's weights; those of a deploy pair as the float32 values that they stand for."""
        self._stored = load_caffemodel(weights)
        attached = attach_weights(graph, self._stored)
        if not is_deployed(attached):
            return attached
        self._stored = None  # what `save` writes are float32 weights
        floats = in_float(attached)
        name, unit = max(bias_units(floats).items(), key=itemgetter(1), default=("", 0.0))
        _log.info(
            "%s is a deploy pair: it runs with int8 weights and int32 biases, as on the chip; against the fake-quant "
            "pair a bias is off by at most half a unit of its layer's sums, %.3g in layer '%s'",
            weights,
            unit / 2,
            name,
        )
        return floats

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
        return [layer.caffe_name for layer in self._graph.layers]

    def _by_caffe_name(self, values: Iterable[tuple[Layer, _T]]) -> OrderedDict[str, _T]:
        """Return something of layers by Caffe's names; of two layers of a name the last one counts, as in pycaffe."""
        return OrderedDict((layer.caffe_name, value) for layer, value in values)

    @property
    def _blob_names(self) -> list[str]:
        return list(self.blobs)

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    def _blob_ids(self, names: Iterable[str]) -> list[int]:
        """Return the places of blobs in `_blob_names`."""
        ids = {name: index for index, name in enumerate(self.blobs)}
        return [ids[name] for name in names]

    @property
    def _inputs(self) -> list[int]:
        return self._blob_ids(self.inputs)

    @property
    def _outputs(self) -> list[int]:
        return self._blob_ids(self.outputs)

    def _bottom_ids(self, layer: int) -> list[int]:
        return self._blob_ids(self._graph.layers[layer].bottoms)

    def _top_ids(self, layer: int) -> list[int]:
        return self._blob_ids(self._graph.layers[layer].tops)

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """What every blob counts in a sum of losses: 1 for a loss, unless its layer says otherwise."""
        weights = OrderedDict.fromkeys(self.blobs, 0.0)
        for layer in self._graph.layers:
            given = list(layer.message.loss_weight) or ([1.0] if layer.type.endswith("Loss") else [])
            weights.update(zip(layer.tops, given, strict=False))
        return weights

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def layer_dict(self) -> OrderedDict[str, NetLayer]:
        """Layers by name."""
        return self._by_caffe_name(zip(self._graph.layers, self.layers, strict=True))

    @property
    def layers(self) -> list[NetLayer]:
        """Layers in order, as `_layer_names` has them."""
        return [NetLayer(layer.type, found) for layer, found in zip(self._graph.layers, self._parameters, strict=True)]

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """Bottoms of every layer."""
        return self._by_caffe_name((layer, list(layer.bottoms)) for layer in self._graph.layers)

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """Tops of every layer."""
        return self._by_caffe_name((layer, list(layer.tops)) for layer in self._graph.layers)

    def reshape(self) -> None:
        """Give every blob the shape that follows from the present input shapes.

        Raises
        ------
        ModelError
            A layer cannot take such an input; nothing has changed.
        """
        inputs = self._input_shapes()
        shapes = infer_shapes(self._graph, dict(inputs))
        self._runner.reshape(inputs)
        for name, shape in shapes.items():
            self.blobs[name].resize(shape)

    def copy_from(self, weights: str | Path) -> None:
        """Load other weights; a layer that the file lacks keeps its own."""
        self._take_parameters()
        self._runner.adopt(self._loaded(self._graph, weights))
        for parameters, loaded in zip(self._parameters, _parameters(self._graph), strict=True):
            parameters[:] = loaded

    def share_with(self, other: Net) -> None:
        """Use the parameters of another net wherever layers have the same name; what one writes, both have."""
        other._take_parameters()
        theirs = other._graph.by_name
        self._runner.adopt(
            self._graph.with_layers(
                layer.with_(blobs=theirs[layer.name].blobs) if layer.blobs and layer.name in theirs else layer
                for layer in self._graph.layers
            )
        )
        for name, parameters in self.params.items():
            parameters[:] = other.params.get(name, parameters)

    def set_input_arrays(self, data: Array, labels: Array) -> None:
        """Give the first layer, a MemoryData, its items; every forward pass takes the next batch.

        Parameters
        ----------
        data : ndarray of float32, shape (n, channels, height, width)
            C-contiguous, sizes as in the prototxt; `n` is a multiple of its batch_size.
        labels : ndarray of float32, shape (n,) or (n, 1, 1, 1)

        Raises
        ------
        ValueError
            An array does not fit.
        RuntimeFailure
            The first layer is of another type.
        """
        if 0 not in self._memory_data:
            raise RuntimeFailure("set_input_arrays may only be called if the first layer is a MemoryData layer")
        self._memory_data[0].set(data, labels)

    def save(self, path: str | Path) -> None:
        """Write the present weights as a caffemodel; what was not changed stays as the loaded file has it."""
        self._take_parameters()
        with_blobs = {layer.name: layer.blobs for layer in self._graph.layers if layer.blobs}
        names = {} if self._stored is None else stored_names(self._graph, self._stored)
        if self._stored is None or names.keys() != with_blobs.keys():
            write_caffemodel(self._graph, path)
        else:
            self._stored.write(path, {names[name]: blobs for name, blobs in with_blobs.items()})

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
        first = self._layer_names.index(start) if start is not None else 0
        last = self._layer_names.index(end) if end is not None else len(self._graph.layers) - 1
        if self._input_shapes() != self._runner.shapes:
            self.reshape()
        self._take_parameters()
        results = self._graph.layers[last].tops if end is not None else self.outputs
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

    def backward(self, *_args: object, **_kwargs: object) -> None:
        """Refuse: there is no training here."""
        refuse_to_train()

    forward_backward_all = backward

    def _batches(self, inputs: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Cut inputs into batches, the last one filled up with zeros."""
        size = self.blobs[self.inputs[0]].shape[0]
        for begin in range(0, len(next(iter(inputs.values()))), size):
            batch = {}
            for name, values in inputs.items():
                part = np.asarray(values[begin : begin + size])
                missing = size - len(part)
                refuse_blob(name, (size, *part.shape[1:]))
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
        made = self._runner.made(first, last)
        fetched = [name for name in dict.fromkeys([*wanted, *sorted(self._runner.watched)]) if name in made]
        observers = [
            observer for index, observer in self._observers.items() if first <= index <= last and not observer.finished
        ]
        self._take_batches(first, last)
        session = self._runner.session(first, last, tuple(fetched), bool(observers))
        feeds = {name: self.blobs[name].data.copy() for name in session.inputs}
        if observers and feeds.keys() == self._graph.inputs.keys():  # not where a pass begins in the middle
            self._input_keeper.keep(feeds)
        self._runner.host.begin()
        values = session.run(feeds)
        self._runner.done = _Pass(feeds, first, last, set(made.difference(fetched)))
        for name in fetched:
            self.blobs[name].take(values[name])
        self._calibrate(observers, values)

    def _take_batches(self, first: int, last: int) -> None:
        """Let the MemoryData layers of the range put out their next batch."""
        for index, source in self._memory_data.items():
            if first <= index <= last:
                for top, values in zip(self._graph.layers[index].tops, source.next_batch(), strict=True):
                    self.blobs[top].take(values)

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
        """Adopt weights that somebody wrote through `params`; where nobody looked at one, this takes no time."""
        if not any(map(attrgetter("touched"), chain.from_iterable(self._parameters))):
            return
        layers = []
        for layer, parameters in zip(self._graph.layers, self._parameters, strict=True):
            changed = any(
                parameter.touched and not np.array_equal(parameter.data, blob)
                for parameter, blob in zip(parameters, layer.blobs, strict=False)
            )
            layers.append(layer.with_(blobs=[p.data.copy() for p in parameters]) if changed else layer)
        if any(new is not old for new, old in zip(layers, self._graph.layers, strict=True)):
            self._runner.adopt(self._graph.with_layers(layers))
