"""A study as its storage holds it: the JSON forms of `records` under the keys that stand there, and a handle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from autonuq.errors import StudyError
from autonuq.evaluate.samples import Score, samples_from_data
from autonuq.notebook import html_table
from autonuq.quant.curve import Curve
from autonuq.records import (
    CHIP,
    CODEC,
    CONFIDENCE,
    CONFIRMATION,
    CONSTRAINT,
    FINGERPRINT,
    FLOAT_LAYERS,
    LAYERS,
    LEASE,
    LOSS_ERROR,
    MARGIN_ERROR,
    ORIGIN,
    ORIGINAL_ERROR,
    ORIGINAL_METRIC,
    ORIGINAL_SAMPLES,
    PROVENANCE,
    RUNNING,
    STOPPED,
    TARGET_TRIALS,
    TRIAL,
    UNIT,
    WAYS,
    ChipRecord,
    Confirmation,
    FloatLayers,
    LayerCost,
    LayerRecord,
    Rounding,
    StudyRecord,
    TrialRecord,
    Unit,
)
from autonuq.search.loss_model import Prior
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.search.trust import BelievedLoss

NOT_STORED = ("number", "state", "probability", "scatter")
"""Fields of a trial's record that its attribute does not hold: Optuna has them, or they follow from all trials."""
_PIECE = 60_000  # characters, all of them ASCII

CORRECTED_CURVE_ERROR = 0.2
"""Once divergences were measured: see `foretelling`."""

FINISHED = (TrialState.COMPLETE, TrialState.FAIL)


@dataclass(frozen=True)
class Best:
    """The trial that a study chooses, see `StudyRecord.best`.

    Attributes
    ----------
    trial : int
    ratio, metric : float
    levels : mapping of str to int
        Of every quantized layer.
    size_bytes : int
    loss, loss_error : float or None
        How much worse the metric got, in its unit, and the paired error of that.
    probability : float or None
        That the plan keeps the limit on data like those that were scored.
    confirmed : bool or None
        Whether it held on data that the search never saw; None if there was no look at any.
    """

    trial: int
    ratio: float
    metric: float
    levels: Mapping[str, int]
    size_bytes: int
    loss: float | None = None
    loss_error: float | None = None
    probability: float | None = None
    confirmed: bool | None = None

    def _repr_html_(self) -> str:
        """Show a notebook the trial and its levels."""
        title = f"Trial {self.trial}: {self.ratio:.2f}x, metric {self.metric:.6g}, {self.size_bytes:,} bytes of weights"
        return html_table(title, ("layer", "levels"), self.levels.items())


class Study:
    """A handle of a study in its storage; it holds no state of its own.

    Parameters
    ----------
    optuna_study : optuna.Study
    """

    def __init__(self, optuna_study: optuna.Study) -> None:
        self.optuna = optuna_study

    @property
    def name(self) -> str:
        """The study's name."""
        return self.optuna.study_name

    def record(self) -> StudyRecord:
        """Read the study as plain data."""
        attributes = self.optuna.user_attrs
        layers, samples = _layers(attributes), load_long(attributes, ORIGINAL_SAMPLES)
        chip = ChipRecord.from_data(load_long(attributes, CHIP))
        return StudyRecord(
            name=self.name,
            codec=attributes.get(CODEC, ""),
            original_metric=attributes.get(ORIGINAL_METRIC),
            layers=layers,
            trials=tuple(self._trials(layers)),
            target_trials=attributes.get(TARGET_TRIALS, 0),
            provenance=attributes.get(PROVENANCE, {}),
            confirmation=Confirmation(**attributes[CONFIRMATION]["found"]) if CONFIRMATION in attributes else None,
            original_standard_error=attributes.get(ORIGINAL_ERROR),
            stopped=attributes.get(STOPPED, ""),
            confidence=attributes.get(CONFIDENCE, 0.0),
            unit=Unit(**attributes.get(UNIT, {})),
            samples=samples and samples["count"],
            float_layers=stored_float_layers(self.optuna) or FloatLayers(),
            rounding=stored_rounding(self.optuna),
            chip=chip and chip.of_study(layers),
        )

    def _trials(self, layers: Sequence[LayerRecord]) -> Iterator[TrialRecord]:
        """Yield the trials with the probability that each keeps the limit."""
        believed = self.believe(layers)
        for trial in self.optuna.get_trials(deepcopy=False):
            found = believed.get(trial.number)
            record = trial_record(trial)
            if found is not None:
                scatter = found.luck if record.loss_error is None else None
                record = replace(record, probability=round(found.probability, 4), scatter=scatter)
            yield record

    def believe(self, layers: Sequence[LayerRecord] | None = None) -> dict[int, BelievedLoss]:
        """Return what all trials say of each plan's loss, by trial number; see `search.trust`."""
        curved = [layer for layer in layers or stored_layers(self.optuna) if layer.rates_bytes]
        curves = [Curve(one.name, np.array(one.rates_bytes), np.array(one.distortions)) for one in curved]
        sizes = {layer.name: float(layer.original_bytes) for layer in curved}
        if not curves:
            return {}
        error = curve_error(stored_rounding(self.optuna))
        return RateDistortionSampler(curves, seed=0, original_bytes=sizes, curve_error=error).believe(self.optuna)

    def _repr_html_(self) -> str:
        """Show a notebook how far the study is and what the best trial makes of each layer."""
        return _study_html(self.record())

    @property
    def best(self) -> Best | None:
        """The trial that the study chooses, None if none satisfied the constraint."""
        record = self.record()
        found = record.best
        if found is None or found.ratio is None or found.metric is None or found.size_bytes is None:
            return None
        return Best(
            found.number,
            found.ratio,
            found.metric,
            record.layer_levels(found),
            found.size_bytes,
            record.loss(found),
            found.loss_error,
            found.probability,
            record.confirmed,
        )


def _study_html(record: StudyRecord) -> str:
    best, trials = record.best, record.counts
    counts = f"{trials.complete} of {record.target_trials} trials, {trials.satisfied} satisfied"
    if best is None:
        return html_table(f"Study {record.name}: {counts}", (), ())
    rows = [
        (
            row.layer.name,
            row.layer.treatment if row.levels is None else row.levels,
            f"{row.size_bytes:,}",
            f"{row.ratio:.2f}x",
        )
        for row in record.layer_rows(best)
    ]
    metrics = f"metric {record.original_metric:.6g} -> {best.metric:.6g}"
    title = f"Study {record.name}: {counts}; best {best.ratio:.2f}x in trial {best.number}, {metrics}"
    return html_table(title, ("layer", "levels", "bytes", "ratio"), rows)


def store_long(study: optuna.Study, key: str, value: Any) -> None:
    """Store a long attribute of a study in pieces: MySQL takes 64 KiB each."""
    text = json.dumps(value)
    pieces = [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)]
    for index, piece in enumerate(pieces):
        study.set_user_attr(f"{key}:{index}", piece)
    study.set_user_attr(key, len(pieces))  # last: until it stands, there is nothing


def load_long(attributes: Mapping[str, Any], key: str) -> Any:
    """Read a long attribute, None if it is not there."""
    found = attributes.get(key)
    if not isinstance(found, int):  # earlier versions stored it whole
        return found
    return json.loads("".join(attributes[f"{key}:{index}"] for index in range(found)))


def original_metric(study: optuna.Study) -> float:
    """Return the original network's metric, a `Score` where its samples are stored."""
    metric = float(study.user_attrs[ORIGINAL_METRIC])
    samples = load_long(study.user_attrs, ORIGINAL_SAMPLES)
    return Score(metric, samples=samples_from_data(samples)) if samples else metric


def store_layers(study: optuna.Study, layers: Iterable[LayerRecord]) -> None:
    """Store the layers and their curves."""
    store_long(study, LAYERS, [asdict(layer) for layer in layers])


def stored_layers(study: optuna.Study) -> tuple[LayerRecord, ...]:
    """Return the layers and their curves; none before they were stored."""
    return _layers(study.user_attrs)


def _layers(attributes: Mapping[str, Any]) -> tuple[LayerRecord, ...]:
    return tuple(map(_layer_record, load_long(attributes, LAYERS) or ()))


def _layer_record(entry: Mapping[str, Any]) -> LayerRecord:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return LayerRecord(**{**entry, **lists})


def curve_error(rounding: Rounding) -> float:
    """Return how wrong a study's curves are against each other; see `RateDistortionSampler`."""
    return CORRECTED_CURVE_ERROR if rounding.factors else Prior.factor


def store_chip(study: optuna.Study, found: ChipRecord | None) -> None:
    """Store whose bytes are counted, if a chip's are, and else that none are."""
    store_long(study, CHIP, None if found is None else asdict(found))


def store_rounding(study: optuna.Study, found: Rounding) -> None:
    """Store how layers are rounded."""
    store_long(study, WAYS, asdict(found))


def stored_rounding(study: optuna.Study) -> Rounding:
    """Return how layers are rounded; nothing chosen, in studies of versions that had one way."""
    return Rounding.from_data(load_long(study.user_attrs, WAYS))


def store_float_layers(study: optuna.Study, found: FloatLayers) -> None:
    """Store which layers stay float: that is decided from now on."""
    store_long(study, FLOAT_LAYERS, asdict(found))


def stored_float_layers(study: optuna.Study) -> FloatLayers | None:
    """Return which layers stay float; None before that was decided."""
    entry = load_long(study.user_attrs, FLOAT_LAYERS)
    if not entry:
        return None
    costs = tuple(LayerCost(**cost) for cost in entry["costs"])
    return FloatLayers(**{**entry, "layers": tuple(entry["layers"]), "costs": costs})


def fixed_curves(layers: Iterable[LayerRecord]) -> dict[str, Curve]:
    """Return a curve of one point for every layer that is float: no plan changes its bytes, but they count."""
    floats = (layer for layer in layers if layer.treatment == "float")
    return {one.name: Curve(one.name, np.array(one.rates_bytes), np.array(one.distortions)) for one in floats}


_STATES: dict[TrialState, Any] = {
    TrialState.COMPLETE: "complete",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "failed",
}


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """Read one trial as plain data."""
    is_running = trial.state == TrialState.RUNNING
    stored = trial.user_attrs.get(RUNNING if is_running else TRIAL, {})
    origin = stored.get("origin") or trial.user_attrs.get(ORIGIN, TrialRecord.origin)
    return TrialRecord(
        **{**_trial_fields(stored), "number": trial.number, "state": _STATES[trial.state], "origin": origin}
    )


def _trial_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that an earlier version stored and records have no more."""
    return {key: value for key, value in stored.items() if key in TrialRecord.__dataclass_fields__}


def record_as_data(record: TrialRecord) -> dict[str, Any]:
    """Return what is stored of a trial's record, in JSON."""
    return {key: value for key, value in asdict(record).items() if key not in NOT_STORED}


def record_from_data(stored: Mapping[str, Any], number: int) -> TrialRecord:
    """Read what `record_as_data` made of the record of a trial that was scored or failed."""
    state: Literal["failed", "complete"] = "failed" if stored["error"] else "complete"
    return TrialRecord(**{**_trial_fields(stored), "number": number, "state": state})


def store_record(trial: optuna.Trial, record: TrialRecord) -> None:
    """Store what came of a trial and finish it, in whatever state its storage has it by now.

    Raises
    ------
    UpdateFinishedTrialError
        It was finished already.
    """
    storage, own_id = trial.storage, id_of(trial)
    trial.set_user_attr(TRIAL, record_as_data(record))
    if record.margin is not None:
        storage.set_trial_system_attr(own_id, f"constraints:{CONSTRAINT}", record.margin)
    if record.margin_error is not None:
        trial.set_user_attr(MARGIN_ERROR, record.margin_error)
    if record.relative_error is not None:
        trial.set_user_attr(LOSS_ERROR, record.relative_error)
    storage.set_trial_state_values(own_id, TrialState.RUNNING)  # if it was given back meanwhile
    if record.state == "failed" or record.margin is None:
        trial.study.tell(trial, state=TrialState.FAIL)
    else:
        trial.study.tell(trial, record.ratio)


def scored_record(trial: optuna.Trial) -> TrialRecord:
    """Read what a running trial's last worker stored before it could finish it."""
    return record_from_data(trial.user_attrs[TRIAL], trial.number)


def check_fingerprint(study: optuna.Study, fingerprint: Mapping[str, str]) -> None:
    """Refuse a study that was started with something else, naming what differs.

    Raises
    ------
    StudyError
        A digest differs from the stored one.
    """
    if different := changed_parts(study, fingerprint):
        raise StudyError(
            f"was started with another {', another '.join(different)}; restore it, or start a study of another name",
            study=study.study_name,
        )


def changed_parts(study: optuna.Study, fingerprint: Mapping[str, str]) -> list[str]:
    """Return what a study was started with another of."""
    stored = study.user_attrs.get(FINGERPRINT, {})
    return [key for key, value in fingerprint.items() if stored.get(key) != value]


def id_of(trial: optuna.Trial | FrozenTrial) -> int:
    """Return what storages call a trial.

    The one place that reads Optuna's private member: its public way, by the trial's number, asks the server each time.
    """
    return trial._trial_id


def requeue(storage: BaseStorage, trial_id: int) -> None:
    """Put an unfinished trial back into the queue; whoever asks next gets it with the parameters that it had."""
    with suppress(UpdateFinishedTrialError):  # finished just before an interrupt
        # First the lease, so that nobody takes the next worker for this one.
        storage.set_trial_user_attr(trial_id, LEASE, {})
        storage.set_trial_state_values(trial_id, TrialState.WAITING)
