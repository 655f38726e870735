"""Where the batches of a MemoryData layer come from: arrays that a script hands over.

Source: `memory_data_layer.cpp` and `Net_SetInputArrays` of BVLC Caffe: what is refused, and that a forward pass takes
the next batch, after the last one the first again.
"""

from __future__ import annotations

import numpy as np

from autonuq.errors import RuntimeFailure
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.model import Array, Layer


class MemoryData:
    """Items and labels of one layer, and which batch comes next."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._shape = LAYER_TYPES[layer.type].tops(layer, [])[0]
        self._arrays: tuple[Array, Array] | None = None
        self._position = 0

    def set(self, data: Array, labels: Array) -> None:
        """Take the arrays as they are, without a copy, and start with the first batch.

        Parameters
        ----------
        data : ndarray of float32, shape (n, channels, height, width)
            `n` is a multiple of the layer's batch_size.
        labels : ndarray of float32, shape (n,) or (n, 1, 1, 1)

        Raises
        ------
        ValueError
            An array does not fit.
        """
        if isinstance(labels, np.ndarray) and labels.ndim == 1:
            labels = labels.reshape(-1, 1, 1, 1)
        for name, array, sizes in (("data", data, self._shape[1:]), ("labels", labels, (1, 1, 1))):
            self._check(name, array, sizes)
        if len(data) != len(labels):
            raise ValueError(f"{self._where}: there are {len(data)} items, but {len(labels)} labels")
        if not len(data) or len(data) % self._shape[0]:
            raise ValueError(f"{self._where}: {len(data)} items are no multiple of batch_size {self._shape[0]}")
        self._arrays, self._position = (data, labels.reshape(-1)), 0

    def next_batch(self) -> tuple[Array, Array]:
        """Return the items and the labels of the next batch, views.

        Raises
        ------
        RuntimeFailure
            There are no arrays.
        """
        if self._arrays is None:
            raise RuntimeFailure(
                "type 'MemoryData' has no data; call set_input_arrays(data, labels) first", layer=self._layer.name
            )
        begin = self._position
        self._position = (begin + self._shape[0]) % len(self._arrays[0])
        data, labels = (array[begin : begin + self._shape[0]] for array in self._arrays)
        return data, labels

    @property
    def _where(self) -> str:
        return f"layer '{self._layer.name}'"

    def _check(self, name: str, array: Array, sizes: tuple[int, ...]) -> None:
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or not array.flags.c_contiguous:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"{self._where}: {name} must be a C-contiguous array of float32. Got {found} instead.")
        if array.ndim != 4 or array.shape[1:] != sizes:
            wanted = ", ".join(map(str, sizes))
            raise ValueError(f"{self._where}: {name} must have shape (n, {wanted}). Got {array.shape} instead.")
