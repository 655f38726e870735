"""optuna-dashboard on a study's storage, with our figures, the report and the plans in it.

Nothing is written to the storage for that. The dashboard is given a view of it that adds, while it is looked at,

- the figures as the dashboard's plotly objects, the verdict with the best plan as the study's note, and each finished
  trial's plan as the trial's note (a note that a user wrote himself wins), drawn anew when a trial has finished,
- the objective's name,
- each trial's constraints under the old key that the dashboard reads, without which it draws infeasible trials as
  feasible ones, and its verdict as a user attribute: a column of the table of trials (on the page of selections), and
  a line of each trial's page. The list of trials beside that page shows nothing but number, state and the best,
- the best *feasible* trial where it asks for the best.

Source of the keys: optuna-dashboard 0.21, through its own `save_note` and `save_plotly_graph_object`, and its page.
"""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from autonuq.errors import RuntimeFailure
from autonuq.headline import headline
from autonuq.masking import masked_text
from autonuq.records import PROVENANCE, StudyRecord, TrialRecord, say_verdict
from autonuq.report.kinds import FIGURES
from autonuq.report.page import write_report
from autonuq.visible import visible

LOOPBACK = "127.0.0.1"
BOX_PX, SHRINKABLE_PX = 440, 600
"""Height of the dashboard's boxes, and of the figures that shrink to it; of longer ones the beginning is seen."""
_WORDS = re.compile("[A-Za-z0-9]+([ _-][A-Za-z0-9]+)*")
OLD_CONSTRAINTS = "constraints"
"""System attribute of a trial under which constraints stood before Optuna 5."""
VERDICT = "verdict"
"""User attribute that trials have in the dashboard only."""
OBJECTIVE = "compression ratio"


class OpenStudy(Protocol):
    """What `autonuq.Study` is."""

    optuna: optuna.Study

    def record(self) -> StudyRecord:
        """Return it as plain data."""


@contextmanager
def open_dashboard(study: OpenStudy, folder: Path, port: int) -> Iterator[tuple[WSGIServer, str]]:
    """Make a server of optuna-dashboard for a study, and the URL of its page; `serve_forever` serves it.

    Parameters
    ----------
    study : Study
    folder : Path
        Where the report, and files that users attach in the dashboard, are kept.
    port : int
        On the loopback interface; 0 takes a free one.

    Raises
    ------
    RuntimeFailure
        optuna-dashboard is not installed.
    OSError
        The port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise RuntimeFailure(
            "the dashboard needs the package optuna-dashboard; install it with: pip install 'autonuq[dashboard]'"
        ) from error
    store = FileSystemArtifactStore(_made(folder / "artifacts"))
    view = StorageView(study, folder, store)
    try:
        with make_server(LOOPBACK, port, wsgi(view, artifact_store=store), handler_class=_QuietHandler) as server:
            yield server, f"http://{LOOPBACK}:{server.server_port}/dashboard/studies/{view.study_id}"
    finally:
        view.remove_report()


class _QuietHandler(WSGIRequestHandler):
    """Logs no request."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@BaseStorage.register
class StorageView:
    """A storage as the dashboard shall see it; whatever is not overridden here is the storage's own.

    Parameters
    ----------
    study : Study
        Other studies of the storage get their constraints, but no figures.
    folder : Path
        For the report.
    store : FileSystemArtifactStore

    Attributes
    ----------
    study_id : int
        What the storage, and the dashboard's pages, call the study.
    """

    def __init__(self, study: OpenStudy, folder: Path, store: FileSystemArtifactStore) -> None:
        self._storage: BaseStorage = study.optuna._storage  # a study has no public way to its storage
        self.study_id = self._storage.get_study_id_from_name(study.optuna.study_name)
        self._study, self._folder, self._store = study, folder, store
        self._finished = -1
        self._added: dict[str, Any] = {}
        self._report_id: str | None = None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_studies(self) -> list[Any]:
        """Return the studies, of a private class of Optuna's; ours has the additions among its system attributes."""
        studies = [copy.copy(study) for study in self._storage.get_all_studies()]
        for study in studies:
            study.user_attrs = _without_passwords(study.user_attrs)
            if study.study_name == self._study.optuna.study_name:
                study.system_attrs = self._additions() | study.system_attrs
        return studies

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study, ours with the additions."""
        own = self._storage.get_study_system_attrs(study_id)
        return self._additions() | own if study_id == self.study_id else own

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study without passwords that earlier versions stored."""
        return _without_passwords(self._storage.get_study_user_attrs(study_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials with their constraints where the dashboard looks for them, and with their verdicts."""
        return [_as_seen(trial) for trial in self._storage.get_all_trials(study_id, deepcopy, states)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial in the same way."""
        return _as_seen(self._storage.get_trial(trial_id))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best feasible trial; the best of all if none is feasible."""
        name = self._storage.get_study_name_from_id(study_id)
        try:
            return optuna.load_study(study_name=name, storage=self._storage).best_trial
        except ValueError:
            return self._storage.get_best_trial(study_id)

    def _additions(self) -> dict[str, Any]:
        """Return what the dashboard shall find, made anew if a trial has finished since."""
        with self._lock:
            trials = self._study.optuna.get_trials(deepcopy=False)
            finished = sum(trial.state.is_finished() for trial in trials)
            if finished != self._finished:
                self._added, self._finished = self._build_additions(trials), finished
            return self._added

    def _build_additions(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        from optuna_dashboard import save_note, save_plotly_graph_object

        record = self._study.record()
        storage = InMemoryStorage()
        scratch = optuna.create_study(storage=storage)  # where the dashboard's own functions write
        for kind, build in FIGURES.items():
            figure = build(record)
            if (figure.layout.height or 0) <= SHRINKABLE_PX:
                figure.update_layout(height=BOX_PX)
            save_plotly_graph_object(scratch, figure, graph_object_id=kind)
        save_note(scratch, _study_note(record))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it may change in a later Optuna
            scratch.set_metric_names([OBJECTIVE])
        own = [trial for trial in trials if trial.number not in record.ignored]
        for trial, row in zip(own, record.trials, strict=False):  # one more may have begun
            if row.state == "complete":
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)
                owner = SimpleNamespace(storage=storage, study=scratch, _trial_id=trial_id)
                save_note(owner, _trial_note(record, row))
        report = self._folder / "report.html"
        write_report(record, report)
        self.remove_report()
        self._report_id = upload_artifact(artifact_store=self._store, file_path=str(report), study_or_trial=scratch)
        return dict(storage.get_study_system_attrs(storage.get_study_id_from_name(scratch.study_name)))

    def remove_report(self) -> None:
        """Remove the attached copy of the report from the store."""
        if self._report_id is not None:
            self._store.remove(self._report_id)
            self._report_id = None


def _without_passwords(attributes: dict[str, Any]) -> dict[str, Any]:
    known = {key: masked_text(value) for key, value in attributes.get(PROVENANCE, {}).items()}
    return {**attributes, PROVENANCE: known} if known else attributes


def _as_seen(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with its constraints where the dashboard looks for them, and its verdict where it shows them."""
    if not trial.constraints:
        return trial
    seen, values = copy.copy(trial), list(trial.constraints.values())
    verdict = say_verdict(all(value <= 0 for value in values))
    seen.user_attrs = {VERDICT: verdict, **trial.user_attrs}
    seen.system_attrs = {OLD_CONSTRAINTS: values, **trial.system_attrs}
    return seen


def as_code(text: str) -> str:
    """Write a text of the user's as code of Markdown's, in a table or elsewhere: in there nothing is HTML or a link.

    Words that mean nothing else stay as they are.
    """
    if _WORDS.fullmatch(text):
        return text
    text = visible(text).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def _study_note(record: StudyRecord) -> str:
    """Return what the study says first, and the best plan."""
    best, first = record.best, headline(record)
    warning = f"**{first.warning}**\n\n" if first.warning else ""
    meaning = f"The metric: {as_code(first.meaning)}.\n\n" if first.meaning else ""
    steps = "".join(f"1. {as_code(step.text)}\n" for step in first.steps)
    after = f"{meaning}Next:\n\n{steps}"
    if best is None:
        ratio = "No trial satisfied the constraint so far."
        return f"# {as_code(record.name)}\n\n{warning}{ratio}\n\n{after}"
    chip = f" {as_code(record.say_transfer())}." if record.chip is not None else ""
    worst = "".join(f"- {as_code(one.say())}\n" for one in first.hurting)
    hurts = f"Layers that hurt most:\n\n{worst}\n" if worst else ""
    return (
        f"# {as_code(record.name)}: {best.ratio:.2f}× smaller\n\n{warning}"
        f"Trial {best.number}, codec {record.codec}: {record.original_bytes:,} → {best.size_bytes:,} bytes of weights, "
        f"metric {record.original_metric:.6g} → {best.metric:.6g}; {as_code(first.loss)}.{chip} "
        f"Confirmed: {as_code(first.confirmed)}.\n\n{after}\n{hurts}{_plan_table(record, best)}"
    )


def _trial_note(record: StudyRecord, trial: TrialRecord) -> str:
    """Return a trial's verdict, what it lost, and its plan."""
    loss, allowed = record.loss(trial), record.allowed
    lost = "" if loss is None else f"lost {record.unit.say(loss, trial.loss_error)}"
    limit = "" if allowed is None or not lost else f" (limit {record.unit.say(allowed, None)})"
    return f"**{trial.outcome}** {as_code(lost + limit)}\n\n{_plan_table(record, trial)}"


def _plan_table(record: StudyRecord, trial: TrialRecord) -> str:
    """Return a trial's plan as a table in Markdown."""
    rows = [
        f"| {as_code(row.layer.name)} | {'float32' if row.levels is None else row.levels} "
        f"| {row.size_bytes:,} | {row.ratio:.2f}× |"
        for row in record.layer_rows(trial)
    ]
    return "\n".join(["| layer | levels | bytes | ratio |", "|---|---:|---:|---:|", *rows])
