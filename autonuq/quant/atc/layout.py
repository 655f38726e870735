"""The order in which the device reads int8 weights, FRACTAL_Z: blocks of 16 outputs by 32 inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import QuantizationError
from autonuq.quant.atc.index import BLOCK_BYTES, check_parameter

_INT8_K, _INT8_N = 32, 16  # a block of weights: inputs and outputs


def device_layout(codes: NDArray[Any], kind: str) -> NDArray[np.int8]:
    """Put weights into the order in which the device reads them, FRACTAL_Z.

    Parameters
    ----------
    codes : ndarray of int8
        Shape (N, C, H, W) for "conv", (N, K) for "fc": outputs first, as Caffe stores them.
    kind : {"conv", "fc"}

    Returns
    -------
    ndarray of int8, shape (512 * ceil(C / 32) * H * W * ceil(N / 16),)
        Blocks of 16 outputs by 32 inputs, padded with zeros.

    Raises
    ------
    TypeError
        The codes are no int8.
    ValueError
        `kind` is neither, or the shape is not of that kind.

    Notes
    -----
    Weight (n, c, h, w) goes to ``(((c // 32 H + h) W + w) ceil(N / 16) + n // 16) 512 + n % 16 32 + c % 32``. An fc
    weight is a convolution's with C = K, H = W = 1.

    **Shapes**: (100, 48, 3, 3) -> (2 * 9 * 7 * 512,), 43,200 weights in 64,512 bytes.
    **Cost**: O(n), one pass.
    """
    check_parameter("kind", kind, "'conv' or 'fc'", kind in ("conv", "fc"))
    weights = np.asarray(codes)
    if weights.dtype != np.int8:
        raise TypeError(f"The device_layout function takes codes of dtype int8. Got {weights.dtype} instead.")
    axes = 4 if kind == "conv" else 2
    check_parameter("codes", weights.shape, f"of {axes} axes, not empty", weights.ndim == axes and weights.size > 0)
    outputs, inputs, height, width = (*weights.shape, 1, 1)[:4]
    padded = np.zeros((-(-outputs // _INT8_N) * _INT8_N, -(-inputs // _INT8_K) * _INT8_K, height, width), dtype=np.int8)
    padded[:outputs, :inputs] = weights.reshape(outputs, inputs, height, width)
    blocks = padded.reshape(-1, _INT8_N, padded.shape[1] // _INT8_K, _INT8_K, height, width)
    return np.ascontiguousarray(blocks.transpose(2, 4, 5, 0, 1, 3)).reshape(-1)


def device_bytes(shape: tuple[int, ...]) -> int:
    """Return the size of what `device_layout` makes of weights of a shape (N, C, H, W) or (N, K)."""
    outputs, inputs, *kernel = shape
    return BLOCK_BYTES * -(-inputs // _INT8_K) * -(-outputs // _INT8_N) * int(np.prod(kernel, dtype=np.int64))


def restore_layout(data: bytes, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Undo `device_layout`: return the weights of a shape (N, C, H, W) or (N, K); padding is not looked at.

    Raises
    ------
    QuantizationError
        The data has another length than such weights.
    """
    if len(data) != device_bytes(shape):
        raise QuantizationError(
            f"{len(data)} bytes cannot be weights of shape {shape}, which take {device_bytes(shape)}"
        )
    outputs, inputs, height, width = (*shape, 1, 1)[:4]
    parts = -(-inputs // _INT8_K), height, width, -(-outputs // _INT8_N), _INT8_N, _INT8_K
    blocks = np.frombuffer(data, dtype=np.int8).reshape(parts).transpose(3, 4, 0, 5, 1, 2)
    padded = blocks.reshape(parts[3] * _INT8_N, parts[0] * _INT8_K, height, width)
    return np.ascontiguousarray(padded[:outputs, :inputs]).reshape(shape)
