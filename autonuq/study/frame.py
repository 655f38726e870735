"""A study's trials as a table of pandas, which is loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autonuq.errors import StudyError
from autonuq.records import StudyRecord, TrialRecord

if TYPE_CHECKING:
    import pandas as pd

LEVELS = "levels/"
"""Of the columns: `levels/<layer>` is how many levels the layer keeps."""


def trials_frame(record: StudyRecord) -> pd.DataFrame:
    """Return one row for each trial of a study, by number; for the columns see `Study.trials_dataframe`.

    Raises
    ------
    StudyError
        pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise StudyError("trials_dataframe needs pandas; pip install pandas", study=record.name) from error

    frame = pd.DataFrame([_row(record, trial) for trial in record.trials], columns=_columns(record))
    frame["started"] = pd.to_datetime(frame["started"], utc=True, format="ISO8601")
    kinds = {"satisfied": "boolean", "size_bytes": "Int64"}
    kinds |= dict.fromkeys(("ratio", "metric", "loss", "loss_error", "probability", "duration_s"), "float64")
    kinds |= {name: "Int64" for name in frame.columns if name.startswith(LEVELS)}
    return frame.astype(kinds)


def _columns(record: StudyRecord) -> list[str]:
    layers = [LEVELS + layer.name for layer in record.layers if layer.treatment != "float"]
    return [*_row(record, TrialRecord(0, "waiting")), *layers]


def _row(record: StudyRecord, trial: TrialRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "number": trial.number,
        "state": trial.state,
        "ratio": trial.ratio,
        "metric": trial.metric,
        "loss": record.loss(trial),
        "loss_error": trial.loss_error,
        "satisfied": trial.satisfied,
        "probability": trial.probability,
        "size_bytes": trial.size_bytes,
        "origin": trial.origin,
        "worker": trial.worker,
        "started": trial.started or None,
        "duration_s": trial.duration_s,
        "error": trial.error,
    }
    if trial.points or trial.state == "complete":
        row |= {LEVELS + name: levels for name, levels in record.layer_levels(trial).items()}
    return row
