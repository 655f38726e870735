"""The module that a script gets for `import caffe.io` after `autonuq.pycaffe.install()`: images in, blobs out.

Source: pycaffe's `io.py`: names, order of the steps, and what is refused. Pictures are decoded by Pillow and resized
bilinearly without smoothing, as the scikit-image of pycaffe's days does, except that border pixels are not darkened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autonuq.graph.model import Array, Shape
from autonuq.graph.script_messages import build_messages
from autonuq.pycaffe.pictures import decode

__all__ = [
    "Transformer",
    "array_to_blobproto",
    "array_to_datum",
    "arraylist_to_blobprotovector_str",
    "blobproto_to_array",
    "blobprotovector_str_to_arraylist",
    "caffe_pb2",
    "datum_to_array",
    "load_image",
    "oversample",
    "resize_image",
]

caffe_pb2: Any = build_messages()

_LUMINANCE = np.array([0.2125, 0.7154, 0.0721], np.float32)  # scikit-image's rgb2gray


def load_image(filename: str | Path, color: bool = True) -> Array:
    """Read a picture: float32 in [0, 1], (H, W, 3) in RGB order, or (H, W, 1) without `color`.

    Raises
    ------
    OSError
        The file cannot be read or is no picture.
    """
    path = Path(filename)
    try:
        picture = decode(path)
    except OSError as error:
        raise error if error.filename else OSError(f"{path}: {error}") from error
    is_grey = not color and picture.mode == "L"
    picture = picture if is_grey or picture.mode == "RGB" else picture.convert("RGB")
    values = np.array(picture, np.float32)
    values /= np.float32(255)
    if is_grey:
        return values[:, :, np.newaxis]
    return values if color else (values @ _LUMINANCE)[:, :, np.newaxis]


def resize_image(im: Array, new_dims: Sequence[int], interp_order: int = 1) -> Array:
    """Resize a picture (H, W, K) to (new H, new W, K): to the nearest pixel (order 0) or bilinearly (order 1).

    Raises
    ------
    ValueError
        The order is another one.
    """
    if interp_order not in (0, 1):
        rule = "0 (nearest) or 1 (bilinear)"
        raise ValueError(f"The 'interp_order' parameter of resize_image must be {rule}. Got {interp_order} instead.")
    result = np.asarray(im, np.float32)
    for axis, size in enumerate(new_dims):
        result = _resized(result, axis, int(size), interp_order)
    return result


def _resized(values: Array, axis: int, size: int, order: int) -> Array:
    """Resize along one axis: pixel centres lie at halves, what is beyond the last one equals it."""
    length = values.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    if order == 0:
        return np.asarray(np.take(values, np.floor(places + 0.5).astype(int), axis))
    left = np.minimum(places.astype(int), max(length - 2, 0))
    right = np.minimum(left + 1, length - 1)
    share = (places - left).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    return np.asarray(np.take(values, left, axis) * (1 - share) + np.take(values, right, axis) * share)


def oversample(images: Iterable[Array], crop_dims: Sequence[int]) -> Array:
    """Cut the four corners and the centre out of each picture, and their mirror images: (10 N, H, W, K)."""
    crops = []
    height, width = (int(side) for side in crop_dims)
    for image in images:
        down, along = image.shape[0] - height, image.shape[1] - width
        corners = [(y, x) for y in (0, down) for x in (0, along)]
        cut = [image[y : y + height, x : x + width] for y, x in [*corners, (down // 2, along // 2)]]
        crops += [*cut, *(crop[:, ::-1] for crop in cut)]
    return np.stack(crops).astype(np.float32)


class Transformer:
    """Turns pictures (H, W, K) into input blobs (K, H, W), and back.

    Parameters
    ----------
    inputs : mapping of str to tuple of int
        Shape of each input blob, batch first.
    """

    def __init__(self, inputs: Mapping[str, Shape]) -> None:
        self.inputs = dict(inputs)
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Array] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: Array) -> Array:
        """Resize, transpose, swap channels, times raw scale, minus mean, times input scale; what is set of it."""
        self._check_input(in_)
        values = np.asarray(data).astype(np.float32, copy=False)
        size = tuple(self.inputs[in_][2:])
        if values.shape[:2] != size:
            values = resize_image(values, size)
        if in_ in self.transpose:
            values = values.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            values = values[list(self.channel_swap[in_])]
        if in_ in self.raw_scale:
            values = values * np.float32(self.raw_scale[in_])
        if in_ in self.mean:
            values = values - self.mean[in_]
        if in_ in self.input_scale:
            values = values * np.float32(self.input_scale[in_])
        return values

    def deprocess(self, in_: str, data: Array) -> Array:
        """Undo `preprocess`, except the resizing."""
        self._check_input(in_)
        values = np.array(data, np.float32).squeeze()
        if in_ in self.input_scale:
            values = values / np.float32(self.input_scale[in_])
        if in_ in self.mean:
            values = values + self.mean[in_]
        if in_ in self.raw_scale:
            values = values / np.float32(self.raw_scale[in_])
        if in_ in self.channel_swap:
            values = values[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            values = values.transpose(np.argsort(self.transpose[in_]))
        return values

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of axes, e.g. (2, 0, 1) for (H, W, K) -> (K, H, W)."""
        self._check_input(in_)
        if len(order) != len(self.inputs[in_]) - 1:
            raise Exception("Transpose order needs to have the same number of dimensions as the input.")  # noqa: TRY002
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of channels, e.g. (2, 1, 0) for RGB -> BGR."""
        self._check_input(in_)
        if len(order) != self.inputs[in_][1]:
            raise Exception("Channel swap needs to have the same number of dimensions as the input channels.")  # noqa: TRY002
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor before the mean is subtracted, e.g. 255 for pictures of `load_image`."""
        self._check_input(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: Array) -> None:
        """Set the mean: (K,), (H, W) or (K, H, W), in the input's own order of channels."""
        self._check_input(in_)
        mean, shape = np.asarray(mean, np.float32), tuple(self.inputs[in_][1:])
        if mean.ndim == 1:
            if mean.shape[0] != shape[0]:
                raise ValueError(f"Mean channels incompatible with input: {mean.shape[0]}, not {shape[0]}.")
            mean = mean[:, np.newaxis, np.newaxis]
        else:
            mean = mean[np.newaxis] if mean.ndim == 2 else mean
            if mean.ndim != 3 or mean.shape != (mean.shape[0] if mean.shape[0] == 1 else shape[0], *shape[1:]):
                raise ValueError(f"Mean shape incompatible with input shape: {mean.shape}, not {shape}.")
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor after the mean is subtracted."""
        self._check_input(in_)
        self.input_scale[in_] = scale

    def _check_input(self, in_: str) -> None:
        if in_ not in self.inputs:
            raise Exception(f"{in_} is not one of the net inputs: {set(self.inputs)}")  # noqa: TRY002 - pycaffe's own


def blobproto_to_array(blob: Any, return_diff: bool = False) -> Array:
    """Return a blob's values in its own or its old four-dimensional shape."""
    values = np.array(blob.diff if return_diff else blob.data, np.float32)
    old = (blob.num, blob.channels, blob.height, blob.width)
    return values.reshape(tuple(blob.shape.dim) if blob.HasField("shape") else old)


def array_to_blobproto(arr: Array, diff: Array | None = None) -> Any:
    """Return a blob of any shape."""
    blob = caffe_pb2.BlobProto(data=np.asarray(arr, np.float32).ravel().tolist())
    blob.shape.dim.extend(np.shape(arr))
    if diff is not None:
        blob.diff.extend(np.asarray(diff, np.float32).ravel().tolist())
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[Array]) -> bytes:
    """Return arrays as the bytes of a BlobProtoVector."""
    message: bytes = caffe_pb2.BlobProtoVector(blobs=map(array_to_blobproto, arraylist)).SerializeToString()
    return message


def blobprotovector_str_to_arraylist(str: bytes) -> list[Array]:  # noqa: A002 - pycaffe's own name
    """Return the arrays in the bytes of a BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(str).blobs]


def array_to_datum(arr: Array, label: int | None = None) -> Any:
    """Return a Datum of an array (K, H, W): uint8 as bytes, anything else as floats."""
    if np.ndim(arr) != 3:
        raise ValueError("Incorrect array shape.")
    datum = caffe_pb2.Datum(channels=arr.shape[0], height=arr.shape[1], width=arr.shape[2])
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(np.asarray(arr, np.float32).ravel().tolist())
    if label is not None:
        datum.label = int(label)
    return datum


def datum_to_array(datum: Any) -> Array:
    """Return a Datum's values (K, H, W): uint8 of bytes, float32 of floats; a compressed picture is not decoded."""
    shape = (datum.channels, datum.height, datum.width)
    if datum.data:
        return np.frombuffer(datum.data, np.uint8).reshape(shape)
    return np.array(datum.float_data, np.float32).reshape(shape)
