"""Caffe's transforms: resize, centre crop, order of the colours, mean, scale.

Source: Caffe's `data_transformer.cpp` (phase TEST) and `io.cpp`: pictures are resized bilinearly by OpenCV, the crop is
the centre one, the mean is subtracted before the scale is applied, and a mean image has the size before the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autonuq.array_files import load_array, load_arrays
from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.sources import Order
from autonuq.graph.datum import load_mean_image
from autonuq.graph.model import Array


@dataclass(frozen=True)
class TransformSettings:
    """What happens to an image before the network sees it, in this order.

    Attributes
    ----------
    resize : tuple of int, optional
        (height, width), or (shorter side,), which keeps the proportions.
    crop : tuple of int, optional
        (height, width) of the centre that is kept.
    channels : {"RGB", "BGR"}, optional
        Order of the colours that the network takes. By default BGR for pictures and databases, as Caffe's, and npz
        arrays as they are; given, npz arrays count as RGB.
    mean : tuple of float
        Subtracted from every channel: one number for all, or one for each in the network's order.
    mean_file : str, optional
        Mean image or mean of each channel: `.binaryproto`, `.npy`, or `FILE.npz:NAME`.
    scale : float
        Factor applied last.
    """

    resize: tuple[int, ...] = ()
    crop: tuple[int, int] | None = None
    channels: Order | None = None
    mean: tuple[float, ...] = ()
    mean_file: str | None = None
    scale: float = 1.0


class Transform:
    """The transforms of one network.

    Parameters
    ----------
    settings : TransformSettings
    shape : tuple of int
        (channels, height, width) that the network takes.

    Raises
    ------
    EvaluatorError
        The mean cannot be read or does not fit.
    """

    def __init__(self, settings: TransformSettings, shape: tuple[int, int, int]) -> None:
        self._settings, self._shape = settings, shape
        self.mean = _mean(settings)
        if self.mean.shape[0] not in (1, shape[0]):
            raise self._mean_error(f"the mean has {self.mean.shape[0]} channels, the network takes {shape[0]}")

    def apply(self, images: Sequence[NDArray[Any]], order: Order, wanted: Order) -> Array:
        """Make a batch.

        Parameters
        ----------
        images : sequence of ndarray, shape (height, width, channels)
        order : {"RGB", "BGR"}
            Of their colours.
        wanted : {"RGB", "BGR"}
            Order where the settings do not say one.

        Returns
        -------
        ndarray of float32, shape (images, channels, height, width)

        Raises
        ------
        EvaluatorError
            An image has not the size that the network takes.
        """
        sized = [_resized(image, place(self._settings, image.shape[:2]).resized) for image in images]
        before = sized[0].shape[:2]
        cropped = [self._cropped(image) for image in sized]
        for image in cropped:
            if image.shape[:2] != self._shape[1:]:
                height, width = image.shape[:2]
                raise EvaluatorError(
                    f"images are {height}x{width} after the transforms, the network takes "
                    f"{self._shape[1]}x{self._shape[2]}; set 'resize' or 'crop' in [evaluator.transform]"
                )
        batch = np.stack(cropped).transpose(0, 3, 1, 2).astype(np.float32)
        if order != (self._settings.channels or wanted):
            batch = batch[:, ::-1]
        return np.ascontiguousarray((batch - self._mean_of(before)) * np.float32(self._settings.scale))

    def _cropped(self, image: NDArray[Any]) -> NDArray[Any]:
        return image if self._settings.crop is None else _centre(image, self._settings.crop)

    def _mean_of(self, before: tuple[int, ...]) -> Array:
        """Return the mean in the size of the cropped images."""
        size = self.mean.shape[1:]
        if size in ((1, 1), self._shape[1:]):
            return self.mean
        if size == before and self._settings.crop is not None:
            return _centre(self.mean.transpose(1, 2, 0), self._settings.crop).transpose(2, 0, 1)
        raise self._mean_error(
            f"the mean image is {size[0]}x{size[1]}; it must have the size before the crop, {before[0]}x{before[1]}, "
            f"or the network's, {self._shape[1]}x{self._shape[2]}"
        )

    def _mean_error(self, message: str) -> EvaluatorError:
        return EvaluatorError(message, path=self._settings.mean_file)


def _mean(settings: TransformSettings) -> Array:
    """Return the mean as (channels or 1, height or 1, width or 1)."""
    if settings.mean_file is None:
        return np.array(settings.mean or (0.0,), np.float32).reshape(-1, 1, 1)
    mean = _load_mean(settings.mean_file)
    if mean.ndim not in (1, 3) or mean.dtype.kind not in "uif":
        raise EvaluatorError(
            f"mean of shape {mean.shape} must be (channels,) or (channels, height, width)", path=settings.mean_file
        )
    with np.errstate(over="ignore"):
        mean = mean.astype(np.float32)
    if not np.isfinite(mean).all():
        raise EvaluatorError(
            "mean must be finite; it holds NaN, infinity or what float32 lacks", path=settings.mean_file
        )
    return mean.reshape(mean.shape if mean.ndim == 3 else (-1, 1, 1))


def _load_mean(file: str) -> NDArray[Any]:
    archive, _, name = file.rpartition(":")
    if archive.endswith(".npz"):
        return load_arrays(archive, [name], EvaluatorError)[name]
    if not file.endswith(".npy"):
        return load_mean_image(Path(file))
    return load_array(file, EvaluatorError, what="mean file")


@dataclass(frozen=True)
class Placement:
    """Where a picture's pixels come to lie in what the network sees.

    Attributes
    ----------
    resized : tuple of int
        (height, width) after the resizing.
    start : tuple of int
        (top, left) of what the crop keeps of that.
    size : tuple of int
        (height, width) of it.
    """

    resized: tuple[int, int]
    start: tuple[int, int]
    size: tuple[int, int]


def place(settings: TransformSettings, size: tuple[int, int]) -> Placement:
    """Say where a picture of (height, width) comes to lie."""
    height, width = size
    resized = settings.resize
    if len(resized) == 1:
        shorter = min(height, width)
        resized = (round(height * resized[0] / shorter), round(width * resized[0] / shorter))
    height, width = resized or size
    crop = settings.crop or (height, width)
    top, left = max(0, (height - crop[0]) // 2), max(0, (width - crop[1]) // 2)
    return Placement((height, width), (top, left), (min(height, crop[0]), min(width, crop[1])))


def place_mask(settings: TransformSettings, mask: NDArray[Any]) -> NDArray[Any]:
    """Resize and crop a mask (height, width) as its picture, each pixel with the value of the nearest one."""
    placement = place(settings, (mask.shape[0], mask.shape[1]))
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * (old / new), old - 1).astype(np.int64)
        for new, old in zip(placement.resized, mask.shape, strict=True)
    )
    (top, left), (height, width) = placement.start, placement.size
    return np.asarray(mask[np.ix_(rows[top : top + height], columns[left : left + width])])


def _resized(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize as OpenCV's INTER_LINEAR: between the four nearest pixels, without smoothing."""
    height, width = image.shape[:2]
    if size == (height, width):
        return image
    step = (width / size[1], 0.0, 0.0, 0.0, height / size[0], 0.0)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., channel])).transform(
                (size[1], size[0]), Image.Transform.AFFINE, step, Image.Resampling.BILINEAR
            )
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def _centre(image: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Cut out the centre; an image smaller than it stays as it is."""
    top, left = ((have - keep) // 2 for have, keep in zip(image.shape, size, strict=False))
    return image[max(0, top) :, max(0, left) :][: size[0], : size[1]]
