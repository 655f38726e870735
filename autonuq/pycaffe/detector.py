"""The module that a script gets for `import caffe.detector`: a net that classifies windows of pictures (R-CNN).

Source: pycaffe's `detector.py`: arguments, what `detect_windows` returns, and how a window is cut with context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autonuq.errors import RuntimeFailure
from autonuq.graph.model import TEST, Array
from autonuq.pycaffe.classifier import predict_prepared, prepare_transformer
from autonuq.pycaffe.io import load_image, resize_image
from autonuq.runtime.net import Net

__all__ = ["Detector"]


class Detector(Net):
    """A net that classifies windows of pictures.

    Parameters
    ----------
    model_file, pretrained_file : str or Path
        prototxt and caffemodel.
    mean, input_scale, raw_scale, channel_swap : optional
        See `Classifier`.
    context_pad : int, optional
        Pixels around a window in the net's input that show what is around it in the picture.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = prepare_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(
        self, images_windows: Iterable[tuple[str | Path, Iterable[Sequence[float]]]]
    ) -> list[dict[str, Any]]:
        """Classify windows of pictures.

        Parameters
        ----------
        images_windows : iterable of (file name, windows)
            A window is (ymin, xmin, ymax, xmax) in pixels.

        Returns
        -------
        list of dict
            `window`, `prediction` (a row of the net's first output) and `filename`, in the windows' order.
        """
        detections: list[dict[str, Any]] = []
        crops = []
        for filename, windows in images_windows:
            image = load_image(filename)
            for window in windows:
                crops.append(self.crop(image, window))
                detections.append({"window": window, "filename": filename})
        if crops:
            for detection, prediction in zip(detections, predict_prepared(self, self.transformer, crops), strict=True):
                detection["prediction"] = prediction
        return detections

    def detect_selective_search(self, image_fnames: Iterable[str | Path]) -> list[dict[str, Any]]:
        """Refuse: pycaffe asks a MATLAB program for the windows."""
        raise RuntimeFailure("selective search is a MATLAB program of its own; give its windows to detect_windows")

    def configure_crop(self, context_pad: int | None) -> None:
        """Set how much context a window is cut with; outside of the picture lies the mean, in the picture's values."""
        name = self.inputs[0]
        channels, height, width = self.blobs[name].shape[1:]
        if context_pad and not 0 < 2 * context_pad < min(height, width):
            rule = f"less than half of the input's {height} x {width}"
            raise ValueError(f"The 'context_pad' parameter of Detector must be {rule}. Got {context_pad} instead.")
        self.context_pad = context_pad
        self.crop_dims = np.array([height, width, channels])
        mean = self.transformer.mean.get(name)
        self.crop_mean = np.zeros(self.crop_dims, np.float32) if mean is None else self._as_picture(name, mean)

    def _as_picture(self, name: str, mean: Array) -> Array:
        """Undo for the mean what is done to a picture before the mean is subtracted."""
        picture = np.transpose(mean, np.argsort(self.transformer.transpose[name]))
        if name in self.transformer.channel_swap:
            picture = picture[:, :, np.argsort(self.transformer.channel_swap[name])]
        return picture / np.float32(self.transformer.raw_scale.get(name, 1))

    def crop(self, im: Array, window: Sequence[float]) -> Array:
        """Cut a window out of a picture.

        Parameters
        ----------
        im : ndarray of float32, shape (H, W, K)
        window : (ymin, xmin, ymax, xmax)

        Returns
        -------
        ndarray of float32
            The window as it is, or with context: of the input's size.

        Raises
        ------
        ValueError
            The window lies outside of the picture.
        """
        corners = np.asarray(window, np.float64)
        if self.context_pad:
            return self._crop_with_context(im, corners)
        top, left, bottom, right = corners.astype(int)
        return _not_empty(im[top:bottom, left:right], window)

    def _crop_with_context(self, im: Array, window: Array) -> Array:
        """Cut a window enlarged about its centre, so that its context takes `context_pad` pixels of the input.

        pycaffe takes the input's width for both sides, and corners as pixels that belong to the window.
        """
        pad, side = self.context_pad or 0, self.blobs[self.inputs[0]].width
        half = (window[2:] - window[:2] + 1) / 2
        centre, reach = window[:2] + half, half * (side / (side - 2 * pad))
        low, high = np.round(centre - reach), np.round(centre + reach)
        scale = side / (high - low + 1)  # pixels of the input for one of the picture
        before = np.round(np.maximum(0, -low) * scale).astype(int)
        limits = np.array(im.shape[:2], np.float64)
        inside_low, inside_high = np.clip(low, 0, limits), np.clip(high, 0, limits)
        size = np.minimum(np.round((inside_high - inside_low + 1) * scale).astype(int), side - before)
        (top, left), (bottom, right) = inside_low.astype(int), inside_high.astype(int)
        part = _not_empty(im[top:bottom, left:right], window)
        result = np.ones(self.crop_dims, np.float32) * self.crop_mean
        if min(size) > 0:
            y, x = before
            result[y : y + size[0], x : x + size[1]] = resize_image(part, size)
        return result


def _not_empty(part: Array, window: Any) -> Array:
    if not part.size:
        raise ValueError(f"window {[float(side) for side in window]} holds no pixel of the picture")
    return part
