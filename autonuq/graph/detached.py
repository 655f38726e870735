"""ONNX bytes whose weights are kept outside of them, as named arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autonuq.graph.model import Array


@dataclass(frozen=True)
class Weights:
    """Values of an initializer, as an array times a factor that is not multiplied yet.

    Attributes
    ----------
    array : ndarray
    factor : ndarray of float32, shape (array.shape[0],), or None
        One for each row.
    """

    array: Array
    factor: Array | None = None

    @property
    def values(self) -> Array:
        """The product."""
        if self.factor is None:
            return self.array
        return self.array * self.factor.reshape(-1, *(1,) * (self.array.ndim - 1))


_TYPES = frozenset(map(np.dtype, (np.float32, np.int8, np.uint8, np.int32)))


def is_weights(array: Array) -> bool:
    """Say whether a constant is kept outside: it has axes, and no shape or index of an operator is of its type."""
    return array.ndim > 0 and array.dtype in _TYPES


def declared_tensor(name: str, array: Array) -> onnx.TensorProto:
    """Declare an initializer whose values are given to the engine separately."""
    tensor = onnx.TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", "memory"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def split_weights(model: bytes) -> tuple[bytes, dict[str, Array]]:
    """Take weights out of ONNX bytes.

    Parameters
    ----------
    model : bytes
        With all initializers inside.

    Returns
    -------
    bytes
        The model, the weights only declared.
    dict of str to ndarray
        The weights; see `is_weights`.
    """
    parsed = onnx.ModelProto.FromString(model)
    weights: dict[str, Array] = {}
    for index, tensor in enumerate(parsed.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if is_weights(array):
            weights[tensor.name] = array
            parsed.graph.initializer[index].CopyFrom(declared_tensor(tensor.name, array))
    return parsed.SerializeToString(), weights
