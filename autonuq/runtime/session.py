"""The engine behind one small interface: feed blobs, get blobs.

Every trial of a study runs the same network with other weights, so what does not depend on weights is done once.
onnxruntime optimizes a network when it is loaded (it fuses operators, and it stores the weights of convolutions in
blocks of the processor's vector width), which costs more than a forward pass of eight images. Here it optimizes
each structure once, with weights whose values are their own addresses: where these end up tells where every weight
goes; integer weights, which its kernels arrange for themselves, keep their places. What it made is kept without weights
(`_Prepared`), and every session, the first one included, is made from that and from weights moved to those places. So
results never depend on what was cached.

onnxruntime's optimizers that calculate with weights are switched off for that; the lowering has done the only ones
of use (BatchNorm and Scale into Convolution). Should weights still not be found again one for one, nothing is kept
and every session is optimized on its own.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autonuq.atomic import allocate, say_system_error, temporary_folder, writing
from autonuq.errors import RuntimeFailure, WriteFailure
from autonuq.graph import caffe_pb2
from autonuq.graph.detached import Weights, split_weights
from autonuq.graph.lowering import Lowered, lower
from autonuq.graph.model import Array, Graph, Layer, Shape
from autonuq.runtime.device import Device, check_session, selected_device
from autonuq.runtime.engine_errors import engine_failure

if TYPE_CHECKING:
    import onnxruntime

# Places in weights are numbered from 1 and travel as the bits of float32: below 2**28 these are tiny numbers that no
# constant of a network equals, and 1 GiB of weights stays below protobuf's limit of 2 GiB for a file.
_MAX_PLACES = 2**26
_MAX_PREPARED = 256  # structures kept; some 50 kB each, and 4 bytes for every weight of layers that are padded
_LINE = 16  # float32 values of a cache line
# These calculate with weights; what is left only moves them, but for BatchNormalization behind a Conv (`_prepare`).
_ARITHMETIC_OPTIMIZERS = ["ConstantFolding", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion"]


class Session:
    """An onnxruntime session of a lowered graph, on the device that is selected when it is made (`device`).

    Parameters
    ----------
    lowered : Lowered
    threads : int
        Threads of one operator; 0 lets onnxruntime take every core.

    Raises
    ------
    RuntimeFailure
        onnxruntime refuses the model, or does not run on the device.

    Notes
    -----
    **Cost**: on the CPU, the first session of a structure (same layers, same input shapes) costs one optimization; the
    next ones cost one pass over the weights. Sessions share nothing that changes; the memory of one that is gone serves
    the next, for fresh memory costs several times as much as the pass.
    """

    def __init__(self, lowered: Lowered, *, threads: int = 0) -> None:
        self.inputs = dict(lowered.inputs)
        self.outputs = dict(lowered.outputs)
        self._layers = frozenset(lowered.layers)
        if not self.outputs:  # every layer ends in a Silence: the engine takes no such network
            return
        device = selected_device()
        prepared = _prepared(lowered) if device.is_cpu else None  # the layout of weights is this processor's
        options = _options(threads, optimize=prepared is None)
        if prepared is None:
            # Views into a file may be unaligned; the engine must not be given such memory.
            self._weights = {
                name: np.require(weights.values, requirements=["C", "A"])
                for name, weights in lowered.initializers.items()
            }
            self._session = _load(lowered.model, self._weights, options, device, lowered.layers)
            return
        memory = prepared.take_memory()
        self._weights = prepared.moved(lowered.initializers, memory)
        self._session = _load(prepared.model, self._weights, options, device, lowered.layers)
        weakref.finalize(self, _spare.append, memory)

    def run(self, feeds: Mapping[str, Array], blobs: Sequence[str] | None = None) -> dict[str, Array]:
        """Execute the graph.

        Parameters
        ----------
        feeds : mapping of str to ndarray of float32
            One array per input blob, of the lowered shape.
        blobs : sequence of str, optional
            Outputs that are wanted; all by default.

        Returns
        -------
        dict of str to ndarray of float32

        Raises
        ------
        RuntimeFailure
            An array has another shape, or the engine failed.
        """
        for name, array in feeds.items():
            if array.shape != self.inputs[name]:
                raise RuntimeFailure(f"blob '{name}' has shape {array.shape} instead of {self.inputs[name]}")
        wanted = list(self.outputs if blobs is None else blobs)
        if not wanted:
            return {}
        try:
            values = self._session.run([self.outputs[blob] for blob in wanted], dict(feeds))
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise engine_failure(error, "cannot compute", self._layers) from error
        return dict(zip(wanted, values, strict=True))


@dataclass(frozen=True)
class _Move:
    """Where the values of one weight array of the optimized network come from.

    Attributes
    ----------
    source : str
        Name of the array in the lowered network.
    shape : tuple of int
        Of the optimized network's array.
    view : tuple of two tuples
        Shape and strides (in values) of a view of the source that holds the values in their order.
    places : ndarray of int32, shape (count,), or None
        Instead of a view if there is none because zeros fill up a block: 1 + the place of each value, 0 for a zero.
    """

    source: str
    shape: Shape
    view: tuple[Shape, Shape] = ((), ())
    places: Array | None = None

    def apply(self, weights: Weights, out: Array) -> None:
        """Put the weights into their new places: one pass."""
        if self.places is not None:
            padded = np.empty(weights.array.size + 1, np.float32)
            padded[0], padded[1:] = 0, weights.values.reshape(-1)
            np.take(padded, self.places, out=out.reshape(-1), mode="clip")  # "raise" would buffer the result
            return
        shape, strides = self.view
        target, flat = out.reshape(shape), np.ascontiguousarray(weights.array).reshape(-1)
        if weights.factor is None:
            np.copyto(target, _strided(flat, shape, strides))
            return
        row = flat.size // weights.factor.size
        within = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True) if stride < row)
        if within >= row or any(stride > row and stride % row for stride in strides):  # an axis runs through rows
            np.copyto(target, _strided(weights.values.reshape(-1), shape, strides))
            return
        factor = _strided(weights.factor, shape, tuple(stride // row for stride in strides))
        np.multiply(_strided(flat, shape, strides), factor, out=target)


@dataclass(frozen=True)
class _Prepared:
    """An optimized network without its weights, and how these get into it."""

    model: bytes
    moves: Mapping[str, _Move]
    kept: tuple[str, ...] = ()  # integer weights: they stay as they are

    @cached_property
    def _starts(self) -> list[int]:
        """Where each array begins in such memory, in values; the last one is its end. Cache lines are kept apart."""
        sizes = [-(-math.prod(move.shape) // _LINE) * _LINE for move in self.moves.values()]
        return [0, *accumulate(sizes)]

    def take_memory(self) -> Array:
        """Return memory for a whole set of weights: the spare one if it has the right size."""
        with contextlib.suppress(IndexError):
            spare = _spare.pop()
            if spare.size == self._starts[-1]:
                return spare
        return np.empty(self._starts[-1], np.float32)

    def moved(self, weights: Mapping[str, Weights], memory: Array) -> dict[str, Array]:
        """Return the optimized network's weights, all of them in `memory`."""
        result = {}
        for start, (name, move) in zip(self._starts, self.moves.items(), strict=False):
            result[name] = memory[start : start + math.prod(move.shape)].reshape(move.shape)
            move.apply(weights[move.source], result[name])
        return result | {name: weights[name].values for name in self.kept}


_spare: deque[Array] = deque(maxlen=1)  # the memory of weights that a session gave back
_cache: OrderedDict[bytes, _Prepared | None] = OrderedDict()
_lock = threading.Lock()


def release_weight_memory() -> None:
    """Let go of the memory that the next session would have taken for its weights."""
    _spare.clear()


def release_blob_memory() -> None:
    """Let the arena that all sessions share give back what no network holds; it does so behind a run only."""
    import onnxruntime

    source = caffe_pb2.LayerParameter(name="x", type="Input", top=["x"])
    source.input_param.shape.add(dim=[1])
    follower = caffe_pb2.LayerParameter(name="y", type="ReLU", bottom=["x"], top=["y"])
    least = lower(Graph("least", (Layer(source), Layer(follower))))
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = _load(least.model, {}, _options(threads=1), Device(), least.layers)
    session.run(None, {"x": np.zeros(1, np.float32)}, options)


def _prepared(lowered: Lowered) -> _Prepared | None:
    """Return what is kept of a structure; make it the first time.

    The lowered bytes are the key: they hold everything but the weights. Two threads may make the same thing twice.
    """
    with _lock:
        if lowered.model in _cache:
            _cache.move_to_end(lowered.model)
            return _cache[lowered.model]
    found = _prepare(lowered)
    with _lock:
        _cache[lowered.model] = found
        while len(_cache) > _MAX_PREPARED:
            _cache.popitem(last=False)
    return found


def _prepare(lowered: Lowered) -> _Prepared | None:
    kept = {name: weights.values for name, weights in lowered.initializers.items() if weights.array.dtype != np.float32}
    floats = {name: weights for name, weights in lowered.initializers.items() if name not in kept}
    sizes = {name: weights.array.size for name, weights in floats.items()}
    if sum(sizes.values()) >= _MAX_PLACES:
        return None
    numbered: dict[str, Array] = {}
    first: dict[str, int] = {}
    place = 1
    for name, weights in floats.items():
        first[name] = place
        bits = np.arange(place, place + sizes[name], dtype=np.int32)
        numbered[name] = bits.view(np.float32).reshape(weights.array.shape)
        place += sizes[name]
    model, found = split_weights(_optimize(lowered.model, numbered | kept, lowered.layers))
    if {name: values.shape for name, values in kept.items()} != _shapes_of_integers(found):
        return None
    moves: dict[str, _Move] = {}
    for name, values in found.items():
        if name in kept:
            continue
        move = _find_move(values, first, sizes)
        if move is None:  # something was calculated
            return None
        moves[name] = move
    return _Prepared(model, moves, tuple(kept)) if {move.source for move in moves.values()} == set(first) else None


def _shapes_of_integers(weights: Mapping[str, Array]) -> dict[str, Shape]:
    return {name: values.shape for name, values in weights.items() if values.dtype != np.float32}


def _optimize(model: bytes, weights: Mapping[str, Array], layers: Sequence[str]) -> bytes:
    """Let onnxruntime optimize a network for this processor; it hands the result out as a file only."""
    options = _options(threads=1)
    with temporary_folder() as folder:
        path = folder / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            _load(model, weights, options, Device(), layers, disabled_optimizers=_ARITHMETIC_OPTIMIZERS)
        except RuntimeFailure as error:
            _check_room(folder, len(model) + sum(values.nbytes for values in weights.values()), error)
            raise
        return path.read_bytes()


def _check_room(folder: Path, size_bytes: int, cause: RuntimeFailure) -> None:
    """Say that there is no room for a file, which the engine does not, if so many bytes cannot be written."""
    try:
        with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
            allocate(file, size_bytes)
    except OSError as error:
        raise WriteFailure(say_system_error(error)) from cause


def _find_move(values: Array, first: dict[str, int], sizes: dict[str, int]) -> _Move | None:
    """Return where numbered values come from: all of one array, each at least once, or None."""
    bits = values.reshape(-1).view(np.int32)
    highest = int(bits.max(initial=0))
    if not 0 < highest < sum(sizes.values()) + 1:
        return None
    source = next(name for name in reversed(first) if first[name] <= highest)
    places = bits - np.int32(first[source] - 1)  # a copy
    size = sizes[source]
    view = _find_view(places, size)
    if view is not None:
        return _Move(source, values.shape, view)
    places[bits == 0] = 0
    if places.min() < 0 or not np.bincount(places, minlength=size + 1)[1:].all():
        return None
    return _Move(source, values.shape, places=places)


def _find_view(places: Array, size: int) -> tuple[Shape, Shape] | None:
    """Find shape and strides of a view of `arange(1, size + 1)` that equals `places`, a permutation."""
    if places.size != size or places[0] != 1:
        return None
    shape: list[int] = []
    strides: list[int] = []
    rest = places
    while rest.size > 1:  # innermost axis first: how far do equal steps go?
        step = int(rest[1]) - int(rest[0])
        equal = np.diff(rest[: min(rest.size, 1 << 16)]) == step
        length = int(equal.argmin()) + 1 if not equal.all() else rest.size
        if length < 2 or rest.size % length or step < 1:
            return None
        shape.insert(0, length)
        strides.insert(0, step)
        rest = rest[::length]
    if sum((length - 1) * step for length, step in zip(shape, strides, strict=True)) != size - 1:
        return None
    view = (tuple(shape), tuple(strides))
    same = np.array_equal(_strided(np.arange(1, size + 1, dtype=np.int32), *view).reshape(-1), places)
    return view if same else None


def _strided(flat: Array, shape: Shape, strides: Shape) -> Array:
    steps = tuple(step * flat.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)


@cache
def _share_arena() -> None:
    """Let all sessions of the process take the memory for blobs from one arena; each would fill its own otherwise.

    It grows by what is asked for and holds as much as the largest net needed.
    """
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    grow_as_requested = onnxruntime.OrtArenaCfg(0, 1, -1, -1)
    onnxruntime.create_and_register_allocator(place, grow_as_requested)


def _options(threads: int, *, optimize: bool = True) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # what fails is an exception (`engine_errors`); nothing is written beside it
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # a plan of all blobs is a block of its own, beside those of the first pass
    with _lock:  # the engine takes it once
        _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # What runs in integers is decided by the lowering; the engine would round float weights of its own accord.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Waiting threads sleep: several nets and several worker processes share the processors.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _load(
    model: bytes,
    weights: Mapping[str, Array],
    options: onnxruntime.SessionOptions,
    device: Device,
    layers: Sequence[str],
    **settings: Sequence[str],
) -> onnxruntime.InferenceSession:
    """Load a network; the engine uses the arrays' memory, which the caller keeps alive."""
    import onnxruntime

    try:
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        session = onnxruntime.InferenceSession(model, options, providers=device.providers, **settings)
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise engine_failure(error, "cannot prepare", layers) from error
    check_session(session, device)
    return session
