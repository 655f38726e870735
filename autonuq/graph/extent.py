"""How large a blob is, in pycaffe's words: blobs of a net, its weights and what a Python layer gets answer alike."""

from __future__ import annotations

import math
import operator

from autonuq.graph.model import MAX_AXES, MAX_ELEMENTS, Shape

_LEGACY_AXES = 4


class Extent:
    """What Caffe's Blob says of its size; a subclass has `shape`."""

    @property
    def shape(self) -> Shape:
        """Dimensions."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    num = property(lambda self: self._legacy_size(0), doc="Size of the first axis, as blobs of four axes call it.")
    channels = property(lambda self: self._legacy_size(1), doc="Size of the second axis.")
    height = property(lambda self: self._legacy_size(2), doc="Size of the third axis.")
    width = property(lambda self: self._legacy_size(3), doc="Size of the fourth axis.")

    def _legacy_size(self, axis: int) -> int:
        """Return the size of an axis; those that a blob lacks have one value."""
        if len(self.shape) > _LEGACY_AXES:
            names = "num, channels, height and width"
            raise ValueError(f"a blob of shape {self.shape} has more than {_LEGACY_AXES} axes: {names} are for fewer")
        return self.shape[axis] if axis < len(self.shape) else 1


def checked_sizes(sizes: tuple[object, ...], *, least: int = 1) -> Shape:
    """Return the arguments of `Blob.reshape` as a shape.

    Parameters
    ----------
    least : {0, 1}
        What a size must be: a layer may find nothing, but the engine executes nothing without values.

    Raises
    ------
    TypeError
        One is no whole number: pycaffe takes the sizes one by one, not as a tuple.
    ValueError
        One is too small, or there are too many axes or values.
    """
    for size in sizes:
        if not hasattr(size, "__index__"):
            hint = "; write reshape(*shape)" if isinstance(size, tuple | list) else ""
            raise TypeError(f"The sizes of Blob.reshape must be whole numbers, one by one. Got {size!r} instead{hint}.")
    shape = tuple(operator.index(size) for size in sizes)  # type: ignore[arg-type]
    if len(shape) > MAX_AXES:
        raise ValueError(f"Blob.reshape takes at most {MAX_AXES} axes. Got {len(shape)} instead.")
    if any(size < least for size in shape):
        rule = "positive" if least else "0 or more"
        raise ValueError(f"The sizes of Blob.reshape must be {rule}. Got {shape} instead.")
    if math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"Blob.reshape takes at most {MAX_ELEMENTS} values. Got {shape} instead.")
    return shape
