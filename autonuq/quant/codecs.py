"""Codecs by name, for a layer of a given shape."""

from __future__ import annotations

from autonuq.errors import suggest_name
from autonuq.quant.atc.chips import DDR_RATES, MARKS
from autonuq.quant.atc.codec import AscendCodec
from autonuq.quant.codec import CODECS, Codec, EntropyCodec, PlainCodec
from autonuq.quant.config import Target

CODEC_NAMES = (*CODECS, "ascend")


PLAIN = PlainCodec.name
"""Of a layer that a chip's compiler cannot compress and whose place on the device is not known; no study's choice."""


def make_codec(name: str, shape: tuple[int, ...]) -> Codec:
    """Return a codec.

    Parameters
    ----------
    name : str
        One of `CODEC_NAMES`, or `PLAIN`.
    shape : tuple of int
        Of the layer's weights; `ascend` pads them to the device's blocks, `entropy` learns by row and column; `fixed`
        does not care.
    """
    if name == PLAIN:
        return PlainCodec()
    shaped = {"ascend": AscendCodec, "entropy": EntropyCodec}
    return shaped[name](shape) if name in shaped else CODECS[name]


def broken_rule(target: Target) -> str:
    """Return what is wrong with a target, as a sentence with the choices there are; empty if nothing is."""
    choices = {"chip": tuple(DDR_RATES), "marks": MARKS, "codec": CODEC_NAMES}
    for key, known in choices.items():
        got = getattr(target, key)
        if got and got not in known:
            return f"{key} must be one of {', '.join(known)}. Got '{got}' instead.{suggest_name(got, known)}"
    if target.chip and target.codec_name != AscendCodec.name:
        return f"a chip reads the codec '{AscendCodec.name}' only. Got '{target.codec}' for {target.chip} instead."
    if target.marks and not target.chip:
        return f"marks are those of a chip's compiler, and no chip is given. Got '{target.marks}' instead."
    return ""
