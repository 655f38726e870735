"""What a study file says about a built-in evaluator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autonuq.evaluate.builtin.boxes import DetectionSettings
from autonuq.evaluate.builtin.sources import DataSettings, Part
from autonuq.evaluate.builtin.transform import TransformSettings


@dataclass(frozen=True)
class Drop:
    """How much of the metric may be lost.

    Attributes
    ----------
    limit : float
        Exclusive: less may be lost; of 0 nothing may.
    unit : {"points", "%"}
        Percentage points of the metric, or per cent of the original metric.
    """

    limit: float = 1.0
    unit: Literal["points", "%"] = "points"

    def allows(self, original: float, new: float) -> bool:
        """Say whether a fall from `original` to `new` is within the limit; counts are compared, not their rounding."""
        lost = 100 * (original - new)
        if self.unit == "%":
            lost /= original or 1.0
        lost = round(lost, 9)
        return lost < self.limit or lost <= 0

    def __str__(self) -> str:
        return f"{self.limit:g} {self.unit}"

    def say(self) -> str:
        """Put the limit into words."""
        if self.limit == 0:
            return "nothing of it may be lost"
        many = {"%": " % of it", "points": " point" if self.limit == 1 else " points"}[self.unit]
        return f"less than {self.limit:g}{many} may be lost"


def parse_drop(value: float | str) -> Drop:
    """Read `1.5` (points) or `"1.5 %"` (of the original metric).

    Raises
    ------
    ValueError
        It is neither.
    """
    text, unit = (value.strip(), "%") if isinstance(value, str) else (str(value), "points")
    if isinstance(value, str):
        if not text.endswith("%"):
            raise ValueError(value)
        text = text.removesuffix("%")
    limit = float(text)
    if not 0 <= limit < math.inf:
        raise ValueError(value)
    return Drop(limit, "%" if unit == "%" else "points")


@dataclass(frozen=True)
class BuiltinSettings:
    """What a study file says about a built-in evaluator.

    Attributes
    ----------
    kind : str
        Key of `kinds.KINDS`.
    data : DataSettings
        Images that are scored.
    calibration : DataSettings
        Images that calibrate.
    transform : TransformSettings
    drop : Drop or None
        None: the kind's own limit.
    evaluate_batch_num : int or None
        Batches of a scoring pass; None: all images.
    batch_size : int or None
        Images of a batch; None: as the prototxt has it.
    input, output : str or None
        Blobs; None: the only one.
    part : {"all", "search", "held back"}
        Of the images in `data`; see `sources.part_of`.
    axis : int or None
        Of the classes in the output (agreement, miou); None: told from its shape.
    outputs : tuple of str
        Blobs that are compared (outputs); empty: all outputs of the network.
    measure : {"snr", "cosine"} or None
        Of outputs; None: the one whose limit is said, else snr.
    snr : float or None
        Limit in decibels; None: the kind's own.
    cosine : float or None
        Limit; None: the kind's own.
    classes : tuple of int
        Those that count (miou); empty: all that the masks show.
    ignore : int
        Pixels of a mask with this value do not count (miou).
    detections : DetectionSettings
        How detections are read (detections, map).
    """

    kind: str
    data: DataSettings
    calibration: DataSettings
    transform: TransformSettings = TransformSettings()
    drop: Drop | None = None
    evaluate_batch_num: int | None = None
    batch_size: int | None = None
    input: str | None = None
    output: str | None = None
    part: Part = "all"
    axis: int | None = None
    outputs: tuple[str, ...] = ()
    measure: Literal["snr", "cosine"] | None = None
    snr: float | None = None
    cosine: float | None = None
    classes: tuple[int, ...] = ()
    ignore: int = 255
    detections: DetectionSettings = DetectionSettings()
