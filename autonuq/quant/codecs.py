"""Codecs by name, for a layer of a given shape."""

from __future__ import annotations

from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codec import CODECS, Codec

CODEC_NAMES = (*CODECS, "ascend")


def make_codec(name: str, shape: tuple[int, ...]) -> Codec:
    """Return a codec.

    Parameters
    ----------
    name : str
        One of `CODEC_NAMES`.
    shape : tuple of int
        Of the layer's weights; `ascend` pads them to the device's blocks, the others do not care.
    """
    return AscendCodec(shape) if name == "ascend" else CODECS[name]
