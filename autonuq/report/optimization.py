"""What Optuna's own analyses say of a study: importance of the layers, and a contour over two of them.

They look at the metric's drop, not at the objective: the ratio is an exact function of the parameters, so its
importances would only tell the layers' sizes. The Optuna study is made again out of the record, in memory.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from autonuq.records import CONSTRAINT, RATIO_PREFIX, LayerRecord, StudyRecord, TrialRecord
from autonuq.report.data import Flags, Floats

FEWEST_TRIALS = 8
"""Below, importances are noise."""

TARGET_QUANTILE = 0.25
"""Share of the trials, those with the smallest drop, that the others are compared with."""

_METRIC = "metric"


@dataclass(frozen=True)
class ImportanceData:
    """How much each searched layer decides whether the metric drops, n layers by falling importance.

    Attributes
    ----------
    names : tuple of str
    importances : ndarray of float64, shape (n,)
        They sum to 1.
    trials : int
        How many were looked at.
    """

    names: tuple[str, ...]
    importances: Floats
    trials: int


@dataclass(frozen=True)
class ContourData:
    """The two most important layers' ratios and the metric, n trials.

    Attributes
    ----------
    names : tuple of str
        Both layers; empty if there are fewer, or too few trials.
    ratios : ndarray of float64, shape (2, n)
    metrics : ndarray of float64, shape (n,)
    satisfied : ndarray of bool, shape (n,)
    study : optuna.Study
        What Optuna's contour is drawn from.
    """

    names: tuple[str, ...]
    ratios: Floats
    metrics: Floats
    satisfied: Flags
    study: optuna.Study


def optuna_study(record: StudyRecord) -> optuna.Study:
    """Make the Optuna study of a record again, in memory, out of its finished trials.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    optuna.Study
        One parameter `ratio/<layer>` per searched layer; the metric is a user attribute.
    """
    searched = [layer for layer in record.layers if len(layer.rates_bytes) > 1]
    distributions: dict[str, BaseDistribution] = {
        RATIO_PREFIX + layer.name: FloatDistribution(_ratio(layer, 0), _ratio(layer, -1), log=True)
        for layer in searched
    }
    study = optuna.create_study(direction="maximize")
    study.add_trials(_frozen(trial, searched, distributions) for trial in _finished(record))
    return study


def importance_data(record: StudyRecord) -> ImportanceData:
    """Ask Optuna which layers' ratios decide the drop.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    ImportanceData
        Empty with fewer than `FEWEST_TRIALS` finished trials.

    Notes
    -----
    **Source**: Watanabe et al., PED-ANOVA, IJCAI 2023, as Optuna implements it.
    """
    return _importances(record, optuna_study(record))


def contour_data(record: StudyRecord) -> ContourData:
    """Set the metric over the ratios of the two most important layers.

    Parameters
    ----------
    record : StudyRecord

    Returns
    -------
    ContourData
    """
    study = optuna_study(record)
    names = _importances(record, study).names[:2]
    if len(names) < 2:
        names = ()
    trials = study.get_trials(deepcopy=False)
    return ContourData(
        names=names,
        ratios=np.array([[trial.params[RATIO_PREFIX + name] for trial in trials] for name in names], dtype=np.float64),
        metrics=np.array([metric_of(trial) for trial in trials], dtype=np.float64),
        satisfied=np.array(
            [all(value <= 0 for value in trial.constraints.values()) for trial in trials], dtype=np.bool_
        ),
        study=study,
    )


def metric_of(trial: FrozenTrial) -> float:
    """Return the metric of a trial of `optuna_study`."""
    return float(trial.user_attrs[_METRIC])


def _importances(record: StudyRecord, study: optuna.Study) -> ImportanceData:
    trials = len(study.get_trials(deepcopy=False))
    sign = -1.0 if record.metric_rises else 1.0  # Optuna takes smaller targets for the better ones
    found: dict[str, float] = {}
    if trials >= FEWEST_TRIALS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that smaller targets count as better, and that equal metrics tell nothing
            found = get_param_importances(
                study,
                evaluator=PedAnovaImportanceEvaluator(target_quantile=TARGET_QUANTILE),
                target=lambda trial: sign * metric_of(trial),
            )
    names = tuple(name.removeprefix(RATIO_PREFIX) for name in found)
    return ImportanceData(names, np.array(list(found.values()), dtype=np.float64), trials)


def _finished(record: StudyRecord) -> list[TrialRecord]:
    return [
        trial
        for trial in record.trials
        if trial.state == "complete"
        and trial.ratio is not None
        and trial.metric is not None
        and math.isfinite(trial.metric)
    ]


def _frozen(trial: TrialRecord, searched: list[LayerRecord], distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    parameters = {RATIO_PREFIX + layer.name: _ratio(layer, trial.points.get(layer.name, 0)) for layer in searched}
    margin = trial.margin if trial.margin is not None else (-1.0 if trial.satisfied else 1.0)
    return create_trial(
        params=parameters,
        distributions=distributions,
        value=trial.ratio,
        constraints={CONSTRAINT: margin},
        user_attrs={_METRIC: trial.metric},
    )


def _ratio(layer: LayerRecord, point: int) -> float:
    return layer.original_bytes / layer.rates_bytes[point]
