"""The networks of a study's plans: built in order once, kept on disk, the same wherever they are scored or exported.

A network is a file of bitstreams and biases beside the operating points, named by its plan and by what the points were
made from. int8 alone, the plan of first points, stays as it was scored before the search; so do networks of studies
whose points were not made to be built in order.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from autonuq.atomic import replace_file
from autonuq.compress.candidate import Candidate, Made, Plan
from autonuq.compress.in_order import NetworkBuilder
from autonuq.errors import QuantizationError, StudyError
from autonuq.quant.codec import EntropyCodec
from autonuq.runtime.inputs import load_inputs
from autonuq.study.points_cache import index_key, rounding_of
from autonuq.study.task import Task


class PlanNetworks:
    """Builds networks, or finds those that were built.

    Parameters
    ----------
    task : Task
        With the folder of points.
    candidate : Candidate
        Of the study, settled.
    """

    def __init__(self, task: Task, candidate: Candidate) -> None:
        self._task, self._candidate = task, candidate
        self._folder = task.points_folder / "plans"

    @cached_property
    def _is_in_order(self) -> bool:
        return rounding_of(self._task.points_folder).in_order

    @cached_property
    def _builder(self) -> NetworkBuilder:
        passes = load_inputs(self._task.record_file)
        if not passes:
            raise StudyError(
                f"the calibration's inputs beside {self._task.record_file} were lost; resume the study where it was "
                "started, which calibrates again",
                study=self._task.name,
            )
        return NetworkBuilder(self._candidate.model, passes)

    def network(self, plan: Plan) -> Candidate:
        """Return a plan's network.

        Raises
        ------
        StudyError
            The calibration's inputs were lost.
        """
        candidate = self._candidate.with_plan(plan)
        if not self._is_in_order or not any(plan.values()):
            return candidate
        path = self._path(plan)
        found = _load(path, candidate)
        if found is None:
            found = self._builder.build(candidate).candidate
            self._folder.mkdir(exist_ok=True)
            _store(path, found)
        return found

    def forget(self, plan: Plan) -> None:
        """Delete what was kept of a plan that nobody will export; it can be built again."""
        self._path(plan).unlink(missing_ok=True)

    def _path(self, plan: Plan) -> Path:
        chosen = sorted((name, int(point)) for name, point in plan.items())
        floats = sorted(self._candidate.model.graph.by_name.keys() - self._candidate.model.factors.keys())
        key = json.dumps([index_key(self._task.points_folder), chosen, floats])
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _store(path: Path, candidate: Candidate) -> None:
    arrays: dict[str, np.ndarray] = {"layers": np.array(list(candidate.made))}
    for index, made in enumerate(candidate.made.values()):
        arrays[f"{index}:codes"] = np.frombuffer(EntropyCodec(made.codes.shape).encode(made.codes), np.uint8)
        if made.bias is not None:
            arrays[f"{index}:bias"] = made.bias
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    replace_file(path, [buffer.getbuffer()])


def _load(path: Path, candidate: Candidate) -> Candidate | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            made = {}
            for index, name in enumerate(arrays["layers"].tolist()):
                shape = candidate.model.weights[name].codes.shape
                codes = (
                    EntropyCodec(shape).decode(arrays[f"{index}:codes"].tobytes(), int(np.prod(shape))).reshape(shape)
                )
                made[name] = Made(codes, arrays.get(f"{index}:bias"))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, QuantizationError):
        return None  # what is damaged is built again, like what is missing
    return replace(candidate, made=made)
