"""Codecs by name, for a layer of a given shape."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class BrokenRule:
    """What is wrong with a target.

    Attributes
    ----------
    key : str
        The attribute of `Target`.
    words : str
        What it must be.
    got : str
    hint : str
        The nearest choice, or nothing.
    """

    key: str
    words: str
    got: str
    hint: str = ""

    def __str__(self) -> str:
        """Return the sentence."""
        return f"{self.key} must be {self.words}. Got '{self.got}' instead.{self.hint}"


def unknown_word(target: Target) -> BrokenRule | None:
    """Return what a target says that nobody knows, if anything is."""
    choices = {"chip": tuple(DDR_RATES), "marks": MARKS, "codec": CODEC_NAMES}
    for key, known in choices.items():
        got = getattr(target, key)
        if got and got not in known:
            return BrokenRule(key, f"one of {', '.join(known)}", got, suggest_name(got, known))
    return None


def broken_rule(target: Target) -> BrokenRule | None:
    """Return what is wrong with a target, if anything is."""
    if unknown := unknown_word(target):
        return unknown
    if target.chip and target.codec_name != AscendCodec.name:
        return BrokenRule(
            "codec", f"'{AscendCodec.name}' or left out for {target.chip}, which reads no other", target.codec
        )
    if target.marks and not target.chip:
        return BrokenRule("marks", "left out without a chip, whose compiler makes them", target.marks)
    return None
