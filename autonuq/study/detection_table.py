"""The table [evaluator.detections] of a study file: how detections are read from a network's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autonuq.evaluate.builtin.boxes import DetectionSettings

_NUMBER = (int, float)
DETECTION_KEYS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("layout", "background", "annotations", "box_format", "box_unit", "priors", "version"), str),
    **dict.fromkeys(("threshold", "min_score", "iou", "nms"), _NUMBER),
    **dict.fromkeys(("outputs", "classes", "strides", "sides", "variances", "anchors"), list),
    **dict.fromkeys(("boxes", "scores"), (str, list)),
    "max_boxes": int,
    "activated": bool,
}
DETECTION_CHOICES: Mapping[str, Sequence[str]] = {
    "layout": ("ssd", "pairs", "yolo"),
    "background": ("first", "none"),
    "box_format": ("corners", "centre", "offsets"),
    "box_unit": ("shares", "pixels"),
    "version": ("v2", "v3", "v5", "rows"),
}


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _are(rule: Callable[[object], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, list) and len(values) > 0 and all(map(rule, values))


def _is_side(value: object) -> bool:
    return _is_positive(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_positive, value)))


def _is_stride(value: object) -> bool:
    return isinstance(value, int) and _is_positive(value)


_are_names = _are(lambda value: isinstance(value, str))
_RULES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("threshold", "iou"), (lambda value: 0 < value < 1, "between 0 and 1")),
    "min_score": (lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    "nms": (lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    "max_boxes": (_is_positive, "positive"),
    **dict.fromkeys(("outputs", "classes"), (_are_names, "a list of names")),
    **dict.fromkeys(("boxes", "scores"), (lambda value: isinstance(value, str) or _are_names(value), "names of blobs")),
    "strides": (_are(_is_stride), "a list of positive whole numbers"),
    "variances": (lambda values: len(values) in (2, 4) and _are(_is_positive)(values), "two or four positive numbers"),
    **dict.fromkeys(
        ("sides", "anchors"),
        (_are(_are(_is_side)), "for each feature map a list of sides, each a positive number or [width, height]"),
    ),
}


def broken_detection_rule(key: str, value: Any) -> str:
    """Return what the value of a key must be, where it is not; empty otherwise."""
    holds, rule = _RULES.get(key, (lambda _: True, ""))
    return "" if holds(value) else rule


def detection_settings(own: Mapping[str, Any], folder: Path) -> DetectionSettings:
    """Put the checked keys of the table together; a relative path is relative to `folder`."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
    for key in {"boxes", "scores"} & values.keys():
        values[key] = (values[key],) if isinstance(values[key], str) else values[key]
    for key in {"sides", "anchors"} & values.keys():
        values[key] = tuple(tuple(map(_width_height, sides)) for sides in values[key])
    if "annotations" in values:
        values["annotations"] = folder / values["annotations"]
    return DetectionSettings(**values)


def _width_height(side: Any) -> tuple[float, float]:
    width, height = side if isinstance(side, list) else (side, side)
    return width, height
