"""The module that a script gets for `import caffe.coord_map`: how pixels of one blob of a NetSpec lie on another's.

A layer maps pixel x of its bottom to pixel a x + b of its top, along every axis behind that of the channels. Source:
pycaffe's `coord_map.py` (names, layer types); the maps follow from the layers' definitions in Caffe.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from autonuq.graph.model import Array
from autonuq.pycaffe.net_spec import Function, Top, layers

__all__ = ["AxisMismatchException", "UndefinedMapException", "coord_map", "coord_map_from_to", "crop"]

PASS_THROUGH_LAYERS = frozenset(
    {
        "AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN", "Power",
        "ReLU", "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
    }
)  # fmt: skip
_WINDOWS = frozenset({"Convolution", "Pooling", "Im2col"})


class UndefinedMapException(Exception):  # noqa: N818 - pycaffe's own name
    """A layer has no such map, or two tops have no blob in common."""


class AxisMismatchException(Exception):  # noqa: N818 - pycaffe's own name
    """Layers on the way count their pixels from different axes."""


class _Map(NamedTuple):
    """x -> a x + b behind the channels' axis, `axis`; None where any will do."""

    axis: int | None = None
    a: Any = 1
    b: Any = 0

    def then(self, following: _Map) -> _Map:
        """Return this map behind the other one: a1 (a2 x + b2) + b1."""
        if self.axis is not None and following.axis not in (None, self.axis):
            raise AxisMismatchException(f"pixels are counted from axis {self.axis} and from axis {following.axis}")
        axis = following.axis if self.axis is None else self.axis
        return _Map(axis, self.a * following.a, self.a * following.b + self.b)

    def inverse(self) -> _Map:
        """Return the map back."""
        return _Map(self.axis, 1 / self.a, -self.b / self.a)


def coord_map(fn: Function) -> _Map:
    """Return axis, scale and shift of the map from a layer's bottom to its top.

    Raises
    ------
    UndefinedMapException
        The layer's type has none.
    ValueError
        A window has sizes by axis (`kernel_h` and its like).
    """
    if fn.type_name in _WINDOWS:
        axis, stride, extent, pad = _window(fn)
        return _Map(axis, 1 / stride, (pad - (extent - 1) / 2) / stride)
    if fn.type_name == "Deconvolution":
        axis, stride, extent, pad = _window(fn)
        return _Map(axis, stride, (extent - 1) / 2 - pad)
    if fn.type_name in PASS_THROUGH_LAYERS:
        return _Map()
    if fn.type_name == "Crop":
        parameters = fn.params.get("crop_param", fn.params)
        return _Map(parameters.get("axis", 2) - 1, 1, -np.array(parameters.get("offset", 0)))
    raise UndefinedMapException(f"a layer of type '{fn.type_name}' maps no coordinates")


def _window(fn: Function) -> tuple[int, Array, Array, Array]:
    """Return channel axis, stride, extent and padding of a window."""
    name = "pooling_param" if fn.type_name == "Pooling" else "convolution_param"
    given = fn.params.get(name, fn.params)
    apart = sorted({"pad_h", "pad_w", "kernel_h", "kernel_w", "stride_h", "stride_w"} & set(given))
    if apart:
        raise ValueError(f"{', '.join(apart)} of a {fn.type_name}: only sizes for all axes at once can be mapped")
    stride, pad, kernel, dilation = (
        np.array(given.get(key, default), ndmin=1)
        for key, default in (("stride", 1), ("pad", 0), ("kernel_size", 1), ("dilation", 1))
    )
    return given.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def coord_map_from_to(top_from: Top, top_to: Top) -> _Map:
    """Return how pixels of one top lie on another's, over a blob that both come from.

    Raises
    ------
    UndefinedMapException
        There is none.
    """
    theirs = dict(_origins(top_to))
    for top, found in _origins(top_from):
        if top in theirs:
            return theirs[top].then(found.inverse())
    raise UndefinedMapException("the two tops come from no blob in common")


def _origins(top: Top) -> list[tuple[Top, _Map]]:
    """Return a top and all that it comes from, the nearest first, each with the map from it to the top."""
    found = {top: _Map()}
    for each in (queue := [top]):
        try:
            step = coord_map(each.fn)
        except UndefinedMapException:
            continue
        for bottom in each.fn.inputs[:1] if each.fn.type_name == "Crop" else each.fn.inputs:
            if bottom not in found:
                found[bottom] = found[each].then(step)
                queue.append(bottom)
    return list(found.items())


def crop(top_from: Top, top_to: Top) -> Top:
    """Return a Crop layer that cuts `top_from` to the size and place of `top_to`.

    Raises
    ------
    UndefinedMapException, AxisMismatchException
        There is no map, or it scales, shifts by parts of pixels, or begins outside of `top_from`.
    """
    axis, a, b = coord_map_from_to(top_from, top_to)
    shift = -np.array(b, ndmin=1)
    if np.any(np.asarray(a) != 1):
        raise UndefinedMapException(f"pixels of the two tops differ in size by {a}; a Crop does not scale")
    if np.any(shift < 0) or np.any(shift != np.round(shift)):
        raise UndefinedMapException(f"a Crop cannot begin at pixel {shift.tolist()}")
    offset = np.round(shift).astype(int).tolist()
    return layers.Crop(top_from, top_to, crop_param={"axis": (axis or 0) + 1, "offset": offset})  # type: ignore[no-any-return]
