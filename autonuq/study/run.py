"""A study from outside: start it, go on with it, export what it found.

`tune`, `tune_file` and `resume` make a `Task`, which is all that defines a study, and run it as the commands do::

    task = load_task("study.toml")               # or Task(...), or load_stored_task(...) of a study that exists
    run = StudyRun(task, on_progress)            # makes the evaluators; reads and hashes the network when first asked
    study = run.run(exists=False)                # in this order, each step told to `on_progress`:
                                                 #     make or open the study in its storage
                                                 #     preparation: score_original, calibrate, prepare_points
                                                 #     decide_float_layers: those that int8 is not good enough for
                                                 #     foretell: what plans do to the results, without labels
                                                 #     Artifacts.publish: what workers elsewhere need
                                                 #     make_runner: Runner.run here, or run_sent to several workers
                                                 #     confirm: the winner on data that the search never saw
    run.export(study, formats=("packed", "onnx"))    # of the best trial
    study.best.ratio, study.record()             # what is known now, read from the storage each time

What a killed process leaves is always resumable: `preparation` stores each result as soon as it exists, `runner`
finishes a trial by one transaction, and a trial whose worker died goes back into the queue (`claims`,
`storage.lease`).
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from autonuq.compress.candidate import Candidate, Plan
from autonuq.compress.chip import describe_chip, say_unsearched
from autonuq.compress.formats import export
from autonuq.compress.quantized import QuantizedModel
from autonuq.errors import StudyError
from autonuq.evaluate.evaluator import check_evaluator, data_digests, evaluator_name, is_satisfied, score
from autonuq.graph.files import ModelPair
from autonuq.graph.hosted.permission import check_permission, python_layers
from autonuq.graph.model import Graph
from autonuq.masking import without_secrets
from autonuq.quant.config import QuantizationConfig
from autonuq.records import (
    CODEC,
    CONFIDENCE,
    DATA,
    FINGERPRINT,
    FLOAT_LAYERS,
    LEASE,
    MEANING,
    ORIGINAL_METRIC,
    PROVENANCE,
    RANDOM_DATA,
    STOPPED,
    TARGET_TRIALS,
    TASK,
    StudyRecord,
    TrialRecord,
)
from autonuq.search.sampler import stored_sampler
from autonuq.storage.lease import works_here
from autonuq.storage.open import Storage, absolute_url, default_url, open_storage
from autonuq.study.artifacts import Artifacts
from autonuq.study.attributes import StudyAttributes, seal_study
from autonuq.study.confirmation import confirm
from autonuq.study.creation import continue_study, is_begun, start_or_continue, start_study
from autonuq.study.dispatch import check_workers, run_sent
from autonuq.study.display import progress_line
from autonuq.study.engines import Engine, engine
from autonuq.study.float_layers import decide_float_layers, first_trial
from autonuq.study.foretelling import foretell
from autonuq.study.kept_files import KeptFiles
from autonuq.study.locate import load_stored_task, open_study, task_of_study
from autonuq.study.plan_networks import PlanNetworks, built_sizes
from autonuq.study.points_cache import has_points
from autonuq.study.preparation import (
    calibrate,
    kept_candidate,
    prepare_points,
    preparing_alone,
    score_original,
    settled,
)
from autonuq.study.resources import check_resources, needs_of
from autonuq.study.runner import Runner
from autonuq.study.started import write_started
from autonuq.study.stored import FINISHED, Study, changed_parts, check_fingerprint, store_chip
from autonuq.study.study_file import absolute_location, load_task
from autonuq.study.task import (
    Callback,
    OnProgress,
    Progress,
    Task,
    check_name,
    fingerprint_of,
    make_folders,
    quantized_model,
    tell_nobody,
)
from autonuq.study.trial_log import append_conclusion
from autonuq.study.workers import make_runner, package_versions

__all__ = ["WINNER_FORMATS", "StudyRun", "resume", "tune", "tune_file"]

_THEN = ", then "  # between the samplers of a study that went on with another

WINNER_FORMATS = ("caffe", "packed")
"""What the best plan of a study is written as when the study ends."""


def tune(
    model_file: str | Path,
    weights_file: str | Path,
    evaluator: Any,
    *,
    out: str | Path,
    name: str | None = None,
    storage: str | None = None,
    load_if_exists: bool = False,
    artifacts: str = Task.artifacts,
    n_trials: int = Task.n_trials,
    timeout: float | None = None,
    jobs: int = 1,
    sampler: str | BaseSampler = Task.sampler,
    pruner: BasePruner | None = Task.pruner,
    seed: int = Task.seed,
    callbacks: Iterable[Callback] | None = None,
    progress: bool | None = None,
    on_progress: OnProgress = tell_nobody,
    stop_gain: float = Task.stop_gain,
    confidence: float = Task.confidence,
    confirm: Any = None,
    float_layers: str | Sequence[str] = Task.float_layers,
    codec: str = Task.codec,
    chip: str = Task.chip,
    marks: str = Task.marks,
    config: QuantizationConfig | None = None,
    cfg: str | Path | None = None,
    batch_num: int = Task.batch_num,
    activation_offset: bool = Task.activation_offset,
    amct_levels: bool = Task.amct_levels,
    python_layers: bool = Task.python_layers,
) -> Study:
    """Start a study, run it to its end, and export the best plan to `out`.

    Parameters
    ----------
    model_file, weights_file : str or Path
        The float network.
    evaluator : object
        With `eval_model`, `is_satisfied` and `evaluate_batch_num`; see `Evaluator`. Its class may be typed into a
        notebook.
    out : str or Path
        Folder for results and for what a resumed run needs.
    name : str, optional
        The folder's name by default.
    storage : str, optional
        URL; `study.journal` in the folder by default.
    load_if_exists : bool
        Go on with the study if there is one of this name, as `resume` does, instead of refusing.
    artifacts : str
        Folder or `s3://bucket/prefix` where workers on other machines find the network; a folder in `out` by default.
    n_trials : int
        Total of the study, resumed runs included.
    timeout : float, optional
        Seconds after which no further trial is started.
    jobs : int
        Workers that run at the same time, through joblib: processes of this machine, or what its `parallel_config`
        says. Callbacks and `on_progress` are then called in this process, from a thread.
    sampler : {"rate-distortion", "tpe", "gp", "random"} or optuna.samplers.BaseSampler
        An object is not stored: a resumed run needs it again, or another. It is reseeded, by its `reseed_rng`, for each
        of several workers and where a study goes on, lest it propose the same again.
    pruner : optuna.pruners.BasePruner, optional
        Given to `study.optuna`, for trials of your own. It does nothing to the search: a plan is scored by one call,
        which reports nothing before its end.
    seed : int
        Of a sampler that is named, and of what is drawn beside the search.
    callbacks : iterable of callable, optional
        As `optuna.Study.optimize` takes them: called with the study and the `FrozenTrial` after each trial, also one
        that failed. `study.stop()` ends the search, of all workers; the winner is then confirmed and exported as ever.
        What a callback raises ends the run, which can be resumed.
    progress : bool, optional
        Show a line that tells how far the study is, or, where it cannot be updated in place, one for each step. By
        default where it can be: on a terminal and in a notebook.
    on_progress : callable
        Told of every step (`Progress`).
    stop_gain : float
        End when, with 90 % probability, no plan is better than the best by more than this share; 0 never.
    confidence : float in [0, 1)
        With which the winner shall keep the limit on data like those that are scored; 0 takes every measurement at its
        word.
    confirm : object, optional
        Another evaluator, or one of other data, for the winner only.
    float_layers : {"auto", "never"} or sequence of str
        Layers that stay float, four bytes a weight: "auto" finds those without which int8 does not keep the limit, by
        measurements before the first trial; or the names of some.
    codec : {"entropy", "fixed", "ascend"}, optional
        What bytes are counted with: `entropy`, or what `chip` reads, by default.
    chip : {"ascend310", "ascend310b", "ascend310p", "ascend910"}, optional
        Count what this chip stores. A layer that its compiler does not compress is left at its best int8.
    marks : {"compiler", "all"}, optional
        Which layers the compiler compresses: those that it marks, the default, or, with its option
        `--enable_compress_weight`, all that it can.
    config : QuantizationConfig, optional
        What is quantized and how; by default what `cfg` says.
    cfg : str or Path, optional
        AMCT's simplified configuration; by default every layer that can be is quantized, with the next two.
    batch_num : int
        Forward passes of the calibration.
    activation_offset : bool
        Asymmetric activations.
    amct_levels : bool
        A layer keeps 32 or 16 levels or stays uniform; otherwise any number is tried.
    python_layers : bool
        The evaluator runs a Caffe without AMCT's layers: it gets `Python` layers in their place.

    Returns
    -------
    Study
        `best` is None if no trial satisfied the constraint; then nothing is exported, and `record().float_layers` says
        what each layer costs alone, where that was measured. `optuna` is Optuna's own study of the trials.

    Raises
    ------
    StudyError
        The study exists already, or was started with something else, or its storage or folder cannot be used.
    ModelError, QuantizationError, RuntimeFailure, EvaluatorError
        See `errors`; EvaluatorError after three failed trials in a row, too.

    Notes
    -----
    Whatever ends a run, an error, Ctrl-C or a killed kernel, leaves a study that `resume` goes on with.
    """
    folder, here = Path(out).resolve(), Path.cwd()
    task = Task(  # with absolute paths: local workers may be in another folder, and so may be who resumes
        name=name or folder.name,
        source=ModelPair(here / model_file, here / weights_file),
        evaluator=evaluator,
        out=folder,
        storage=absolute_url(storage, here) if storage else default_url(folder),
        config=config,
        cfg=None if cfg is None else here / cfg,
        batch_num=batch_num,
        activation_offset=activation_offset,
        amct_levels=amct_levels,
        python_layers=python_layers,
        codec=codec,
        chip=chip,
        marks=marks,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        n_trials=n_trials,
        artifacts=absolute_location(artifacts, here),
        confirm=confirm,
        stop_gain=stop_gain,
        confidence=confidence,
        float_layers=float_layers,
    )
    seen = Spectators(callbacks, progress, on_progress)
    return _run_and_export(task, seen, exists=None if load_if_exists else False, timeout=timeout, jobs=jobs)


def tune_file(
    study_file: str | Path,
    *,
    trials: int | None = None,
    storage: str | None = None,
    load_if_exists: bool = False,
    out: str | Path | None = None,
    artifacts: str | None = None,
    timeout: float | None = None,
    jobs: int | None = None,
    sampler: str | BaseSampler | None = None,
    pruner: BasePruner | None = None,
    callbacks: Iterable[Callback] | None = None,
    progress: bool | None = None,
    on_progress: OnProgress = tell_nobody,
) -> Study:
    """Start the study of a study file, run it to its end, and export the best plan; see `tune`.

    Parameters
    ----------
    study_file : str or Path
    trials, storage, out, artifacts, sampler : optional
        Override the file's.
    load_if_exists, timeout, jobs, pruner, callbacks, progress, on_progress : optional
        As for `tune`; `jobs` overrides the study file's, whose [workers] also says where they are.

    Raises
    ------
    StudyError
        The file is malformed, or the study exists already; otherwise as for `tune`.
    """
    task = load_task(study_file, out=out, storage=storage, artifacts=artifacts, trials=trials)
    task = replace(task, sampler=task.sampler if sampler is None else sampler, pruner=pruner)
    seen = Spectators(callbacks, progress, on_progress)
    return _run_and_export(task, seen, exists=None if load_if_exists else False, timeout=timeout, jobs=jobs)


def resume(
    study: str | Path,
    storage: str | None = None,
    *,
    evaluator: Any = None,
    corrected: bool = False,
    trials: int | None = None,
    out: str | Path | None = None,
    artifacts: str | None = None,
    timeout: float | None = None,
    jobs: int | None = None,
    sampler: str | BaseSampler | None = None,
    pruner: BasePruner | None = None,
    callbacks: Iterable[Callback] | None = None,
    progress: bool | None = None,
    on_progress: OnProgress = tell_nobody,
) -> Study:
    """Go on with a study where its storage stands, up to its total of trials; see `tune`.

    Parameters
    ----------
    study : str or Path
        A study file, the folder that a study left, or a study's name; the latter with its storage.
    storage : str, optional
        URL.
    evaluator : object, optional
        Needed where the study was not started from a study file: evaluators are not stored. It must be the one that
        the study was started with, unless nothing was measured yet.
    corrected : bool
        The evaluator's code has changed, but not what it measures: it is accepted if it scores the original network as
        before, which it is asked to do once more, and judges every trial as before.
    trials : int, optional
        The new total.
    out, artifacts : optional
        Override what the study was started with.
    sampler : str or optuna.samplers.BaseSampler, optional
        In place of the one that the study was started with; needed where that was an object.
    timeout, jobs, pruner, callbacks, progress, on_progress : optional
        As for `tune`; `jobs` overrides the study file's, whose [workers] also says where they are.

    Raises
    ------
    StudyError
        The study does not exist, or model, configuration or evaluator are not those it was started with.
    """
    task = load_stored_task(
        study, storage, evaluator=evaluator, out=out, artifacts=artifacts, trials=trials, sampler=sampler
    )
    seen, task = Spectators(callbacks, progress, on_progress), replace(task, pruner=pruner)
    return _run_and_export(task, seen, exists=True, timeout=timeout, jobs=jobs, corrected=corrected)


@dataclass(frozen=True)
class Spectators:
    """Who sees a study run from Python.

    Attributes
    ----------
    callbacks : iterable of callable or None
    progress : bool or None
        Whether a line tells of it; None: where it can be updated in place.
    on_progress : callable
    """

    callbacks: Iterable[Callback] | None
    progress: bool | None
    on_progress: OnProgress


def _run_and_export(
    task: Task,
    seen: Spectators,
    *,
    exists: bool | None,
    timeout: float | None,
    jobs: int | None,
    corrected: bool = False,
) -> Study:
    with python_layers(task.allow_python_layers), progress_line(task.name, task.storage, seen.progress) as show:

        def tell(step: Progress) -> None:
            show(step)
            seen.on_progress(step)

        run = StudyRun(task, tell, seen.callbacks or ())
        if corrected:
            run.accept_corrected()
        study = run.run(exists=exists, timeout=timeout, jobs=jobs)
        if study.best is not None:
            run.export(study, formats=WINNER_FORMATS)
    return study


@dataclass(frozen=True)
class Resumability:
    """How far a study is that exists, beside the task that would go on with it.

    Attributes
    ----------
    finished : int
        Trials, failed ones included.
    changed : tuple of str
        What the task has another of; nothing if it can go on.
    worker : str or None
        Who is at work on a trial, on this machine.
    """

    finished: int
    changed: tuple[str, ...]
    worker: str | None


class StudyRun:
    """A study in this process; what was read, hashed and built for it serves until its files are written.

    Parameters
    ----------
    task : Task
        Recipes in it are made: evaluators are loaded.
    on_progress : callable
    callbacks : iterable of callable
        Called as Optuna does after each trial that this run, or a worker that it sent out, has finished.
    graph : Graph, optional
        The float network, where it has been read already.

    Raises
    ------
    EvaluatorError, ModelError
        See `Task.made`.
    """

    def __init__(
        self,
        task: Task,
        on_progress: OnProgress = tell_nobody,
        callbacks: Iterable[Callback] = (),
        *,
        graph: Graph | None = None,
    ) -> None:
        self._asked, self._on_progress, self._callbacks, self._graph = task, on_progress, tuple(callbacks), graph
        if wrong := [one for one in self._callbacks if not callable(one)]:
            raise TypeError(f"callbacks must be callable with a study and a trial. Got {wrong[0]!r}.")
        self._candidate: Candidate | None = None

    @cached_property
    def task(self) -> Task:
        """The task, its evaluators made; of an older study, as that version had it."""
        return task_of_study(self._asked).made()

    @cached_property
    def model(self) -> QuantizedModel:
        """The network with uniform int8 weights, before the calibration."""
        return quantized_model(self.task, self._graph)

    @cached_property
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of everything that changes a measurement."""
        return fingerprint_of(self.task, self.model)

    @cached_property
    def data(self) -> Mapping[str, str]:
        """Digests of the evaluator's data, where it tells them."""
        return data_digests(self.task.evaluator)

    def resumability(self) -> Resumability:
        """Say how the study stands that exists.

        Raises
        ------
        StudyError
            There is none, or its storage cannot be read.
        """
        study = open_study(self.task.name, self.task.storage)
        if not is_begun(study.optuna):
            return Resumability(finished=0, changed=(), worker=None)
        trials = study.own_trials()
        working = next((trial for trial in trials if trial.state == TrialState.RUNNING and works_here(trial)), None)
        changed = changed_parts(study.optuna, self.fingerprint, self.data)
        if not changed and self._judges_otherwise(study.record()):
            changed = ["the limit of is_satisfied"]
        return Resumability(
            finished=sum(trial.state in FINISHED for trial in trials),
            changed=tuple(changed),
            worker=None if working is None else working.user_attrs[LEASE]["worker"],
        )

    def _judges_otherwise(self, record: StudyRecord) -> bool:
        """Say whether the evaluator, asked again, would give a trial another verdict: its limit may be an argument."""
        original = record.original_metric
        return original is not None and any(
            is_satisfied(self.task.evaluator, original, trial.metric) != trial.satisfied
            for trial in record.trials
            if trial.state == "complete" and trial.metric is not None
        )

    def scores_as_before(self) -> bool:
        """Score the original network once more and say whether that gives what the study began with, but for noise."""
        before = open_study(self.task.name, self.task.storage).record().original_metric
        return before is not None and math.isclose(score(self.task.evaluator, self.task.source), before, rel_tol=1e-6)

    def accept_corrected(self) -> None:
        """Take an evaluator whose code has changed for the study's own, if all that can be asked again is as it was.

        Raises
        ------
        StudyError
            It measures or judges otherwise, or something else has changed.
        """
        study = open_study(self.task.name, self.task.storage)
        record = study.record()
        if record.original_metric is None or changed_parts(study.optuna, self.fingerprint, self.data) != ["evaluator"]:
            return  # then there is nothing to accept, or more than that
        check_evaluator(self.task.evaluator)
        words = None
        if self._judges_otherwise(record):
            words = "gives a trial another verdict"
        elif not self.scores_as_before():
            words = f"does not score the original network as before, {record.original_metric:g}"
        if words:
            raise StudyError(f"the corrected evaluator {words}; start a study of another name", study=study.name)
        study.optuna.set_user_attr(PROVENANCE, {**record.provenance, "evaluator corrected": "yes"})
        stored = StudyAttributes(study.optuna).get(FINGERPRINT, Mapping[str, str])
        study.optuna.set_user_attr(FINGERPRINT, {**stored, "evaluator": self.fingerprint["evaluator"]})

    def run(self, *, exists: bool | None, timeout: float | None = None, jobs: int | None = None) -> Study:
        """Start the study, or go on with one that exists (None: whichever it is), and run it to its end.

        See `tune` and `resume`.
        """
        if not exists:
            check_name(self._asked)
        workers = self.task.workers if jobs is None else replace(self.task.workers, jobs=jobs)
        with engine(workers) as connected:  # or refused, before hours of preparation
            return self._run(connected, exists=exists, timeout=timeout)

    def _run(self, workers: Engine, *, exists: bool | None, timeout: float | None) -> Study:
        task, on_progress = self.task, self._on_progress
        check_permission(self.model.graph)
        for evaluator in (task.evaluator, task.confirm):
            if evaluator is not None:
                check_evaluator(evaluator)
        deadline = None if timeout is None else time.monotonic() + timeout
        if not has_points(task.points_folder):
            check_resources(task, needs_of(self.model))
        if unsearched := say_unsearched(self.model):
            on_progress(Progress("study", unsearched, 0, 1))
        storage, study = self._opened(exists)
        check_workers(task, workers)
        with preparing_alone(task, on_progress):
            runner = self._prepared_runner(storage, study)
        if workers.jobs == 1 and workers.is_here:
            runner.run(deadline)
        else:
            run_sent(runner, workers, deadline)
        confirm(task, study, runner.candidate, on_progress)
        return self._concluded(Study(study))

    def _prepared_runner(self, storage: Storage, study: optuna.Study) -> Runner:
        """Measure and build what trials need, as far as that was not done before, and tell other workers."""
        task, on_progress = self.task, self._on_progress
        self._settle_evaluator(study)
        score_original(task, study, on_progress)
        model = calibrate(task, self.model, study, on_progress)
        found = prepare_points(task, model, self.fingerprint, study, on_progress)
        whole = Candidate(model, found.points)
        floats = decide_float_layers(task, study, whole, on_progress)
        foretell(task, study, whole.leaving_float(floats.layers), on_progress)
        candidate = self._candidate = settled(task, study, whole)
        candidate.deploy_graph()  # refuses now, before all trials, what the export would refuse after them
        seal_study(study)
        runner = make_runner(task, storage, study, candidate, on_progress, is_first=True, callbacks=self._callbacks)
        runner.begin(floats, first_trial(study, floats))
        kept = KeptFiles(task, study).digests(found)
        Artifacts(task.artifacts_location).publish(task, study, model.config, self.fingerprint, kept)
        return runner

    def _concluded(self, study: Study) -> Study:
        """Write into the log what the run ended with, and return the study."""
        record = study.record()
        best = record.best
        words = "no trial satisfied" if best is None else f"best trial {best.number} {record.say_best()}"
        append_conclusion(self.task.log_file, words)
        return study

    def _opened(self, exists: bool | None) -> tuple[Storage, optuna.Study]:
        """Open the study, or make it, and tell it what it is to be."""
        task, fingerprint = self.task, self.fingerprint  # first: a network that cannot be used leaves no study
        make_folders(task)
        write_started(task)
        storage = open_storage(task.storage)
        begin = {True: continue_study, False: start_study, None: start_or_continue}[exists]
        made: list[optuna.Study] = []

        def describe(study: optuna.Study) -> None:
            self._describe(study)
            made.append(study)

        study = begin(storage, task.name, describe, fingerprint)
        if not made:
            self._check(study)
            if DATA not in study.user_attrs:  # an earlier version's
                study.set_user_attr(DATA, dict(self.data))
            self._tell_task(study)
        if isinstance(task.sampler, BaseSampler):
            study.sampler = task.sampler
        study.pruner = task.pruner or study.pruner
        self._on_progress(Progress("study", "created" if made else "opened", 1, 1))
        return storage, study

    def _check(self, study: optuna.Study) -> None:
        """Refuse a study of something else; before anything was measured, its evaluator may be another."""
        if ORIGINAL_METRIC in study.user_attrs:
            check_fingerprint(study, self.fingerprint, self.data)
        else:
            check_fingerprint(study, {key: value for key, value in self.fingerprint.items() if key != "evaluator"})

    def _settle_evaluator(self, study: optuna.Study) -> None:
        """Make the evaluator the study's, unless another one has measured something; nobody else prepares it now.

        Whose first call failed is corrected, and the study goes on.
        """
        if ORIGINAL_METRIC not in study.user_attrs and changed_parts(study, self.fingerprint, self.data):
            study.set_user_attr(PROVENANCE, _provenance(self.task, self.fingerprint))
            study.set_user_attr(DATA, dict(self.data))
            study.set_user_attr(FINGERPRINT, dict(self.fingerprint))
        check_fingerprint(study, self.fingerprint, self.data)

    def _describe(self, study: optuna.Study) -> None:
        """Store what a new study is, but for its fingerprint."""
        study.set_user_attr(PROVENANCE, _provenance(self.task, self.fingerprint))
        study.set_user_attr(DATA, dict(self.data))
        study.set_user_attr(CODEC, self.model.config.target.codec_name)
        store_chip(study, describe_chip(self.model))
        study.set_user_attr(CONFIDENCE, self.task.confidence)
        study.set_user_attr(FLOAT_LAYERS, "")
        self._tell_task(study)

    def _tell_task(self, study: optuna.Study) -> None:
        """Store what each run may have otherwise; the provenance tells of every sampler."""
        known = StudyAttributes(study).get(PROVENANCE, Mapping[str, str], {})
        before, sampler = known.get("sampler", ""), stored_sampler(self.task.sampler)
        if before and before.rpartition(_THEN)[2] != sampler:
            study.set_user_attr(PROVENANCE, {**known, "sampler": before + _THEN + sampler})
        study.set_user_attr(TASK, self.task.as_attribute())
        study.set_user_attr(TARGET_TRIALS, self.task.n_trials)
        study.set_user_attr(STOPPED, "")

    def candidate(self, study: Study, plan: Plan, network: str = "") -> Candidate:
        """Return the network of a plan: what the run made, or what a finished one left in the folder.

        Parameters
        ----------
        study : Study
        plan : mapping of str to int
        network : str
            See `TrialRecord.network`; empty where it is not known.

        Raises
        ------
        StudyError
            The study is another model's, or its operating points are lost.
        QuantizationError
            The calibration's record is not complete.
        """
        if self._candidate is None:
            check_fingerprint(study.optuna, self.fingerprint, self.data)
            self._candidate = kept_candidate(self.task, self.model, study.optuna)
        return PlanNetworks(self.task, self._candidate, study.optuna).network(plan, network)

    def export(
        self,
        study: Study,
        number: int | None = None,
        *,
        formats: Iterable[str] = ("caffe",),
        prefix: str | None = None,
        record_file: Path | None = None,
    ) -> tuple[Path, ...]:
        """Write the files of a trial's plan and return their paths.

        Parameters
        ----------
        study : Study
        number : int, optional
            The best satisfied trial by default.
        formats : iterable of str
            Out of `formats.FORMATS`.
        prefix : str, optional
            Folder and beginning of the file names; `<out>/<name>` by default.
        record_file : Path, optional
            Where the record goes; `<prefix>_record.txt` by default.

        Raises
        ------
        StudyError
            There is no such finished trial, or the study is another model's.
        """
        record = study.record()
        found = _finished_trial(record, number)
        provenance = {
            "study": study.name,
            "trial": str(found.number),
            "ratio": f"{found.ratio}",
            "codec": self.model.config.target.say(),
            "metric": f"{found.metric}",
            "original metric": f"{record.original_metric}",
            "loss": record.say_best() if found is record.best else "",
            **_hashes(self.fingerprint),
        }
        network = self.candidate(study, found.points, found.network)
        if found.built and {name: tuple(made) for name, made in found.built.items()} != built_sizes(network):
            raise StudyError(
                f"the network of trial {found.number} cannot be built again as it was scored; export it where the "
                "study ran",
                study=study.name,
            )
        return export(
            network,
            prefix or self.task.prefix,
            formats,
            record_file=record_file,
            provenance=provenance,
        )


def _finished_trial(record: StudyRecord, number: int | None) -> TrialRecord:
    found = record.best if number is None else next((t for t in record.trials if t.number == number), None)
    if found is None or found.state != "complete":
        what = "no trial satisfied the constraint" if number is None else f"trial {number} is not a finished trial"
        raise StudyError(f"{what}, so there is nothing to export", study=record.name)
    return found


def _provenance(task: Task, fingerprint: Mapping[str, str]) -> dict[str, str]:
    """Return where a study comes from, without the passwords in its study file and command."""
    known = {
        **task.provenance,
        "prototxt": str(task.source.model),
        "weights": str(task.source.weights),
        "evaluator": evaluator_name(task.evaluator),
        **_said_by(task.evaluator),
        "evaluate_batch_num": str(task.evaluator.evaluate_batch_num),
        "sampler": stored_sampler(task.sampler),
        "seed": str(task.seed),
        **_hashes(fingerprint),
        **{f"{name} version": number for name, number in package_versions().items()},
        "python version": platform.python_version(),
    }
    return {key: without_secrets(value, task.storage) for key, value in known.items()}


def _said_by(evaluator: Any) -> dict[str, str]:
    """Return what an evaluator says of its metric and of its data."""
    meaning = {MEANING: evaluator.meaning} if isinstance(getattr(evaluator, "meaning", None), str) else {}
    return meaning | ({RANDOM_DATA: "yes"} if getattr(evaluator, "random_data", False) is True else {})


def _hashes(fingerprint: Mapping[str, str]) -> dict[str, str]:
    return {f"sha256 {key}": value for key, value in fingerprint.items() if len(value) == 64}
