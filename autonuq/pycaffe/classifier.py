"""The module that a script gets for `import caffe.classifier`: a net that takes pictures and gives classes.

Source: pycaffe's `classifier.py`: arguments, order of the steps, what `predict` returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from autonuq.graph.model import TEST, Array
from autonuq.pycaffe.io import Transformer, oversample, resize_image
from autonuq.runtime.net import Net

__all__ = ["Classifier"]


def prepare_transformer(
    net: Net,
    mean: Array | None,
    input_scale: float | None,
    raw_scale: float | None,
    channel_swap: Sequence[int] | None,
) -> Transformer:
    """Return what turns pictures (H, W, K) into a net's first input; what is None is left out."""
    name = net.inputs[0]
    transformer = Transformer({name: net.blobs[name].shape})
    transformer.set_transpose(name, (2, 0, 1))
    if mean is not None:
        transformer.set_mean(name, mean)
    if input_scale is not None:
        transformer.set_input_scale(name, input_scale)
    if raw_scale is not None:
        transformer.set_raw_scale(name, raw_scale)
    if channel_swap is not None:
        transformer.set_channel_swap(name, channel_swap)
    return transformer


def predict_prepared(net: Net, transformer: Transformer, images: Iterable[Array]) -> Array:
    """Run pictures of the input's size through a net, in batches, and return its first output."""
    name = net.inputs[0]
    inputs = np.stack([transformer.preprocess(name, image) for image in images])
    return net.forward_all(None, **{name: inputs})[net.outputs[0]]


class Classifier(Net):
    """A net that takes pictures and gives classes.

    Parameters
    ----------
    model_file, pretrained_file : str or Path
        prototxt and caffemodel.
    image_dims : (int, int), optional
        Height and width to which pictures are resized before crops are cut out; the input's by default.
    mean : ndarray, optional
        In the input's own order of channels and after `raw_scale`; see `Transformer.set_mean`.
    input_scale, raw_scale : float, optional
        Factors behind and before the mean.
    channel_swap : sequence of int, optional
        (2, 1, 0) for a net that takes BGR.
    """

    def __init__(
        self,
        model_file: str | Path,
        pretrained_file: str | Path,
        image_dims: Sequence[int] | None = None,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = prepare_transformer(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None else np.array(image_dims)
        if np.any(self.image_dims < self.crop_dims):
            rule = f"at least the input's {tuple(self.crop_dims.tolist())}"
            raise ValueError(f"The 'image_dims' parameter of Classifier must be {rule}. Got {image_dims} instead.")

    def predict(self, inputs: Sequence[Array], oversample: bool = True) -> Array:
        """Classify pictures.

        Parameters
        ----------
        inputs : sequence of ndarray, shape (H, W, K)
            As `io.load_image` gives them.
        oversample : bool
            Average over the four corners, the centre and their mirror images; otherwise take the centre.

        Returns
        -------
        ndarray of float32, shape (len(inputs), classes)
            The net's first output.
        """
        images = np.stack([resize_image(image, tuple(self.image_dims)) for image in inputs])
        if not oversample:
            return predict_prepared(self, self.transformer, self._centres(images))
        crops = _crops(images, tuple(self.crop_dims))
        predictions = predict_prepared(self, self.transformer, crops)
        return np.asarray(predictions.reshape(len(images), len(crops) // len(images), -1).mean(1))

    def _centres(self, images: Array) -> Array:
        top, left = (self.image_dims - self.crop_dims) // 2
        height, width = self.crop_dims
        return images[:, top : top + height, left : left + width]


_crops = oversample  # `predict` has a parameter of this name
