"""The JSON Schemas (2020-12) of what commands print with `--json`: one document on stdout, nothing else there.

`inspect --json --chip CHIP` adds the keys in `_ON_CHIP` to layers with weights; where a network has `Python` layers of
its own, which are not run, it says which, and its needs are null. `status --json` says what
to do `next`, each step with its kind (`headline.StepKind`), and adds those in `_WHEN_THERE` for studies whose metric
means something, that must be warned of, whose trials tell which layers cause the loss (`null` for what no plan
changes; the deviation is that of the share's logarithm), that ended early, have trials in their storage that do not
count, confirmed their winner, left layers float or found that nothing helps, or count what a chip loads. In
`compare --json` losses are in each metric's own unit, and layers have an entry for each of the `studies`.

In `check --json` the parts of `estimate` are seconds and add up to `total_s`, but for `trial_s`, that of each trial,
`scoring_s`, the evaluator's share of it, `first_trial_s`, which is in `trials_s`, and `float_search_s`, which is at
most and comes only where int8 does not keep the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _object(properties: Mapping[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Describe an object that has these keys and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


_TEXT = {"type": "string"}
_BOOL = {"type": "boolean"}
_NUMBER = {"type": "number"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "minimum": 0}
_ON_CHIP = {
    "marked": _BOOL,
    "mark_reason": _TEXT,
    "int8_kept": _BOOL,
    "int8_compressed_bytes": _COUNT,
    "device_bytes": _COUNT,
}
_MAYBE = {"type": ["number", "null"]}
_MAYBE_COUNT = {"type": ["integer", "null"], "minimum": 0}
_STEP = _object(
    {"kind": _TEXT, "text": _TEXT, "trials": _COUNT, "samples": _COUNT, "layers": {"type": "array", "items": _TEXT}},
    optional=("trials", "samples", "layers"),
)
_WHEN_THERE = {
    "warning": _TEXT,
    "meaning": _TEXT,
    "layer_losses": _object(
        {
            "trial": _COUNT,
            "loss": _MAYBE,
            "loss_error": _MAYBE,
            "parts": {
                "type": "array",
                "items": _object(
                    {"layer": {"type": ["string", "null"]}, "share": _NUMBER, "loss": _MAYBE, "deviation": _NUMBER}
                ),
            },
        }
    ),
    "stopped": _TEXT,
    "ignored": {"type": "object", "additionalProperties": _TEXT},
    "float_layers": _object(
        {
            "layers": {"type": "array", "items": _TEXT},
            "reason": _TEXT,
            "measure": _TEXT,
            "costs": {
                "type": "array",
                "items": _object({"layer": _TEXT, "float_bytes": _COUNT, "cost": _MAYBE}),
            },
            "hopeless": _BOOL,
        }
    ),
    "confirmation": _object(
        {
            "evaluator": _TEXT,
            "trial": _COUNT,
            "original_metric": _MAYBE,
            "metric": _MAYBE,
            "satisfied": {"type": ["boolean", "null"]},
            "original_standard_error": _MAYBE,
            "standard_error": _MAYBE,
            "error": _TEXT,
            "loss": _MAYBE,
            "loss_error": _MAYBE,
            "limit": _MAYBE,
            "samples": {"type": ["integer", "null"]},
            "tried": _COUNT,
            "probability": _MAYBE,
            "holds": {"type": ["boolean", "null"]},
            "finished": {"type": "integer"},
        }
    ),
    "chip": _object(
        {
            "chip": _TEXT,
            "marks": _TEXT,
            "layers": {
                "type": "array",
                "items": _object(
                    {
                        "layer": _TEXT,
                        "is_compressed": _BOOL,
                        "reason": _TEXT,
                        "device_bytes": _COUNT,
                        "load": _MAYBE,
                    }
                ),
            },
            "int8_bytes": _COUNT,
        }
    ),
}

SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "inspect": _object(
        {
            "layers": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "type": _TEXT,
                        "weights": _COUNT,
                        "shape": {"type": "array", "items": _COUNT},
                        "quantizable": _BOOL,
                        "nuq": _BOOL,
                        "reason": _TEXT,
                        "float_bytes": _COUNT,
                        **_ON_CHIP,
                    },
                    optional=tuple(_ON_CHIP),
                ),
            },
            "weights": _COUNT,
            "needs": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            "memory_bytes": _COUNT,
                            "disk_bytes": _COUNT,
                            "curves_s": _SECONDS,
                            "preparation_s": _SECONDS,
                        }
                    ),
                ]
            },
            "python_layers": {
                "type": "array",
                "items": _object({"name": _TEXT, "module": _TEXT, "class": _TEXT}),
            },
        },
        optional=("python_layers",),
    ),
    "status": _object(
        {
            "study": _TEXT,
            "original_metric": _MAYBE,
            "trials": _object({"complete": _COUNT, "satisfied": _COUNT, "failed": _COUNT, "running": _COUNT}),
            "next": {"type": "array", "items": _STEP, "minItems": 1},
            "best": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            "trial": _COUNT,
                            "ratio": _NUMBER,
                            "metric": _NUMBER,
                            "loss": _MAYBE,
                            "loss_error": _MAYBE,
                            "probability": _MAYBE,
                            "confirmed": {"type": ["boolean", "null"]},
                            "levels": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 2}},
                            "bytes": _COUNT,
                            "original_bytes": _COUNT,
                        }
                    ),
                ]
            },
            **_WHEN_THERE,
        },
        optional=tuple(_WHEN_THERE),
    ),
    "compare": _object(
        {
            "notes": {"type": "array", "items": _TEXT},
            "studies": {
                "type": "array",
                "minItems": 2,
                "items": _object(
                    {
                        "study": _TEXT,
                        "label": _TEXT,
                        "trial": _MAYBE_COUNT,
                        "ratio": _MAYBE,
                        "bytes": _MAYBE_COUNT,
                        "original_bytes": _COUNT,
                        "metric": _MAYBE,
                        "original_metric": _MAYBE,
                        "loss": _MAYBE,
                        "loss_error": _MAYBE,
                        "loss_elsewhere": _MAYBE,
                        "loss_elsewhere_error": _MAYBE,
                        "limit": _MAYBE,
                        "confirmed": {"type": ["boolean", "null"]},
                        "trials": _COUNT,
                        "target_trials": _COUNT,
                        "time_s": _SECONDS,
                        "codec": _TEXT,
                        "chip": {"type": ["string", "null"]},
                        "meaning": _TEXT,
                        "warning": _TEXT,
                    }
                ),
            },
            "layers": {
                "type": "array",
                "items": _object(
                    {
                        "layer": _TEXT,
                        "levels": {"type": "array", "items": _MAYBE_COUNT},
                        "bytes": {"type": "array", "items": _MAYBE_COUNT},
                    }
                ),
            },
        }
    ),
    "check": _object(
        {
            "study": _TEXT,
            "passed": _BOOL,
            "checks": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "state": {"enum": ["passed", "failed", "skipped"]},
                        "detail": _TEXT,
                        "seconds": _SECONDS,
                        "warnings": {"type": "array", "items": _TEXT},
                    }
                ),
            },
            "estimate": {
                "anyOf": [
                    {"type": "null"},
                    _object(
                        {
                            "baseline_s": _SECONDS,
                            "calibration_s": _SECONDS,
                            "curves_s": _SECONDS,
                            "trial_s": _SECONDS,
                            "total_s": _SECONDS,
                            "trials": _COUNT,
                            "ways_s": _SECONDS,
                            "int8_s": _SECONDS,
                            "foretelling_s": _SECONDS,
                            "scoring_s": _SECONDS,
                            "first_trial_s": _SECONDS,
                            "trials_s": _SECONDS,
                            "confirmation_s": _SECONDS,
                            "export_s": _SECONDS,
                            "float_search_s": _SECONDS,
                            "memory_bytes": _COUNT,
                            "disk_bytes": _COUNT,
                        }
                    ),
                ]
            },
        }
    ),
}
