"""What a Caffe network is to the rest of autonuq: layers in order, each with its parameters and its blobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2

Shape = tuple[int, ...]
Array = NDArray[Any]
Value = tuple[int, int]

TRAIN, TEST = 0, 1
MAX_AXES = 32  # Caffe's kMaxBlobAxes
MAX_ELEMENTS = 2**31 - 1  # Caffe's Blob::Reshape refuses more
DATA_LAYERS = frozenset({"Data", "ImageData", "HDF5Data", "WindowData", "AnnotatedData"})
FED_LAYERS = frozenset({"Input", "MemoryData"})  # a script hands over what they put out


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes
    ----------
    message : caffe_pb2.LayerParameter
        Its parameters in today's format, without blobs. Never changed in place: see `with_`.
    blobs : tuple of ndarray
        Its weights: float32, or int8, int32 and uint64 in a deploy model.
    given_name : str or None
        Its name in the file where that is not its own: see `named_layers`.
    """

    message: caffe_pb2.LayerParameter
    blobs: tuple[Array, ...] = ()
    given_name: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Its name, which no other layer of the graph has."""
        return self.message.name

    @property
    def caffe_name(self) -> str:
        """Caffe's layer name: others may have the same, or it may be empty."""
        return self.name if self.given_name is None else self.given_name

    @property
    def type(self) -> str:
        """Caffe's type name."""
        return self.message.type

    @property
    def bottoms(self) -> tuple[str, ...]:
        """Names of the blobs that are read."""
        return tuple(self.message.bottom)

    @property
    def tops(self) -> tuple[str, ...]:
        """Names of the blobs that are written."""
        return tuple(self.message.top)

    def with_(
        self,
        *,
        bottoms: Sequence[str] | None = None,
        tops: Sequence[str] | None = None,
        blobs: Iterable[Array] | None = None,
        bias_term: bool | None = None,
    ) -> Layer:
        """Return a copy with other bottoms, tops, blobs or bias term."""
        if bottoms is None and tops is None and bias_term is None:
            return replace(self, blobs=self.blobs if blobs is None else tuple(blobs))
        message = caffe_pb2.LayerParameter()
        message.CopyFrom(self.message)
        if bottoms is not None:
            message.bottom[:] = bottoms
        if tops is not None:
            message.top[:] = tops
        if bias_term is not None:
            weight_parameters(message).bias_term = bias_term
        return Layer(message, self.blobs if blobs is None else tuple(blobs), self.given_name)


def named_layers(messages: Sequence[caffe_pb2.LayerParameter]) -> tuple[Layer, ...]:
    """Make the layers of a graph from those of a file, in which layers may share a name or have none.

    Notes
    -----
    Caffe has no rule about names. Here they tell layers apart: the first layer of a name keeps it, the others get a
    number (`relu`, `relu#2`), those without a name are called after their type. Files are written with these names.
    """
    taken = {message.name for message in messages}
    used: set[str] = set()
    numbers: Counter[str] = Counter()
    layers = []
    for message in messages:
        before = message.name
        if not before or before in used:
            message.name = _free_name(message.name or message.type, taken, numbers)
        used.add(message.name)
        taken.add(message.name)
        layers.append(Layer(message, (), None if message.name == before else before))
    return tuple(layers)


def _free_name(base: str, taken: Collection[str], numbers: Counter[str]) -> str:
    """Return a name that nobody has; `numbers` holds how many were tried of each base, so that none is tried twice."""
    name = base
    while not name or name in taken:
        numbers[base] += 1
        name = f"{base}#{numbers[base] + 1}"
    return name


def weight_parameters(
    message: caffe_pb2.LayerParameter,
) -> caffe_pb2.ConvolutionParameter | caffe_pb2.InnerProductParameter:
    """Return the part of a Convolution, Deconvolution or InnerProduct layer that holds `bias_term`."""
    return message.inner_product_param if message.type == "InnerProduct" else message.convolution_param


@dataclass(frozen=True)
class Graph:
    """A network in execution order.

    Attributes
    ----------
    name : str
    layers : tuple of Layer
        Inputs first: every old spelling of an input is an `Input` layer here.
    path : Path or None
        The prototxt it came from, for messages.
    """

    name: str
    layers: tuple[Layer, ...]
    path: Path | None = field(default=None, compare=False)

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def inputs(self) -> Mapping[str, Shape]:
        """Input blobs with the shapes that the prototxt gives them."""
        return {
            top: tuple(shape.dim)
            for layer in self.layers
            if layer.type == "Input"
            for top, shape in zip(layer.tops, _input_shapes(layer), strict=True)
        }

    @cached_property
    def known_shapes(self) -> dict[tuple[tuple[str, Shape], ...], dict[str, Shape]]:
        """What `infer_shapes` found, by the shapes of inputs that it was given: a net asks for them again and again."""
        return {}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that no later layer reads, in the order in which they are made."""
        unread: dict[str, None] = {}
        for layer in self.layers:
            for bottom in layer.bottoms:
                unread.pop(bottom, None)
            unread.update(dict.fromkeys(layer.tops))
        return tuple(unread)

    @cached_property
    def sources(self) -> tuple[tuple[Value, ...], ...]:
        """For every layer, which value each bottom reads: (index of the layer that made it, index of its top).

        Blob names do not tell: a layer that works in place makes a new value under the old name.
        """
        present: dict[str, Value] = {}
        result = []
        for index, layer in enumerate(self.layers):
            result.append(tuple(present[bottom] for bottom in layer.bottoms))
            present.update({top: (index, position) for position, top in enumerate(layer.tops)})
        return tuple(result)

    @cached_property
    def readers(self) -> Mapping[Value, tuple[int, ...]]:
        """For every value that is read, the indices of the layers that read it."""
        found: dict[Value, list[int]] = {}
        for index, values in enumerate(self.sources):
            for value in values:
                found.setdefault(value, []).append(index)
        return {value: tuple(indices) for value, indices in found.items()}

    def error(self, layer: Layer | str | None, message: str) -> ModelError:
        """Make a ModelError that names this graph's file and the layer."""
        name = layer.name if isinstance(layer, Layer) else layer
        return ModelError(message, path=self.path, layer=name)

    def with_layers(self, layers: Iterable[Layer]) -> Graph:
        """Return a graph with other layers."""
        return replace(self, layers=tuple(layers))

    def validate(self) -> Graph:
        """Check the structure and return the graph itself.

        Raises
        ------
        ModelError
            A name is missing or used twice, a bottom is read before any layer makes it, a top is made twice
            (in place excepted), an input has no usable shape, or data layers stand where inputs are needed.
        """
        names: set[str] = set()
        made: set[str] = set()
        for layer in self.layers:
            if not layer.name or not layer.type:
                raise self.error(layer.caffe_name, "every layer needs a name and a type")
            if layer.name in names:
                raise self.error(layer, "a second layer has this name; layer names must be unique")
            names.add(layer.name)
            if layer.type in DATA_LAYERS:
                raise self.error(
                    layer,
                    f"type '{layer.type}' reads a data set: this is a training prototxt; use the deploy one, which has "
                    "an Input layer",
                )
            if layer.type == "Input":
                _check_input(self, layer)
            for bottom in layer.bottoms:
                if bottom not in made:
                    raise self._missing(layer, bottom)
            for index, top in enumerate(layer.tops):
                in_place = index < len(layer.bottoms) and layer.bottoms[index] == top
                if top in made and not in_place:
                    raise self.error(layer, f"makes blob '{top}', which another layer made already")
                made.add(top)
        if not self.inputs and not any(layer.tops and not layer.bottoms for layer in self.layers):
            raise self.error(None, "has no input: neither an Input layer nor 'input' with 'input_shape'")
        return self

    def _missing(self, reader: Layer, bottom: str) -> ModelError:
        """Say why a blob is not there when a layer reads it."""
        message = f"reads blob '{bottom}', which no layer before it makes"
        makers = [layer.name for layer in self.layers if bottom in layer.tops]
        if makers:
            what = "it makes it itself" if reader.name in makers else f"layer '{makers[0]}' makes it later"
            message += f" ({what}: a cycle or the wrong order)"
        return self.error(reader, message)


def _input_shapes(layer: Layer) -> list[caffe_pb2.BlobShape]:
    """Return one shape a top: Caffe lets one shape stand for all tops."""
    shapes = list(layer.message.input_param.shape)
    return shapes * len(layer.tops) if len(shapes) == 1 else shapes


def _check_input(graph: Graph, layer: Layer) -> None:
    shapes = _input_shapes(layer)
    if len(shapes) != len(layer.tops):
        raise graph.error(layer, f"has {len(layer.tops)} tops but {len(shapes)} shapes")
    for top, shape in zip(layer.tops, shapes, strict=True):
        if not 1 <= len(shape.dim) <= MAX_AXES:
            raise graph.error(layer, f"input '{top}' has {len(shape.dim)} dimensions; it needs 1 to {MAX_AXES}")
        if any(not 0 < dim < 2**31 for dim in shape.dim):
            raise graph.error(
                layer, f"input '{top}' has shape {list(shape.dim)}; every dimension must be positive and below 2**31"
            )
