"""The base of all built-in evaluators: images through a network, something kept of its outputs, a score for each image.

It reads and transforms images, runs networks and says whether the data are still the same. What is looked at and how
it is scored is a kind's: `find_ends` chooses blobs, `keep` takes what it needs out of a batch's outputs, `compare`
makes something for each image of that, `score` makes the metric of all of it.

A kind that `compares` is given what it kept of the original network's outputs for the same images. They are made once
in a process, batch by batch when they are first needed, and made again each time where they would take too much memory.

    for each batch:  outputs -> keep -> compare (with what was kept of the original, or labels) -> a thing an image
    at the end:      things -> score -> Score, one sample an image
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.settings import BuiltinSettings, Drop
from autonuq.evaluate.builtin.sources import Images, Part, open_images
from autonuq.evaluate.builtin.transform import Transform
from autonuq.evaluate.evaluator import Evaluator, changed_data
from autonuq.evaluate.samples import Score
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.files import ModelPair
from autonuq.graph.layers import infer_shapes
from autonuq.graph.model import TEST, Array, Graph, Shape
from autonuq.runtime.net import Net

_KEPT_BYTES = 1 << 29  # transformed images that are kept between trials, and as many of the original's outputs
_SIZE_INPUT = "im_info"  # of the R-CNN family: height and width of the input, and its scale


class NetworkEnds(Protocol):
    """Where images go into a network and what is looked at comes out; a kind may know more. Its `repr` is digested."""

    @property
    def input(self) -> str:
        """Blob of the images."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width) of it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Blobs that are looked at."""


@dataclass(frozen=True)
class Entrance:
    """Where images go into a network.

    Attributes
    ----------
    input : str
    shape : tuple of int
        (batch, channels, height, width) of the evaluator's batches.
    shapes : mapping of str to tuple of int
        Of all blobs, for such a batch.
    """

    input: str
    shape: tuple[int, int, int, int]
    shapes: Mapping[str, Shape]


def find_entrance(graph: Graph, settings: BuiltinSettings) -> Entrance:
    """Find the blob that takes the images.

    Raises
    ------
    EvaluatorError
        There is no such blob, several ones, or one of another shape.
    """
    shapes = infer_shapes(graph)
    fed = [name for name in graph.inputs if name != _SIZE_INPUT] if len(graph.inputs) > 1 else list(graph.inputs)
    name = choose_blob("input", settings.input, {name: shapes[name] for name in fed})
    if len(shapes[name]) != 4:
        raise EvaluatorError(f"blob '{name}' of shape {shapes[name]} takes no images: it must have four dimensions")
    size, channels, height, width = shapes[name]
    shape = (settings.batch_size or size, channels, height, width)
    return Entrance(name, shape, infer_shapes(graph, {**graph.inputs, name: shape}))


def choose_output(graph: Graph, settings: BuiltinSettings, shapes: Mapping[str, Shape]) -> str:
    """Return the blob that `output` names, any one of the network's, or its only output."""
    blobs = shapes if settings.output else {name: shapes[name] for name in made_outputs(graph)}
    return choose_blob("output", settings.output, blobs)


def made_outputs(graph: Graph) -> tuple[str, ...]:
    """Return the network's outputs, without inputs that no layer reads."""
    return tuple(name for name in graph.outputs if name not in graph.inputs)


def choose_blob(key: str, name: str | None, blobs: Mapping[str, Shape]) -> str:
    """Return the blob that a key names, or the only one.

    Raises
    ------
    EvaluatorError
        There is none, or no such one, or there are several.
    """
    if name is not None and name in blobs:
        return name
    known = ", ".join(blobs)
    if name is not None:
        raise EvaluatorError(f"the network has no {key} blob '{name}' (it has: {known})")
    if not blobs:
        hint = "; give it an Input layer in place of its MemoryData" if key == "input" else ""
        raise EvaluatorError(f"the network has no {key}{hint}")
    if len(blobs) != 1:
        raise EvaluatorError(f"the network has {len(blobs)} {key}s, {known}; say which with '{key}' in [evaluator]")
    return next(iter(blobs))


def find_items(graph: Graph, blob: str, shape: Shape, batch: int) -> int | None:
    """Return the axis of the images in a blob; None where all of it is one image's.

    Raises
    ------
    EvaluatorError
        It has no such axis.
    """
    try:
        axes = find_batch(graph).axes
    except MixesItems:
        axes = {}
    axis = axes.get(blob, 0)
    if shape[axis : axis + 1] == (batch,):
        return axis
    if batch != 1:
        raise EvaluatorError(
            f"blob '{blob}' of shape {shape} does not tell the {batch} images of a batch apart; set 'batch_size' to 1"
        )
    return None


def check_fixed(graph: Graph, blob: str) -> None:
    """Refuse a blob that holds as many rows as are found.

    Raises
    ------
    EvaluatorError
        It does.
    """
    if any(layer.type == "DetectionOutput" and blob in layer.tops for layer in graph.layers):
        raise EvaluatorError(
            f"blob '{blob}' holds a row for each detection; take kind 'detections', or name a blob before it"
        )


def images_first(values: Array, items: int | None) -> Array:
    """Return a blob with the images along its first axis; see `find_items`."""
    return values[np.newaxis] if items is None else np.moveaxis(values, items, 0)


def check_inputs(graph: Graph, ends: NetworkEnds) -> None:
    """Check that what is looked at needs no input beside the images; `im_info` is known from them.

    Raises
    ------
    EvaluatorError
        It needs another one.
    """
    needed = set(ends.outputs)
    for layer in reversed(graph.layers):
        if needed & set(layer.tops):
            needed |= set(layer.bottoms)
    others = [name for name in graph.inputs if name in needed and name not in (ends.input, _SIZE_INPUT)]
    if others:
        raise EvaluatorError(
            f"the network takes '{others[0]}' beside its images ('{ends.input}'), and a built-in evaluator has nothing "
            "to feed it; make it a DummyData layer, or write an evaluator of your own ('autonuq new' makes one)"
        )


def tell_size(net: Net, blob: str) -> None:
    """Give a network that asks for it the size of its images, which blob `blob` takes, and that they are not scaled."""
    if _SIZE_INPUT in net.inputs and blob != _SIZE_INPUT:
        net.blobs[_SIZE_INPUT].data[..., :3] = (*net.blobs[blob].shape[2:], 1.0)


class ImageEvaluator(Evaluator, ABC):
    """Scores a network over images.

    Parameters
    ----------
    settings : BuiltinSettings
    ends : NetworkEnds
        As `find_ends` found them.
    original : ModelPair
        The network that others are compared with; only looked at by a kind that compares.

    Attributes
    ----------
    labelled : bool
        Of a kind: whether every image has the number of a class.
    compares : bool
        Of a kind: whether `compare` is given what was kept of the original network's outputs.
    keys : tuple of str
        Of a kind: keys of [evaluator] that it takes beside those of all kinds.
    drop_unsaid : Drop
        Of a kind: its limit where the study file says none.
    meaning : str
        What the metric means, and its limit, in one line.
    sizes : ndarray of int64, shape (images, 2)
        Height and width of every scored picture that was read, before the transforms.

    Raises
    ------
    EvaluatorError
        The data cannot be read or do not fit the network.
    """

    labelled: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("drop", "output")
    drop_unsaid: ClassVar[Drop] = Drop()
    unit: tuple[str, float, str] = ("points", 100, "images")

    def __init__(self, settings: BuiltinSettings, ends: NetworkEnds, original: ModelPair) -> None:
        self.settings, self.ends, self.original = settings, ends, original
        self.drop = settings.drop or self.drop_unsaid
        self.transform = Transform(settings.transform, ends.shape[1:])
        self.scored = self.open_scored(settings, settings.part)
        same = settings.calibration == settings.data
        self._calibrating = self.scored if same else open_images(settings.calibration, labelled=self.labelled)
        self.check_data()
        size, count = ends.shape[0], len(self.scored.names)
        batches = math.ceil(count / size)
        held = settings.part == "held back"
        super().__init__(evaluate_batch_num=batches if held else settings.evaluate_batch_num or batches)
        if self.evaluate_batch_num > batches:
            raise EvaluatorError(
                f"evaluate_batch_num {self.evaluate_batch_num} asks for {self.evaluate_batch_num * size} images in "
                f"batches of {size}; there are {count}",
                path=settings.data.path,
            )
        self.sizes = np.zeros((count, 2), np.int64)
        self._images = _KeptBatches()
        self._originals = _KeptBatches()
        self._scored_batch(0, 1)

    # What a kind says.

    @classmethod
    @abstractmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> NetworkEnds:
        """Find the blobs that are looked at.

        Raises
        ------
        EvaluatorError
            The network has none that fit the kind.
        """

    @classmethod
    def open_scored(cls, settings: BuiltinSettings, part: Part) -> Images:
        """Open the images that are scored, or a part of them."""
        return open_images(settings.data, part, labelled=cls.labelled)

    def check_data(self) -> None:
        """Check that the data fit the network."""

    def label_digests(self) -> dict[str, str]:
        """Return a digest of each file of labels that the kind reads itself, by its name."""
        return {}

    @property
    def limit(self) -> str:
        """The limit, as it is digested."""
        return str(self.drop)

    @property
    @abstractmethod
    def meaning(self) -> str:
        """What the metric means, and its limit, in one line."""

    @abstractmethod
    def keep(self, outputs: Mapping[str, Array], count: int) -> Any:
        """Take what is needed out of a batch's outputs.

        Parameters
        ----------
        outputs : mapping of str to ndarray of float32
            The blobs of `ends.outputs`, the network's own arrays: the next batch overwrites them.
        count : int
            Images of the batch; what lies behind them was fed with zeros.

        Returns
        -------
        object
            Arrays, and lists, tuples or dicts of arrays.
        """

    @abstractmethod
    def compare(self, found: Any, original: Any, start: int) -> Iterable[Any]:
        """Make something for each image of a batch.

        Parameters
        ----------
        found : object
            What `keep` took.
        original : object
            What it took of the original network; None where the kind does not compare.
        start : int
            Number of the first image.
        """

    @abstractmethod
    def score(self, things: Sequence[Any]) -> Score:
        """Make the metric of what `compare` made for each image."""

    def doubt(self, found: Sequence[Any]) -> str:
        """Say what is implausible in what `keep` took of the original network's outputs; empty where nothing is.

        Parameters
        ----------
        found : sequence of object
            Of each of some batches.
        """
        return ""

    # What all have in common.

    @property
    def name(self) -> str:
        """What the report calls this evaluator."""
        part = {"all": "", "search": "", "held back": " (held back)"}[self.settings.part]
        return f"{self.settings.kind} over {self.settings.data.path.name}{part}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how it is made again in another process, which reads the data itself."""
        made = (type(self), self.settings, self.ends, self.original)
        return _same_evaluator, (*made, self.fingerprint(), self.data_digests())

    def fingerprint(self) -> str:
        """Return a digest of the settings and of the data, wherever they lie."""
        settings = self.settings
        transform = repr(replace(settings.transform, mean_file=None)).encode() + self.transform.mean.tobytes()
        part = "" if settings.part == "all" else f" {settings.part} {len(self.scored.names)}"
        rest = f"{settings.kind} {self.limit} {self.evaluate_batch_num} {self.ends}{part}".encode()
        digest = hashlib.sha256(transform + rest)
        labels = self.label_digests().values()
        for content in (self.scored.digest(), self._calibrating.digest(), *labels):
            digest.update(content.encode())
        return digest.hexdigest()

    def data_digests(self) -> dict[str, str]:
        """Return a digest of each file that is read; of many pictures or records of a sample."""
        return dict(self._data_digests)

    @cached_property
    def _data_digests(self) -> dict[str, str]:
        sources = {"": self.scored} | (
            {} if self._calibrating is self.scored else {" (calibration)": self._calibrating}
        )
        found = {f"{name}{role}": digest for role, source in sources.items() for name, digest in source.parts().items()}
        if self.settings.transform.mean_file is not None:
            name = f"{Path(self.settings.transform.mean_file).name} (mean)"
            found[name] = hashlib.sha256(self.transform.mean.tobytes()).hexdigest()
        return found | self.label_digests()

    def eval_model(self, model_file: str, weights_file: str, batch_num: int) -> float:
        """Score the first `batch_num` batches; a last batch that is not full counts the images it has."""
        net, size = self._net(model_file, weights_file), self.ends.shape[0]
        is_original = (Path(model_file), Path(weights_file)) == (self.original.model, self.original.weights)
        count, things = min(batch_num * size, len(self.scored.names)), list[Any]()
        for start in range(0, count, size):
            stop = min(start + size, count)
            found = self._run(net, start, stop)
            if is_original:
                self._originals.get((start, stop), partial(_same, found))
            things.extend(self.compare(found, self.of_original(start, stop) if self.compares else None, start))
        return self.score(things)

    def of_original(self, start: int, stop: int) -> Any:
        """Return what `keep` takes of the original network's outputs for a batch of the scored images."""
        return self._originals.get((start, stop), lambda: self._run(self._original_net, start, stop))

    @cached_property
    def _original_net(self) -> Net:
        return self._net(str(self.original.model), str(self.original.weights))

    def with_original(self, original: ModelPair) -> Self:
        """Return the same evaluator where the original network lies elsewhere."""
        found = copy(self)
        found.original = original
        vars(found).pop("_original_net", None)
        return found

    def calibrate_model(self, model_file: str, weights_file: str, batch_num: int) -> None:
        """Run `batch_num` full batches of the calibration images."""
        net, size, count = self._net(model_file, weights_file), self.ends.shape[0], len(self._calibrating.names)
        if batch_num * size > count:
            raise EvaluatorError(
                f"calibration takes {batch_num} batches of {size} images; there are {count}: "
                "lower quantization.batch_num or evaluator.batch_size",
                path=self.settings.calibration.path,
            )
        for start in range(0, batch_num * size, size):
            images = self._calibrating.read(start, start + size, self.ends.shape[1])
            self._forward(net, self._transformed(self._calibrating, images))

    def is_satisfied(self, original_metric: float, new_metric: float) -> bool:
        """Accept a drop below the limit."""
        return self.drop.allows(original_metric, new_metric)

    def _net(self, model_file: str, weights_file: str) -> Net:
        net = Net(model_file, weights_file, TEST)
        net.blobs[self.ends.input].reshape(*self.ends.shape)
        net.reshape()
        tell_size(net, self.ends.input)
        return net

    def _run(self, net: Net, start: int, stop: int) -> Any:
        images = self._images.get((start, stop), partial(self._scored_batch, start, stop))
        return self.keep(self._forward(net, images), stop - start)

    def _forward(self, net: Net, images: Array) -> dict[str, Array]:
        blob = net.blobs[self.ends.input].data
        blob[: len(images)], blob[len(images) :] = images, 0
        found = net.forward(list(self.ends.outputs))
        return {name: found[name] for name in self.ends.outputs}

    def _scored_batch(self, start: int, stop: int) -> Array:
        images = self.scored.read(start, stop, self.ends.shape[1])
        self.sizes[start:stop] = [image.shape[:2] for image in images]
        return self._transformed(self.scored, images)

    def _transformed(self, source: Images, images: Sequence[NDArray[Any]]) -> Array:
        return self.transform.apply(images, source.order, source.wanted)


class _KeptBatches:
    """What was made of batches, kept for the next trial while there is room."""

    def __init__(self) -> None:
        self._things: dict[tuple[int, int], Any] = {}
        self._bytes = 0

    def get(self, batch: tuple[int, int], make: Callable[[], Any]) -> Any:
        if batch in self._things:
            return self._things[batch]
        made = make()
        size = _bytes_of(made)
        if self._bytes + size <= _KEPT_BYTES:
            self._things[batch] = made
            self._bytes += size
        return made


def _same(thing: Any) -> Any:
    return thing


def _bytes_of(thing: Any) -> int:
    """Return the bytes of the arrays in lists, tuples and dicts."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    return sum(map(_bytes_of, thing.values() if isinstance(thing, dict) else thing))


def _same_evaluator(
    kind: type[ImageEvaluator],
    settings: BuiltinSettings,
    ends: NetworkEnds,
    original: ModelPair,
    fingerprint: str,
    digests: Mapping[str, str],
) -> ImageEvaluator:
    """Make an evaluator again, of the same data."""
    made = kind(settings, ends, original)
    changed = changed_data(digests, made.data_digests())
    if changed or made.fingerprint() != fingerprint:
        what = f": {', '.join(changed)}" if changed else ""
        raise EvaluatorError(f"these are not the data that the study was started with{what}", path=settings.data.path)
    return made
