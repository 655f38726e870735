"""A storage that shows some of its trials."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from copy import deepcopy as copied
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


def showing(storage: BaseStorage, choose: Callable[[Iterable[FrozenTrial]], list[FrozenTrial]]) -> BaseStorage:
    """Return the storage with those trials alone that `choose` leaves of all of them; everything else is the same."""

    def get_all_trials(
        study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        chosen = choose(storage.get_all_trials(study_id, deepcopy=False, states=states))
        return copied(chosen) if deepcopy else chosen

    follow = ("get_best_trial", "get_n_trials")  # from the trials that are shown
    methods: dict[str, Any] = {
        name: getattr(storage, name) for name in dir(BaseStorage) if name[0] != "_" and name not in follow
    }
    methods["get_all_trials"] = get_all_trials
    kind = type("ChosenTrials", (BaseStorage,), {name: staticmethod(method) for name, method in methods.items()})
    made: BaseStorage = kind()
    return made
