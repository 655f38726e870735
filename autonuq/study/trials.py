"""Which of a storage's trials are the study's own, and what is stored of them.

`study.optuna` is Optuna's, so anybody may make trials in it. A trial is the study's if a worker of ours made it, or if
it was queued with parameters of ours, and what is stored of it can be read and agrees with itself: the record with its
own digest, with the value, the constraint and the parameters that Optuna holds. All others are ignored, by samplers,
counts and figures; `status` says how many there are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autonuq.plain import from_plain, with_digest, without_digest
from autonuq.quant.curve import Curve
from autonuq.records import (
    CONSTRAINT,
    DEATHS,
    LEASE,
    LOSS_ERROR,
    MARGIN_ERROR,
    ORIGIN,
    RATIO_PREFIX,
    RUNNING,
    STOPPED,
    TRIAL,
    LayerRecord,
    TrialRecord,
)
from autonuq.search.rate_distortion import FIXED
from autonuq.search.space import Space
from autonuq.storage.filtered import showing
from autonuq.storage.lease import Lease

NOT_STORED = ("number", "state", "probability", "scatter")
"""Fields of a trial's record that its attribute does not hold: Optuna has them, or they follow from all trials."""
FOREIGN = "another program made it"
"""Why a trial is ignored."""
BY_CALLBACK = "a callback, or the sampler, called study.stop()"
"""Why a search ended."""

_RETIRED = ("part_margin", "batches")  # of versions that stopped trials on a part of the batches
_LONGEST_S = 1e9  # thirty years
_SAME = 1e-9  # relative, of a number that is stored twice

_STATES: dict[TrialState, Any] = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
}


class DamagedTrial(ValueError):
    """What is stored of a trial of ours cannot be, or it is not ours."""


class TrialReader:
    """Reads trials; what it found of finished ones it remembers.

    Parameters
    ----------
    layers : tuple of LayerRecord
        Of the study; none before they are stored, when no trial has been scored either.
    """

    def __init__(self, layers: tuple[LayerRecord, ...]) -> None:
        self.layers = layers
        self._layers = {layer.name: layer for layer in layers}
        curves = {
            layer.name: Curve(layer.name, np.array(layer.rates_bytes), np.array(layer.distortions)) for layer in layers
        }
        self._space = Space(curves, {layer.name: layer.weights for layer in layers})
        self._original_bytes = sum(layer.original_bytes for layer in layers)
        self._known: dict[int, TrialRecord | str] = {}

    def own(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those trials that are the study's."""
        return [trial for trial in trials if isinstance(self.read(trial), TrialRecord)]

    def read(self, trial: FrozenTrial) -> TrialRecord | str:
        """Return a trial as plain data; why it is ignored, where it is not the study's or damaged."""
        if trial.number in self._known:
            return self._known[trial.number]
        found: TrialRecord | str
        try:
            found = self._finished(trial) if trial.state.is_finished() else _unfinished(trial)
        except DamagedTrial as error:
            found = str(error)
        except ValueError as error:
            found = f"what is stored of it is damaged: {error}"
        if trial.state.is_finished():
            self._known[trial.number] = found
        return found

    def _finished(self, trial: FrozenTrial) -> TrialRecord:
        record = _with_origin(_finished_record(trial), trial)
        if record.state == "complete":
            self._check_complete(record, trial)
        return record

    def _check_complete(self, record: TrialRecord, trial: FrozenTrial) -> None:
        """Compare what is stored twice, or follows from the layers."""
        self._check_plan(record, trial.params)
        sizes = {name: layer.rates_bytes[record.points.get(name, 0)] for name, layer in self._layers.items()}
        size = sum((sizes | {name: size for name, (size, _) in record.built.items()}).values())
        if size != record.size_bytes:
            raise DamagedTrial(f"its layers take {size} bytes, not {record.size_bytes}")
        from_plain(Mapping[str, float], trial.constraints, "its constraints")
        values = trial.values if isinstance(trial.values, list | tuple) and len(trial.values) == 1 else (None,)
        twice = {
            "value": (values[0], self._original_bytes / max(1, size), record.ratio),
            "constraint": (trial.constraints.get(CONSTRAINT), record.margin),
            MARGIN_ERROR: (trial.user_attrs.get(MARGIN_ERROR), record.margin_error),
            LOSS_ERROR: (trial.user_attrs.get(LOSS_ERROR), record.relative_error),
        }
        for name, numbers in twice.items():
            if not all(_is_same(number, numbers[-1]) for number in numbers):
                raise DamagedTrial(f"its {name} is not what its record says")

    def _check_plan(self, record: TrialRecord, parameters: Mapping[str, Any]) -> None:
        for name, point in record.points.items():
            if name not in self._layers or not 0 <= point < len(self._layers[name].rates_bytes):
                raise DamagedTrial(f"layer '{name}' has no point {point}")
        if unknown := record.built.keys() - self._layers.keys():
            raise DamagedTrial(f"there is no layer '{min(unknown)}'")
        if any(not _is_ratio(parameters.get(name)) for name in self._space.distributions):
            raise DamagedTrial("its parameters are not the study's")
        plan = self._space.plan(parameters)
        if any(record.points.get(name, 0) != point for name, point in plan.items()):
            raise DamagedTrial("its parameters are of another plan than its record")


def _check_times(record: TrialRecord) -> TrialRecord:
    """Return a record whose times can be such, and refuse any other."""
    if record.started:
        datetime.fromisoformat(record.started)
    if record.duration_s is not None and not 0 <= record.duration_s < _LONGEST_S:
        raise DamagedTrial(f"{TRIAL} says that it took {record.duration_s:g} s")
    return record


def _finished_record(trial: FrozenTrial) -> TrialRecord:
    if TRIAL not in trial.user_attrs:
        is_ours = ORIGIN in trial.user_attrs or LEASE in trial.user_attrs
        raise DamagedTrial("another program finished it" if is_ours else FOREIGN)
    record = record_from_data(trial.user_attrs[TRIAL], trial.number)
    if record.state != _STATES[trial.state]:
        raise DamagedTrial(f"it is {_STATES[trial.state]}, but its record is of one that is {record.state}")
    return record


def _unfinished(trial: FrozenTrial) -> TrialRecord:
    """Read a trial that waits or runs: one that our workers made, or that somebody queued for them."""
    attributes = trial.user_attrs
    if LEASE in attributes or ORIGIN in attributes:
        from_plain(Lease | Mapping[str, int], attributes.get(LEASE, {}), LEASE)  # empty between two workers
        from_plain(int, attributes.get(DEATHS, 0), DEATHS)
        if TRIAL in attributes:
            record_from_data(attributes[TRIAL], trial.number)
    elif FIXED not in trial.system_attrs:
        raise DamagedTrial(FOREIGN)
    given = trial.system_attrs.get(FIXED, {})
    if not isinstance(given, Mapping) or not all(map(_is_own_parameter, [*given.items(), *trial.params.items()])):
        raise DamagedTrial(FOREIGN)
    stored = attributes.get(RUNNING, {}) if trial.state == TrialState.RUNNING else {}
    record: TrialRecord = from_plain(TrialRecord, {**stored, "number": trial.number, "state": _STATES[trial.state]})
    return _with_origin(_check_times(record), trial)


def _with_origin(record: TrialRecord, trial: FrozenTrial) -> TrialRecord:
    """Return the record with where the trial comes from, if its record does not say."""
    if trial.state.is_finished() or ORIGIN not in trial.user_attrs:
        return record
    return replace(record, origin=from_plain(str, trial.user_attrs[ORIGIN], ORIGIN))


def _is_own_parameter(item: tuple[str, Any]) -> bool:
    return item[0].startswith(RATIO_PREFIX) and _is_ratio(item[1])


def _is_ratio(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < sys.float_info.max


def _is_same(one: Any, other: Any) -> bool:
    """Say whether two numbers are the same, or both are missing."""
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return one is None and other is None
    try:
        return math.isclose(one, other, rel_tol=_SAME)
    except OverflowError:  # a whole number that no float holds
        return False


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """Read one trial that our workers ran; one that another program finished meanwhile counts as failed."""
    try:
        return _finished_record(trial) if trial.state.is_finished() else _unfinished(trial)
    except ValueError as error:
        return TrialRecord(trial.number, "failed", error=str(error))


def record_as_data(record: TrialRecord) -> dict[str, Any]:
    """Return what is stored of a trial's record, in JSON."""
    return with_digest({key: value for key, value in asdict(record).items() if key not in NOT_STORED})


def record_from_data(stored: Any, number: int) -> TrialRecord:
    """Read what `record_as_data` made of the record of a trial that was scored or failed.

    Raises
    ------
    ValueError
        It is damaged.
    """
    data = without_digest(from_plain(Mapping[str, Any], stored, TRIAL), TRIAL)
    state: Literal["failed", "complete"] = "failed" if data.get("error") else "complete"
    known = {**data, "number": number, "state": state}
    record: TrialRecord = from_plain(TrialRecord, known, TRIAL, retired=_RETIRED)
    numbers = (record.ratio, record.metric, record.satisfied, record.margin, record.size_bytes)
    if state == "complete" and (None in numbers[1:4] or any(len(made) != 2 for made in record.built.values())):
        raise DamagedTrial(f"{TRIAL} lacks what was scored")
    if record.margin is not None and record.satisfied is not None and (record.margin <= 0) != record.satisfied:
        raise DamagedTrial(f"{TRIAL} contradicts itself: margin {record.margin:g} and satisfied {record.satisfied}")
    return _check_times(record)


class OwnTrials(optuna.Study):
    """A study as if there were no trials but its own: what samplers, workers and callbacks see."""

    def stop(self) -> None:
        """End the search, of every worker, when the trials that run are finished: for callbacks and samplers."""
        self.set_user_attr(STOPPED, BY_CALLBACK)


def own_view(study: optuna.Study, reader: TrialReader) -> OwnTrials:
    """Return the study as if there were no trials but its own."""
    shown = showing(study._storage, reader.own)  # a study has no public way to its storage
    return OwnTrials(study.study_name, shown, study.sampler, study.pruner)
