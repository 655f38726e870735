"""How long a study will take, in its parts, and how much memory and disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

PARTS: Mapping[str, str] = MappingProxyType(
    {
        "baseline_s": "baseline",
        "calibration_s": "calibration",
        "ways_s": "choice of ways",
        "curves_s": "curves",
        "int8_s": "all layers at int8",
        "foretelling_s": "foretelling",
        "trials_s": "trials",
        "confirmation_s": "confirmation",
        "export_s": "export and report",
    }
)
"""The parts of a study in their order, and what they are called."""


@dataclass(frozen=True)
class Estimate:
    """What a study with one worker will take until its end.

    Attributes
    ----------
    baseline_s, calibration_s, ways_s, curves_s, int8_s, foretelling_s : float
        Seconds, once in a study's life: scoring the original network, calibrating, choosing how layers are rounded,
        their operating points, scoring int8, measuring what plans do to the results; 0 where it is done already.
    trial_s, scoring_s : float
        Of each trial, and of that the evaluator's.
    first_trial_s : float
        What the first one takes more.
    trials : int
        Still to run; what int8 scores is the first of a new study.
    confirmation_s : float
        The original network and one plan on held-back data.
    export_s : float
        The winner's files and the report.
    float_search_s : float
        At most, and not counted in the total: where int8 does not keep the limit, the search for layers to leave float.
    memory_bytes, disk_bytes : float
        At most.
    """

    baseline_s: float
    calibration_s: float
    ways_s: float
    curves_s: float
    int8_s: float
    foretelling_s: float
    trial_s: float
    scoring_s: float
    first_trial_s: float
    trials: int
    confirmation_s: float
    export_s: float
    float_search_s: float
    memory_bytes: float
    disk_bytes: float

    @property
    def trials_run(self) -> int:
        """How many trials score a network of their own: not the one that int8 makes."""
        return max(0, self.trials - (self.int8_s > 0))

    @property
    def trials_s(self) -> float:
        """All trials that score a network of their own."""
        return self.trials_run * self.trial_s + (self.first_trial_s if self.trials_run else 0.0)

    @property
    def total_s(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part, by its name in `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}

    def as_document(self) -> dict[str, float]:
        """Return all of it for JSON."""
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        sizes = {key: round(own[key]) for key in ("memory_bytes", "disk_bytes")}
        return {**own, **sizes, "trials_s": self.trials_s, "total_s": self.total_s}
