"""Codecs by name, for a layer of a given shape."""

from __future__ import annotations

from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codec import CODECS, Codec, EntropyCodec

CODEC_NAMES = (*CODECS, "ascend")


def make_codec(name: str, shape: tuple[int, ...]) -> Codec:
    """Return a codec.

    Parameters
    ----------
    name : str
        One of `CODEC_NAMES`.
    shape : tuple of int
        Of the layer's weights; `ascend` pads them to the device's blocks, `entropy` learns by row and column; `fixed`
        does not care.
    """
    shaped = {"ascend": AscendCodec, "entropy": EntropyCodec}
    return shaped[name](shape) if name in shaped else CODECS[name]
