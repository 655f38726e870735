"""Which layers can be quantized, which can carry a codebook, and why not.

Rules: AMCT's tables of supported layers (Caffe PTQ pages), read as decision 1 of the project has them: the
filter's "4 x 4" is a number of dimensions, and NUQ needs dilation 1 and group 1.
"""

from __future__ import annotations

from dataclasses import dataclass

# The types whose weights may have one scale per output channel (manual-tuning page, channel_wise).
CHANNEL_WISE_TYPES = ("Convolution", "Deconvolution")


@dataclass(frozen=True)
class Capability:
    """What quantization can do with one layer.

    Attributes
    ----------
    name, type : str
        Caffe's layer name and type.
    weights : int
        Number of weights (bias not counted), 0 for layers without.
    shape : tuple of int
        Shape of the weight blob, () for layers without.
    quantizable : bool
        Uniform int8 quantization is supported.
    nuq : bool
        A codebook is supported.
    fusible : bool
        A BatchNorm or Scale behind this layer, or before it, can be folded into it.
    reason : str
        Why the layer is not quantizable, or quantizable but not NUQ-capable; empty if it is both.
    """

    name: str
    type: str
    weights: int
    shape: tuple[int, ...]
    quantizable: bool
    nuq: bool
    fusible: bool
    reason: str
