"""Caffe's own `Python` layers: a class with setup, reshape and forward that gets its bottoms and tops as blobs.

Source: `python_layer.hpp` and `_caffe.cpp` of BVLC Caffe: the module is imported, the class is made without arguments
that matter, `param_str` and `phase` are set; setup runs once, reshape before every forward.
`permission` says whether that may be done.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autonuq.graph.extent import Extent, checked_sizes
from autonuq.graph.hosted.permission import OWN_MODULE, is_own, is_refused, python_layers_allowed, refusal
from autonuq.graph.hosted.registry import HostLayer, raised_by, runs_on_host
from autonuq.graph.model import TEST, TRAIN, Array, Layer, Shape
from autonuq.graph.shapes.registry import ANY, LayerError, define

_MAX_WAITING = 16
_METHODS = ("setup", "reshape", "forward")


class PythonLayer:
    """Base of Python layers: `caffe.Layer`.

    Attributes
    ----------
    param_str : str
        The layer's `python_param.param_str`.
    phase : int
    """

    param_str: str = ""
    phase: int = TEST


class PythonBlob(Extent):
    """A bottom or a top of a Python layer: `data`, `diff`, the shape, and `reshape`."""

    def __init__(self, data: Array) -> None:
        self._data = data
        self._diff: Array | None = None

    @property
    def data(self) -> Array:
        """Values: float32, to be written in place."""
        return self._data

    @property
    def diff(self) -> Array:
        """Gradients: zeros unless the layer writes them; nothing reads them."""
        if self._diff is None:
            self._diff = np.zeros_like(self._data)
        return self._diff

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        return self._data.shape

    def reshape(self, *dims: int) -> None:
        """Change the dimensions; the values stay if their number does."""
        shape = checked_sizes(dims, least=0)
        if shape != self.shape:
            same = math.prod(shape) == self.count
            self._data = self._data.reshape(shape) if same else np.zeros(shape, np.float32)
            self._diff = None


class _Running:
    """One layer of one net with its Python object."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        made = _load_class(layer)
        with raised_by(layer):
            self._object = made()
            self._object.param_str = layer.message.python_param.param_str
            self._object.phase = TEST
        self._tops: dict[str, PythonBlob] = {}
        self._ready = False

    def reshape(self, bottoms: Sequence[Array]) -> tuple[list[PythonBlob], list[PythonBlob]]:
        """Hand the bottoms over, let the layer say its tops' shapes, and return both."""
        below = [PythonBlob(bottom) for bottom in bottoms]
        in_place = dict(zip(self._layer.bottoms, below, strict=True))
        above = [in_place.get(top) or self._own(top) for top in self._layer.tops]
        with raised_by(self._layer):
            if not self._ready:
                self._object.setup(below, above)
                self._ready = True
            self._object.reshape(below, above)
        return below, above

    def _own(self, top: str) -> PythonBlob:
        return self._tops.setdefault(top, PythonBlob(np.zeros((), np.float32)))

    def __call__(self, *bottoms: Array) -> list[Array]:
        below, above = self.reshape([bottom.copy() for bottom in bottoms])
        self._object.forward(below, above)
        return [top.data.copy() for top in above]


_waiting: OrderedDict[bytes, _Running] = OrderedDict()  # made for their shapes, not in a net yet


@runs_on_host("Python")
def _python(layer: Layer) -> HostLayer:
    if is_refused(layer):
        raise refusal(layer, None)
    return _waiting.pop(layer.message.SerializeToString(), None) or _Running(layer)


def _python_tops(layer: Layer, bottoms: list[Shape]) -> list[Shape]:
    """Ask the layer itself, unless it is ours; the object serves the next net that has such a layer."""
    if is_own(layer):
        return bottoms[: len(layer.tops)]
    key = layer.message.SerializeToString()
    running = _waiting.get(key) or _Running(layer)
    _, above = running.reshape([np.zeros(bottom, np.float32) for bottom in bottoms])
    _waiting[key] = running
    while len(_waiting) > _MAX_WAITING:
        _waiting.popitem(last=False)
    return [top.shape for top in above]


define(["Python"], _python_tops, bottoms=range(ANY.stop))


def _load_class(layer: Layer) -> Any:
    message = layer.message.python_param
    if is_own(layer):
        return _own_class(message.layer)
    named = f"class '{message.layer}' of module '{message.module}'"
    try:
        with _caffe_importable():
            found = getattr(importlib.import_module(message.module), message.layer)
    except Exception as error:  # a module's code may raise anything
        raise LayerError(f"cannot load {named}: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and all(callable(getattr(found, method, None)) for method in _METHODS)):
        raise LayerError(f"{named} is no layer: it must be a class with the methods {', '.join(_METHODS)}")
    return found


@cache
def _own_class(name: str) -> Any:
    """Return a class of ours, on our base: no other file and no other Caffe has a part in it."""
    before = sys.modules.get("caffe")
    sys.modules["caffe"] = _caffe_module()
    try:
        return getattr(importlib.import_module(f"{__package__}.{OWN_MODULE}"), name)
    finally:
        del sys.modules["caffe"]
        if before is not None:
            sys.modules["caffe"] = before


class _OwnModule:
    """Finds our layers' module for a Caffe that is not ours."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return where it is; see `importlib.abc.MetaPathFinder`."""
        source = Path(__file__).parent / f"{OWN_MODULE}.py"
        return importlib.util.spec_from_file_location(name, source) if name == OWN_MODULE else None


@contextmanager
def layers_importable(folder: Path) -> Iterator[None]:
    """Let a Caffe that is not ours import our layers, and those in a network's folder if they are allowed."""
    sys.meta_path.insert(0, _OwnModule)
    try:
        with importable(folder):
            yield
    finally:
        sys.meta_path.remove(_OwnModule)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a network's folder be imported from, behind all others, if its layers may run; what is imported stays."""
    if not python_layers_allowed():
        yield
        return
    place = str(folder.resolve())
    importlib.invalidate_caches()
    sys.path.append(place)
    try:
        yield
    finally:
        sys.path.remove(place)


@contextmanager
def _caffe_importable() -> Iterator[None]:
    """Give modules that say `import caffe` its Layer if there is no Caffe."""
    if "caffe" in sys.modules or importlib.util.find_spec("caffe") is not None:
        yield
        return
    sys.modules["caffe"] = _caffe_module()
    try:
        yield
    finally:
        del sys.modules["caffe"]


def _caffe_module() -> ModuleType:
    """Make as much of a `caffe` as a module of layers imports."""
    module = ModuleType("caffe")
    vars(module).update(Layer=PythonLayer, TRAIN=TRAIN, TEST=TEST)
    return module
