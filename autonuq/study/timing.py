"""How fast this machine scores, and prepares a study: timed on a few batches, layers and networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from autonuq.compress.in_order import is_buildable
from autonuq.compress.pace import (
    SEARCHES,
    BuildPace,
    in_turns,
    known_costs,
    time_builds,
    time_points,
    time_sides,
    time_sizes,
    ways_s,
)
from autonuq.compress.quantized import QuantizedModel
from autonuq.compress.ways import COARSE, what_is_tried
from autonuq.quant.points import Tuning
from autonuq.runtime.inputs import count_kept, load_inputs
from autonuq.study.foretelling import count_plans, foretold_on
from autonuq.study.resources import needs_of

SECONDS_TO_TIME_IN, MOST_S = 3.0, 20.0
"""A batch that takes longer is not timed among several; and one that takes longer than the latter only once."""

BATCHES_TIMED = 4
REPEATED, REPEATED_S = 5, 0.4
"""Short passes are timed so often, or for so long: other programs may hold up any one of them."""


@dataclass(frozen=True)
class ScoringPace:
    """Seconds of a scoring pass: once, and for each batch; and what both take more when they are done first.

    Attributes
    ----------
    once_s, batch_s, first_once_s, first_batch_s : float
    """

    once_s: float
    batch_s: float
    first_once_s: float = 0.0
    first_batch_s: float = 0.0

    def of(self, batches: int) -> float:
        """Return what a pass takes."""
        return self.once_s + batches * self.batch_s

    def first_of(self, batches: int) -> float:
        """Return what the first pass over these data takes."""
        return self.of(batches) + self.first_once_s + batches * self.first_batch_s

    @staticmethod
    def timed(score: Callable[[int], object], batches: int, first_s: float) -> ScoringPace:
        """Time passes of one batch and of several, after a first one of one batch.

        Parameters
        ----------
        score : callable
            Runs so many batches.
        batches : int
            Of a whole pass.
        first_s : float
            What the first pass took.
        """

        def seconds(count: int) -> float:
            started = time.monotonic()
            score(count)
            return time.monotonic() - started

        count = min(BATCHES_TIMED, batches)
        if first_s > MOST_S:
            return ScoringPace(0.0, first_s)
        one_s = seconds(1)
        if count == 1 or one_s > SECONDS_TO_TIME_IN:
            return ScoringPace(0.0, one_s, max(0.0, first_s - one_s))
        new_s = seconds(count)  # of all but one the first time
        again = [(one_s, seconds(count))]
        while len(again) < REPEATED and sum(map(sum, again)) < REPEATED_S:
            again.append((seconds(1), seconds(count)))
        one_s, several_s = (median(column) for column in zip(*again, strict=True))
        batch_s = min(max(0.0, several_s - one_s) / (count - 1), several_s / count)
        more_s = max(0.0, new_s - several_s) / (count - 1)
        return ScoringPace(max(0.0, one_s - batch_s), batch_s, max(0.0, first_s - one_s - more_s), more_s)


@dataclass(frozen=True)
class PreparationPace:
    """Seconds of the parts of a study's preparation, and of what a trial does beside scoring.

    Attributes
    ----------
    ways_s, curves_s, foretelling_s : float
    build_s, first_build_s, sizes_s : float
        Of each trial: its network, what that of a process's first one takes more, and its bytes.
    first : str
        A layer with a codebook that was looked at; empty where there is none.
    found : int
        Its operating points.
    """

    ways_s: float
    curves_s: float
    foretelling_s: float
    build_s: float
    first_build_s: float
    sizes_s: float
    first: str
    found: int

    @staticmethod
    def timed(model: QuantizedModel, record_file: Path) -> PreparationPace:
        """Time pieces of it.

        Parameters
        ----------
        model : QuantizedModel
            Calibrated with one pass.
        record_file : Path
            Beside it lies what that pass left. The others of the calibration are taken to be like it.
        """
        kept, batch_num = load_inputs(record_file), model.config.batch_num
        shapes = {blob: values.shape for blob, values in kept[0].items()} if kept else None
        now, later = (needs_of(model, shapes, passes).layers for passes in (1, batch_num))
        passes = kept[:1] * count_kept(kept[0], batch_num) if kept else []
        trying = what_is_tried(model, passes) if passes and model.nuq_layers else None
        sides_s, sides = time_sides(model, passes, trying) if trying else (0.0, None)
        costs = known_costs(model, record_file, sides)
        points, sizes_s = time_points(model, record_file, costs, now, later), time_sizes(model)
        foretold = foretold_on(model, passes) if model.nuq_layers else []
        compared = sum(map(len, trying.compared)) if trying else 0
        builds = {0: BuildPace()}
        if passes and is_buildable(model.graph):
            wanted = sorted({compared, len(foretold), len(passes)} - {0})
            builds |= dict(zip(wanted, time_builds(model, costs, passes[0], wanted), strict=True))
        own, trials = (builds.get(len(images), BuildPace()) for images in (foretold, passes))
        turns = in_turns(count_plans(len(model.nuq_layers)))
        return PreparationPace(
            ways_s=ways_s(trying, sides_s, points.of(COARSE), builds[compared], sizes_s) if trying else 0.0,
            curves_s=points.of(Tuning()),
            foretelling_s=own.first_s + SEARCHES * (own.each_s + sizes_s) + turns * own.each_s if foretold else 0.0,
            build_s=trials.each_s,
            first_build_s=trials.first_s,
            sizes_s=sizes_s,
            first=points.first,
            found=points.found,
        )
