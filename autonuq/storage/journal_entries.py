"""What an entry of Optuna's journal must hold, for a replay not to stumble over it.

Optuna believes its journal. A line that is JSON but says something else, out of a damaged or edited file, ends its
replay anywhere; so each entry is looked at before it is handed over. What an entry has beyond is Optuna's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState

from autonuq.plain import ANY_NUMBER, from_plain

_State = Literal[0, 1, 2, 3, 4]
_FINISHED = {state.value for state in TrialState if state.is_finished()}


@dataclass(frozen=True)
class _CreateStudy:
    study_name: str
    directions: tuple[Literal[0, 1, 2], ...]


@dataclass(frozen=True)
class _DeleteStudy:
    study_id: int


@dataclass(frozen=True)
class _StudyUserAttribute:
    study_id: int
    user_attr: Mapping[str, Any]


@dataclass(frozen=True)
class _StudySystemAttribute:
    study_id: int
    system_attr: Mapping[str, Any]


@dataclass(frozen=True)
class _CreateTrial:
    study_id: int
    datetime_start: str | None
    datetime_complete: str | None = None
    distributions: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    state: _State = 0
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = field(default=None, metadata=ANY_NUMBER)
    values: tuple[float, ...] | None = field(default=None, metadata=ANY_NUMBER)
    intermediate_values: Mapping[str, float] = field(default_factory=dict, metadata=ANY_NUMBER)

    def check(self, entry: Mapping[str, Any]) -> None:
        """Read what Optuna reads."""
        for name, value in self.params.items():
            _check_parameter(self.distributions.get(name, ""), value)
        _check_time(self.datetime_start)
        if "datetime_complete" in entry:  # which stands for its being a time
            _check_time(self.datetime_complete or "")
        if self.value is not None and self.values is not None:
            raise ValueError("it has a value and values")
        list(map(int, self.intermediate_values))


@dataclass(frozen=True)
class _TrialParameter:
    trial_id: int
    param_name: str
    param_value_internal: float
    distribution: str

    def check(self, entry: Mapping[str, Any]) -> None:
        """Read what Optuna reads."""
        _check_parameter(self.distribution, self.param_value_internal)


@dataclass(frozen=True)
class _TrialState:
    trial_id: int
    state: _State
    values: tuple[float, ...] | None = field(metadata=ANY_NUMBER)
    datetime_start: str | None = None
    datetime_complete: str | None = None

    def check(self, entry: Mapping[str, Any]) -> None:
        """Read what Optuna reads."""
        if self.state == TrialState.RUNNING.value:
            _check_time(self.datetime_start or "")
        if self.state in _FINISHED:
            _check_time(self.datetime_complete or "")


@dataclass(frozen=True)
class _TrialIntermediateValue:
    trial_id: int
    step: int
    intermediate_value: float = field(metadata=ANY_NUMBER)


@dataclass(frozen=True)
class _TrialUserAttribute:
    trial_id: int
    user_attr: Mapping[str, Any]


@dataclass(frozen=True)
class _TrialSystemAttribute:
    trial_id: int
    system_attr: Mapping[str, Any]


_KINDS: tuple[Any, ...] = (
    _CreateStudy,
    _DeleteStudy,
    _StudyUserAttribute,
    _StudySystemAttribute,
    _CreateTrial,
    _TrialParameter,
    _TrialState,
    _TrialIntermediateValue,
    _TrialUserAttribute,
    _TrialSystemAttribute,
)
"""By Optuna's `JournalOperation`; it passes over later ones."""
_DISCARD_TRIALS = 10


def check_entry(entry: Any) -> None:
    """Refuse an entry that Optuna cannot replay.

    Raises
    ------
    ValueError
        Says why.
    """
    head: Mapping[str, Any] = from_plain(Mapping[str, Any], entry, "the entry")
    operation: int = from_plain(int, head.get("op_code"), "op_code")
    from_plain(str, head.get("worker_id"), "worker_id")
    if operation == _DISCARD_TRIALS:
        return
    if not 0 <= operation < len(_KINDS):
        raise ValueError(f"there is no operation {operation}")
    kind = _KINDS[operation]
    own = {key: head[key] for key in kind.__dataclass_fields__ if key in head}
    found = from_plain(kind, own, "the entry")
    attribute = getattr(found, "user_attr", getattr(found, "system_attr", None))
    if isinstance(attribute, Mapping) and operation != _KINDS.index(_CreateTrial) and len(attribute) != 1:
        raise ValueError(f"it sets {len(attribute)} attributes at once")
    check: Callable[[Mapping[str, Any]], None] | None = getattr(found, "check", None)
    if check is not None:
        check(head)


def _check_parameter(distribution: str, value: Any) -> None:
    try:
        _distribution(distribution).to_external_repr(value)
    except Exception as error:  # of any kind, by what the text holds
        raise ValueError(f"a parameter's distribution or value cannot be: {error}") from error


@lru_cache(1024)
def _distribution(text: str) -> Any:
    return json_to_distribution(text)


def _check_time(text: str | None) -> None:
    if text is not None:
        datetime.fromisoformat(text).astimezone()
