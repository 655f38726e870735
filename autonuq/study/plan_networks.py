"""The networks of a study's plans: built in order once, kept on disk, the same wherever they are scored or exported.

A network is a file of bitstreams and biases beside the operating points, named by its plan and by the digest of the
points. A trial's record has the digest of the network that was scored, so that this one is exported. int8 alone, the
plan of first points, stays as it was scored before the search; so do networks of studies whose points were not made to
be built in order.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna

from autonuq.atomic import replace_file
from autonuq.compress.candidate import Candidate, Made, Plan
from autonuq.compress.chip import codecs_of
from autonuq.compress.in_order import NetworkBuilder
from autonuq.errors import StudyError
from autonuq.quant.codec import EntropyCodec
from autonuq.runtime.inputs import load_inputs
from autonuq.study.kept_files import KeptFiles
from autonuq.study.stored import stored_rounding
from autonuq.study.task import Task, file_digest


class PlanNetworks:
    """Builds networks, or finds those that were built.

    Parameters
    ----------
    task : Task
        With the folder of points.
    candidate : Candidate
        Of the study, settled.
    study : optuna.Study
        Prepared.
    """

    def __init__(self, task: Task, candidate: Candidate, study: optuna.Study) -> None:
        self._task, self._candidate = task, candidate
        self._is_in_order = stored_rounding(study).in_order
        self._index = KeptFiles(task, study).index_digest

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

    def network(self, plan: Plan, digest: str = "") -> Candidate:
        """Return a plan's network.

        Parameters
        ----------
        plan : mapping of str to int
        digest : str
            Of the network that was scored, see `digest`; another one on disk is built again. Empty: not known.

        Raises
        ------
        StudyError
            The calibration's inputs were lost.
        """
        candidate = self._candidate.with_plan(plan)
        if not self._is_in_order or not any(plan.values()):
            return candidate
        path = self._path(plan)
        found = _load(path, candidate, digest)
        if found is None:
            found = self._builder.build(candidate).candidate
            path.parent.mkdir(exist_ok=True)
            _store(path, found)
        return found

    def digest(self, plan: Plan) -> str:
        """Return the SHA-256 of the file of a plan's network; empty where it has none."""
        path = self._path(plan)
        return file_digest(path) if path.exists() else ""

    def forget(self, plan: Plan) -> None:
        """Delete what was kept of a plan that nobody will export; it can be built again."""
        self._path(plan).unlink(missing_ok=True)

    def _path(self, plan: Plan) -> Path:
        chosen = sorted((name, int(point)) for name, point in plan.items())
        floats = sorted(self._candidate.model.graph.by_name.keys() - self._candidate.model.factors.keys())
        key = json.dumps([self._index, chosen, floats])
        return _folder(self._task.points_folder) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


def _folder(points_folder: Path) -> Path:
    return points_folder / "plans"


def discard_plans(points_folder: Path) -> None:
    """Delete the networks that were built of operating points that are no more."""
    shutil.rmtree(_folder(points_folder), ignore_errors=True)


def built_sizes(network: Candidate) -> dict[str, tuple[int, int]]:
    """Return bytes and number of levels of each layer that was rounded anew when a network was built."""
    codecs = codecs_of(network.model)
    return {
        name: (codecs[name].size_bytes(made.codes), len(network.levels(name))) for name, made in network.made.items()
    }


def _store(path: Path, candidate: Candidate) -> None:
    arrays: dict[str, np.ndarray] = {"layers": np.array(list(candidate.made))}
    for index, made in enumerate(candidate.made.values()):
        arrays[f"{index}:codes"] = np.frombuffer(EntropyCodec(made.codes.shape).encode(made.codes), np.uint8)
        if made.bias is not None:
            arrays[f"{index}:bias"] = made.bias
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    replace_file(path, [buffer.getbuffer()])


def _load(path: Path, candidate: Candidate, digest: str) -> Candidate | None:
    """Read a network; None where it is missing, damaged, or not the one with that digest."""
    try:
        if digest and file_digest(path) != digest:
            return None
        with np.load(path, allow_pickle=False) as arrays:
            made = {}
            for index, name in enumerate(arrays["layers"].tolist()):
                shape = candidate.model.weights[name].codes.shape
                codes = (
                    EntropyCodec(shape).decode(arrays[f"{index}:codes"].tobytes(), int(np.prod(shape))).reshape(shape)
                )
                made[name] = Made(codes, arrays.get(f"{index}:bias"))
    except Exception:  # zipfile, zlib, tokenize and NumPy raise a dozen kinds for what a damaged file may hold
        return None
    return replace(candidate, made=made)
