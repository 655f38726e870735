"""Whether a study fits on this machine, said before hours are spent."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping

from autonuq.compress.needs import StudyNeeds, say_bytes, study_needs
from autonuq.compress.quantized import QuantizedModel
from autonuq.errors import StudyError
from autonuq.graph.model import Shape
from autonuq.runtime.memory import available_memory
from autonuq.study.task import Task


def needs_of(model: QuantizedModel, inputs: Mapping[str, Shape] | None = None, passes: int | None = None) -> StudyNeeds:
    """Say what a study of a quantized network takes.

    Parameters
    ----------
    inputs : mapping of str to tuple of int, optional
        Shapes of the inputs of a pass; as the prototxt has them by default.
    passes : int, optional
        Of the calibration; as configured by default.
    """
    passes = model.config.batch_num if passes is None else passes
    return study_needs(model.graph, model.factors.keys(), set(model.nuq_layers), passes, inputs)


def check_resources(task: Task, needs: StudyNeeds) -> None:
    """Refuse a study that does not fit.

    Raises
    ------
    StudyError
        It needs more memory or disk than there is; the message says what for, and what helps.
    """
    place = next(folder for folder in (task.out, *task.out.parents) if folder.exists())
    _check(task, needs, "memory", needs.memory_bytes, available_memory(), "", "or a machine with more")
    _check(task, needs, "disk", needs.disk_bytes, shutil.disk_usage(place).free, f" in {place}", "or make room there")


def warn_of_resources(task: Task, needs: StudyNeeds) -> None:
    """Warn of a study whose evaluator's batches make it too large, when they are known."""
    free, place = available_memory(), next(folder for folder in (task.out, *task.out.parents) if folder.exists())
    room = {"memory": (needs.memory_bytes, free), "disk": (needs.disk_bytes, float(shutil.disk_usage(place).free))}
    for what, (wanted, left) in room.items():
        if left is not None and wanted > left:
            size = f"{say_bytes(wanted)} of {what}; {say_bytes(left)} are free"
            warnings.warn(f"with batches of this size the study takes about {size}: use smaller ones", stacklevel=2)


def _check(task: Task, needs: StudyNeeds, what: str, wanted: float, free: float | None, where: str, more: str) -> None:
    if free is None or wanted <= free:
        return
    largest = needs.notable[0].layer if needs.notable else None
    remedy = f"leave layer '{largest}' float (skip_layers), use" if largest else "use"
    raise StudyError(
        f"needs {needs.say()}, but only {free / 1e9:.1f} GB of {what} are free{where}; {remedy} smaller batches, "
        f"{more}",
        study=task.name,
    )
