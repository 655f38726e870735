"""Scoring one plan: what is expected of it, the race on a part of the batches, the whole pass, the verdict."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import optuna

from autonuq.compress.candidate import write_fake_quant
from autonuq.compress.quantize import QuantizedModel
from autonuq.evaluate.evaluator import is_satisfied, score, standard_error
from autonuq.evaluate.racing import Race, check_nesting, part_of
from autonuq.evaluate.verdict import margin, verdict_alone
from autonuq.graph.files import ModelPair
from autonuq.quant.points import OperatingPoints
from autonuq.records import TrialRecord
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.study.stored import RACE, Study
from autonuq.study.task import OnProgress, Progress, Task


class Scorer:
    """Scores plans of one study.

    Parameters
    ----------
    task : Task
    study : optuna.Study
    model : QuantizedModel
        Calibrated.
    points : mapping of str to OperatingPoints
    original_metric : float
    predictor : RateDistortionSampler
        Of the study's curves, whichever sampler proposes.
    """

    def __init__(
        self,
        task: Task,
        study: optuna.Study,
        model: QuantizedModel,
        points: Mapping[str, OperatingPoints],
        original_metric: float,
        predictor: RateDistortionSampler,
    ) -> None:
        self.task, self.study, self.model, self.points = task, study, model, points
        self.original_metric, self.predictor = original_metric, predictor
        stored = study.user_attrs.get(RACE, {}).get("race") if task.racing else None
        self.race = Race(**stored) if stored else None

    def score(self, record: TrialRecord) -> TrialRecord:
        """Return a trial's record with what its plan scored.

        Raises
        ------
        EvaluatorError
            See `evaluator`.
        """
        expected = self.predictor.predict(self.study, record.points, record.number)
        record = replace(record, predicted=expected and expected[0])
        folder = self.task.trial_folder(record.number)
        folder.mkdir(exist_ok=True)
        try:
            pair = ModelPair(folder / "model.prototxt", folder / "weights.caffemodel")
            write_fake_quant(self.model, self.points, record.points, pair, python_layers=self.task.python_layers)
            if self.race is not None:
                record = self._raced(self.race, record, pair, expected)
            return record if record.is_partial else self._completed(record, pair)
        finally:
            shutil.rmtree(folder)

    def _raced(
        self, race: Race, record: TrialRecord, pair: ModelPair, expected: tuple[float, float] | None
    ) -> TrialRecord:
        """Score on the part if that pays, and stop the trial if its failure is clear."""
        trials = Study(self.study).record().trials
        if not race.pays(trials, expected):
            return record
        metric = score(self.task.evaluator, pair, race.part)
        satisfied = is_satisfied(self.task.evaluator, race.original_metric, metric)
        part_margin = margin_of(self.task.evaluator, race.original_metric, metric, satisfied)
        record = replace(record, part_margin=part_margin, batches=race.part)
        found = race.stop(trials, part_margin)
        if found is None:
            return record
        return replace(
            record,
            metric=self.original_metric + metric - race.original_metric,
            satisfied=False,
            margin=found.margin,
            margin_error=found.deviation,
        )

    def _completed(self, record: TrialRecord, pair: ModelPair) -> TrialRecord:
        evaluator = self.task.evaluator
        metric = score(evaluator, pair)
        satisfied = is_satisfied(evaluator, self.original_metric, metric)
        return replace(
            record,
            metric=metric,
            satisfied=satisfied,
            margin=margin_of(evaluator, self.original_metric, metric, satisfied),
            standard_error=standard_error(evaluator, metric),
            batches=(record.batches or 0) + evaluator.evaluate_batch_num,
        )


def margin_of(evaluator: Any, original: float, metric: float, satisfied: bool) -> float:
    """Return the margin that goes with a verdict; the verdict alone where the predicate says something else now."""
    try:
        found = margin(evaluator.is_satisfied, original, metric)
    except (Exception, SystemExit):
        return verdict_alone(satisfied)
    return found if (found <= 0) == satisfied else verdict_alone(satisfied)


def prepare_race(task: Task, study: optuna.Study, original_metric: float, on_progress: OnProgress) -> None:
    """Find out, once in a study's life, whether its evaluator allows racing, and store what is needed for it."""
    if not task.racing or RACE in study.user_attrs:
        return
    batches = task.evaluator.evaluate_batch_num
    on_progress(Progress("racing", "scoring the original network on parts of the batches", 0, 1))
    metric, fault = check_nesting(lambda count: score(task.evaluator, task.source, count), batches, original_metric)
    race = Race(part_of(batches), batches, metric)
    study.set_user_attr(RACE, {"race": None if fault else asdict(race), "fault": fault})
    told = f"off: {fault}" if fault else f"on: {race.part} of {batches} batches first, where stopping is likely"
    on_progress(Progress("racing", told, 1, 1))
