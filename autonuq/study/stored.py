"""A study as its storage holds it: the JSON forms of `records` under the keys that stand there, and a handle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import changed_data
from autonuq.evaluate.samples import Score, StoredSamples, samples_from_data
from autonuq.notebook import html_table
from autonuq.plain import from_plain, with_digest, without_digest
from autonuq.quant.curve import Curve
from autonuq.records import (
    CHIP,
    CODEC,
    CONFIDENCE,
    CONFIRMATION,
    CONSTRAINT,
    DATA,
    FINGERPRINT,
    FLOAT_LAYERS,
    INT8_STEPS,
    LAYERS,
    LEASE,
    LOSS_ERROR,
    MARGIN_ERROR,
    ORIGINAL_ERROR,
    ORIGINAL_METRIC,
    ORIGINAL_SAMPLES,
    PROVENANCE,
    STOPPED,
    TARGET_TRIALS,
    TRIAL,
    UNIT,
    WAYS,
    ChipRecord,
    Confirmation,
    FloatLayers,
    LayerRecord,
    LossPart,
    LossParts,
    Rounding,
    StudyRecord,
    TrialRecord,
    Unit,
    decode_levels,
)
from autonuq.search.loss_model import Prior
from autonuq.search.rate_distortion import Learnt, RateDistortionSampler
from autonuq.search.trust import BelievedLoss
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.frame import trials_frame
from autonuq.study.trials import TrialReader, own_view, record_as_data, record_from_data

if TYPE_CHECKING:
    import pandas as pd

CORRECTED_CURVE_ERROR = 0.2
"""Once divergences were measured: see `foretelling`."""

_EVALUATOR = "evaluator"  # in a fingerprint
FINISHED = (TrialState.COMPLETE, TrialState.FAIL)


@dataclass(frozen=True)
class Best:
    """The trial that a study chooses, see `StudyRecord.best`.

    Attributes
    ----------
    trial : int
        Its number, which is `number`, too.
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

    @property
    def number(self) -> int:
        """The trial's number, by Optuna's name."""
        return self.trial

    def _repr_html_(self) -> str:
        """Show a notebook the trial and its levels."""
        title = f"Trial {self.trial}: {self.ratio:.2f}x, metric {self.metric:.6g}, {self.size_bytes:,} bytes of weights"
        return html_table(title, ("layer", "levels"), self.levels.items())


class Study:
    """A handle of a study in its storage; it remembers of it what does not change.

    Parameters
    ----------
    optuna_study : optuna.Study
    """

    def __init__(self, optuna_study: optuna.Study) -> None:
        self.optuna = optuna_study
        self._reader: TrialReader | None = None

    def __repr__(self) -> str:
        return f"Study({self.name!r})"

    @property
    def name(self) -> str:
        """The study's name."""
        return self.optuna.study_name

    def record(self) -> StudyRecord:
        """Read the study as plain data.

        Raises
        ------
        StudyError
            One of its attributes is damaged.
        """
        attributes = StudyAttributes(self.optuna)
        layers = _layers(attributes)
        chip = _chip(attributes)
        every = self.optuna.get_trials(deepcopy=False)
        found = {trial.number: self._reader_of(layers).read(trial) for trial in every}
        learnt = self.learn(layers)
        own = [one for one in found.values() if isinstance(one, TrialRecord)]
        record = StudyRecord(
            name=self.name,
            codec=attributes.get(CODEC, str, ""),
            original_metric=attributes.get(ORIGINAL_METRIC, float | None),
            layers=layers,
            trials=tuple(_believed(learnt.losses, own)),
            target_trials=attributes.get(TARGET_TRIALS, int, 0),
            provenance=attributes.get(PROVENANCE, Mapping[str, str], {}),
            confirmation=stored_confirmation(self.optuna).found,
            original_standard_error=attributes.get(ORIGINAL_ERROR, float | None),
            stopped=attributes.get(STOPPED, str, ""),
            confidence=attributes.get(CONFIDENCE, float, 0.0),
            unit=attributes.get(UNIT, Unit, Unit()),
            samples=_sample_count(attributes),
            float_layers=stored_float_layers(self.optuna) or FloatLayers(),
            rounding=stored_rounding(self.optuna),
            chip=chip and chip.of_study(layers),
            ignored={number: why for number, why in found.items() if isinstance(why, str)},
        )
        return replace(record, loss_parts=_loss_parts(record, learnt))

    def own_trials(self) -> list[FrozenTrial]:
        """Return the study's own trials, by number, as Optuna has them; see `trials`."""
        return self._reader_of(stored_layers(self.optuna)).own(self.optuna.get_trials(deepcopy=False))

    def own_view(self) -> optuna.Study:
        """Return the study as if there were no trials but its own: what samplers and workers see."""
        return own_view(self.optuna, self._reader_of(stored_layers(self.optuna)))

    def _reader_of(self, layers: tuple[LayerRecord, ...]) -> TrialReader:
        """Return what tells the study's own trials from others; it remembers the finished ones."""
        if self._reader is None or self._reader.layers != layers:
            with StudyAttributes(self.optuna).blaming(LAYERS):
                self._reader = TrialReader(layers)
        return self._reader

    def believe(self, layers: tuple[LayerRecord, ...] | None = None) -> dict[int, BelievedLoss]:
        """Return what all trials say of each plan's loss, by trial number; see `search.trust`."""
        return self.learn(layers or stored_layers(self.optuna)).losses

    def learn(self, layers: tuple[LayerRecord, ...]) -> Learnt:
        """Return all that the trials say, given the study's layers."""
        curves = [Curve(one.name, np.array(one.rates_bytes), np.array(one.distortions)) for one in layers]
        sizes = {layer.name: float(layer.original_bytes) for layer in layers}
        if not curves:
            return Learnt({}, {})
        error = curve_error(stored_rounding(self.optuna))
        sampler = RateDistortionSampler(curves, seed=0, original_bytes=sizes, curve_error=error)
        return sampler.learn(own_view(self.optuna, self._reader_of(layers)))

    def front(self) -> tuple[TrialRecord, ...]:
        """Return the satisfied trials that no other one beats in both ratio and metric, by falling ratio."""
        return self.record().front()

    def trials_dataframe(self) -> pd.DataFrame:
        """Return one row for each trial of the search, by number; `optuna.trials_dataframe` has Optuna's view of them.

        Its columns: number, state, ratio, metric; loss, how much worse the metric got, and loss_error; satisfied;
        probability, that the plan keeps the limit; size_bytes, of the weights; origin, worker, started, in UTC,
        duration_s, error; and `levels/<layer>` of each quantized layer.

        Raises
        ------
        StudyError
            pandas is not installed.
        """
        return trials_frame(self.record())

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


def _believed(believed: Mapping[int, BelievedLoss], records: Iterable[TrialRecord]) -> Iterator[TrialRecord]:
    """Yield the trials with the probability that each keeps the limit."""
    for record in records:
        found = believed.get(record.number)
        if found is None:
            yield record
            continue
        scatter = found.luck if record.loss_error is None else None
        yield replace(record, probability=round(found.probability, 4), scatter=scatter)


def _loss_parts(record: StudyRecord, learnt: Learnt) -> LossParts | None:
    """Say which layers cause the loss of the best trial; of the nearest one where none is satisfied."""
    trial = record.best or record.nearest()
    found = None if trial is None else learnt.attribution(trial.number)
    if trial is None or found is None:
        return None
    names = (*found.layers, "")
    parts = [LossPart(*row) for row in zip(names, found.shares.tolist(), found.deviations.tolist(), strict=True)]
    layers = tuple(sorted(parts[:-1], key=lambda part: -part.share))
    believed, allowed = learnt.losses.get(trial.number), record.allowed
    if believed is None or allowed is None:
        return LossParts(trial.number, layers, parts[-1])
    return LossParts(trial.number, layers, parts[-1], believed.mean * allowed, believed.deviation * allowed)


def _study_html(record: StudyRecord) -> str:
    best, trials = record.best, record.counts
    counts = f"{trials.complete} of {record.target_trials} trials, {trials.satisfied} satisfied"
    title = f"Study {record.name}: {counts}" + (f"; stopped: {record.stopped}" if record.stopped else "")
    if best is None:
        return html_table("\n".join(filter(None, (title, record.warning))), (), ())
    rows = [
        (
            row.layer.name,
            row.layer.treatment if row.levels is None else row.levels,
            f"{row.size_bytes:,}",
            f"{row.ratio:.2f}x",
        )
        for row in record.layer_rows(best)
    ]
    sizes = f"{record.original_bytes:,} -> {best.size_bytes:,} bytes of weights"
    metrics = f"metric {record.original_metric:.6g} -> {best.metric:.6g}"
    title += f"\nbest {best.ratio:.2f}x in trial {best.number}: {sizes}, {metrics}\n{record.say_best()}"
    return html_table(title, ("layer", "levels", "bytes", "ratio"), rows)


def original_metric(study: optuna.Study) -> float:
    """Return the original network's metric, a `Score` where its samples are stored."""
    attributes = StudyAttributes(study)
    metric: float = attributes.get(ORIGINAL_METRIC, float)
    samples: Mapping[str, Any] | None = attributes.long(ORIGINAL_SAMPLES, Mapping[str, Any])
    if samples is None:
        return metric
    with attributes.blaming(ORIGINAL_SAMPLES):
        return Score(metric, samples=samples_from_data(samples))


def _sample_count(attributes: StudyAttributes) -> int | None:
    samples: StoredSamples | None = attributes.long(ORIGINAL_SAMPLES, StoredSamples)
    return None if samples is None else samples.count


def store_layers(study: optuna.Study, layers: Iterable[LayerRecord]) -> None:
    """Store the layers and their curves."""
    store_long(study, LAYERS, [asdict(layer) for layer in layers])


def stored_layers(study: optuna.Study) -> tuple[LayerRecord, ...]:
    """Return the layers and their curves; none before they were stored."""
    return _layers(StudyAttributes(study))


def _layers(attributes: StudyAttributes) -> tuple[LayerRecord, ...]:
    layers: tuple[LayerRecord, ...] = attributes.long(LAYERS, tuple[LayerRecord, ...], ())
    with attributes.blaming(LAYERS):
        for layer in layers:
            _check_layer(layer)
    return layers


def _check_layer(layer: LayerRecord) -> None:
    """Refuse a layer whose curve cannot be one, or whose points are not described each."""
    Curve(layer.name, np.array(layer.rates_bytes), np.array(layer.distortions))
    points = len(layer.rates_bytes)
    lengths = {len(layer.curve_levels), len(layer.codebooks) or points, len(layer.steps) or points}
    if lengths != {points} or layer.weights < 1 or layer.rates_bytes[-1] < 0:
        raise ValueError(f"layer '{layer.name}' has no curve of {points} points")
    if len(layer.histogram) not in (0, INT8_STEPS):
        raise ValueError(f"layer '{layer.name}' has a histogram of {len(layer.histogram)} steps")
    for code in layer.codebooks:
        decode_levels(code)


def curve_error(rounding: Rounding) -> float:
    """Return how wrong a study's curves are against each other; see `RateDistortionSampler`."""
    return CORRECTED_CURVE_ERROR if rounding.factors else Prior.factor


def store_chip(study: optuna.Study, found: ChipRecord | None) -> None:
    """Store whose bytes are counted, if a chip's are, and else that none are."""
    store_long(study, CHIP, None if found is None else asdict(found))


def _chip(attributes: StudyAttributes) -> ChipRecord | None:
    chip: ChipRecord | None = attributes.long(CHIP, ChipRecord | None)
    return chip


def store_rounding(study: optuna.Study, found: Rounding) -> None:
    """Store how layers are rounded."""
    store_long(study, WAYS, asdict(found))


def stored_rounding(study: optuna.Study) -> Rounding:
    """Return how layers are rounded; nothing chosen, in studies of versions that had one way."""
    rounding: Rounding = StudyAttributes(study).long(WAYS, Rounding, Rounding())
    return rounding


def store_float_layers(study: optuna.Study, found: FloatLayers) -> None:
    """Store which layers stay float: that is decided from now on."""
    store_long(study, FLOAT_LAYERS, asdict(found))


def stored_float_layers(study: optuna.Study) -> FloatLayers | None:
    """Return which layers stay float; None before that was decided."""
    found: FloatLayers | None = StudyAttributes(study).long(FLOAT_LAYERS, FloatLayers | None)
    return found


@dataclass(frozen=True)
class StoredConfirmation:
    """What is stored of the confirmation.

    Attributes
    ----------
    evaluator : str
        The confirming one's fingerprint; empty before there was one.
    found : Confirmation or None
    data : mapping of str to str or None
        Digests of that evaluator's data; None of versions that took none.
    """

    evaluator: str = ""
    found: Confirmation | None = None
    data: Mapping[str, str] | None = None


def store_confirmation(study: optuna.Study, found: StoredConfirmation) -> None:
    """Store what came of the confirmation."""
    study.set_user_attr(CONFIRMATION, with_digest(asdict(found)))


def stored_confirmation(study: optuna.Study) -> StoredConfirmation:
    """Return what came of the confirmation; nothing before there was one."""
    attributes = StudyAttributes(study)
    with attributes.blaming(CONFIRMATION):
        stored = without_digest(attributes.get(CONFIRMATION, Mapping[str, Any], {}))
        found: StoredConfirmation = from_plain(StoredConfirmation, stored)
    return found


def fixed_curves(layers: Iterable[LayerRecord]) -> dict[str, Curve]:
    """Return a curve of one point for every layer that is float: no plan changes its bytes, but they count."""
    floats = (layer for layer in layers if layer.treatment == "float")
    return {one.name: Curve(one.name, np.array(one.rates_bytes), np.array(one.distortions)) for one in floats}


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


def check_fingerprint(
    study: optuna.Study, fingerprint: Mapping[str, str], data: Mapping[str, str] | None = None
) -> None:
    """Refuse a study that was started with something else, naming what differs.

    Parameters
    ----------
    data : mapping of str to str, optional
        Digests of the evaluator's data, see `evaluator.data_digests`; None where they are not taken here.

    Raises
    ------
    StudyError
        A digest differs from the stored one.
    """
    if different := changed_parts(study, fingerprint, data):
        remedies = ["restore it", "start a study of another name"]
        if different == [_EVALUATOR]:
            code = "its code counts, with the functions and classes that it names of the same file or notebook"
            remedies[1:1] = ["resume with --corrected, in Python corrected=True, if all that it measures is as before"]
            remedies[0] += f" ({code})"
        raise StudyError(
            f"was started with another {', another '.join(different)}; {', or '.join(remedies)}",
            study=study.study_name,
        )


def changed_parts(
    study: optuna.Study, fingerprint: Mapping[str, str], data: Mapping[str, str] | None = None
) -> list[str]:
    """Return what a study was started with another of; of its evaluator, which data, if it is them."""
    attributes = StudyAttributes(study)
    changed = [] if data is None else changed_data(attributes.get(DATA, Mapping[str, str], {}), data)
    stored = dict(attributes.get(FINGERPRINT, Mapping[str, str], {}))
    if changed:
        stored[_EVALUATOR] = fingerprint[_EVALUATOR]  # which may hold a digest of them
    return [f"content of {part}" for part in changed] + [
        key for key, value in fingerprint.items() if stored.get(key) != value
    ]


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
