"""A study as its storage holds it: the keys, the records behind them, and a handle.

Keys carry the prefix `autonuq:`; their contents are the JSON forms of `records`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autonuq.errors import StudyError
from autonuq.records import Confirmation, LayerRecord, StudyRecord, TrialRecord
from autonuq.search.storage import open_storage

# Attributes of a study.
FINGERPRINT = "autonuq:fingerprint"
ORIGINAL_METRIC = "autonuq:original_metric"
ORIGINAL_ERROR = "autonuq:original_standard_error"
LAYERS = "autonuq:layers"
TARGET_TRIALS = "autonuq:target_trials"
PROVENANCE = "autonuq:provenance"
CODEC = "autonuq:codec"
WEIGHTS = "autonuq:weights/"
"""Followed by a layer's name: its histogram and codebooks, apart from LAYERS because some databases limit a value."""
CONFIRMATION = "autonuq:confirmation"
RACE = "autonuq:race"
STOPPED = "autonuq:stopped"
# Attributes of a trial.
TRIAL = "autonuq:trial"
ORIGIN = "autonuq:origin"
WORKER = "autonuq:worker"
RUNNING = "autonuq:running"  # the fields of RUNNING_FIELDS, while the trial is scored
CONSTRAINT = "satisfied"

RUNNING_FIELDS = ("size_bytes", "started", "worker")

FINISHED = (TrialState.COMPLETE, TrialState.FAIL)


@dataclass(frozen=True)
class Best:
    """The best satisfied trial.

    Attributes
    ----------
    trial : int
    ratio, metric : float
    levels : mapping of str to int
        Of every quantized layer.
    size_bytes : int
    """

    trial: int
    ratio: float
    metric: float
    levels: Mapping[str, int]
    size_bytes: int


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
        return StudyRecord(
            name=self.name,
            codec=attributes.get(CODEC, ""),
            original_metric=attributes.get(ORIGINAL_METRIC),
            layers=tuple(
                _layer_record({**entry, **attributes.get(WEIGHTS + entry["name"], {})})
                for entry in attributes.get(LAYERS, [])
            ),
            trials=tuple(trial_record(trial) for trial in self.optuna.get_trials(deepcopy=False)),
            target_trials=attributes.get(TARGET_TRIALS, 0),
            provenance=attributes.get(PROVENANCE, {}),
            confirmation=Confirmation(**attributes[CONFIRMATION]["found"]) if CONFIRMATION in attributes else None,
            original_standard_error=attributes.get(ORIGINAL_ERROR),
            stopped=attributes.get(STOPPED, ""),
        )

    @property
    def best(self) -> Best | None:
        """The satisfied trial with the largest ratio, None if there is none."""
        record = self.record()
        found = record.best
        if found is None or found.ratio is None or found.metric is None or found.size_bytes is None:
            return None
        return Best(found.number, found.ratio, found.metric, record.layer_levels(found), found.size_bytes)


def store_layers(study: optuna.Study, layers: Iterable[LayerRecord]) -> None:
    """Store the layers of a study; LAYERS comes last, so that it stands for all of them."""
    entries = [asdict(layer) for layer in layers]
    for entry in entries:
        weights = {key: entry.pop(key) for key in ("histogram", "codebooks")}
        study.set_user_attr(WEIGHTS + entry["name"], weights)
    study.set_user_attr(LAYERS, entries)


def _layer_record(entry: Mapping[str, Any]) -> LayerRecord:
    lists = {key: tuple(value) for key, value in entry.items() if isinstance(value, list)}
    return LayerRecord(**{**entry, **lists})


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
    origin = stored.get("origin") or trial.user_attrs.get(ORIGIN, "sampler")
    return TrialRecord(**{**stored, "number": trial.number, "state": _STATES[trial.state], "origin": origin})


def load_study(name: str, storage: str) -> Study:
    """Open a stored study to look at it.

    Raises
    ------
    StudyError
        It does not exist, or the storage cannot be read.
    """
    return Study(open_storage(storage).load(name))


def stored_rates(study: optuna.Study) -> tuple[tuple[int, ...], ...]:
    """Return the sizes of every layer's points, as the study's plans mean them."""
    return tuple(tuple(entry["rates_bytes"]) for entry in study.user_attrs.get(LAYERS, []))


def check_fingerprint(study: optuna.Study, fingerprint: Mapping[str, str]) -> None:
    """Refuse a study that was started with something else, naming what differs.

    Raises
    ------
    StudyError
        A digest differs from the stored one.
    """
    stored = study.user_attrs.get(FINGERPRINT, {})
    different = [key for key, value in fingerprint.items() if stored.get(key) != value]
    if different:
        raise StudyError(
            f"was started with another {', another '.join(different)}; restore it, or start a study of another name",
            study=study.study_name,
        )


def requeue_orphans(study: optuna.Study) -> None:
    """Put trials that no living process runs back into the queue, with the parameters they had."""
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker_host, _, pid = trial.user_attrs.get(WORKER, f"{host}:0").rpartition(":")
        if worker_host == host and not _is_alive(int(pid)):
            requeue(study, trial._trial_id)


def requeue(study: optuna.Study, trial_id: int) -> None:
    """Put an unfinished trial back into the queue; whoever asks next gets it with the parameters that it had."""
    with suppress(UpdateFinishedTrialError):  # finished just before an interrupt
        study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


def _is_alive(pid: int) -> bool:
    if pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
