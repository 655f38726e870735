"""What optuna-dashboard is shown of a study, asked as its page asks: over HTTP."""

import json
import threading
import urllib.request
from dataclasses import replace

import optuna
import pytest

from autonuq.records import RANDOM_DATA
from autonuq.report import FIGURES, dashboard
from autonuq.report.dashboard import open_dashboard
from autonuq.report.optimization import optuna_study

pytest.importorskip("optuna_dashboard")


class Study:
    """A handle as `autonuq.Study` is, of the record of a fixture."""

    def __init__(self, record):
        self._record, self.optuna = record, optuna_study(record)

    def record(self):
        return self._record


@pytest.fixture
def finished(lenet):
    """A study of which every trial is complete, the largest ratio being infeasible."""
    trials = tuple(trial for trial in lenet.trials if trial.state == "complete")
    return Study(type(lenet)(**{**vars(lenet), "trials": trials}))


@pytest.fixture
def ask(finished, tmp_path):
    with open_dashboard(finished, tmp_path, port=0) as (server, _):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield lambda path: urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=60).read()
        server.shutdown()
        thread.join()


def test_infeasible_trials_are_infeasible_and_the_best_is_not(ask, finished):
    detail = json.loads(ask("/api/studies/0?after=0"))
    best = max(trial.value for trial in finished.optuna.get_trials())
    assert best > finished.optuna.best_value
    assert [trial["number"] for trial in detail["best_trials"]] == [finished.optuna.best_trial.number]
    seen = [max(trial["constraints"]) <= 0 for trial in detail["trials"]]
    assert seen == [trial.satisfied for trial in finished.record().trials]


def test_the_objective_has_a_name_and_trials_a_verdict_to_filter_by(ask, finished):
    detail = json.loads(ask("/api/studies/0?after=0"))
    assert detail["objective_names"] == ["compression ratio"]
    assert "verdict" in {attribute["key"] for attribute in detail["union_user_attrs"]}
    shown = [{one["key"]: one["value"] for one in trial["user_attrs"]}["verdict"] for trial in detail["trials"]]
    assert shown == [trial.outcome for trial in finished.record().trials]
    assert {"satisfied", "not satisfied"} <= set(shown)
    assert finished.optuna.metric_names is None
    assert all("verdict" not in trial.user_attrs for trial in finished.optuna.get_trials())


def test_names_and_attributes_of_the_users_win(ask, finished):
    finished.optuna.set_metric_names(["my ratio"])
    finished.optuna._storage.set_study_user_attr(0, "mine", 1)
    assert json.loads(ask("/api/studies/0?after=0"))["objective_names"] == ["my ratio"]


def test_the_note_says_what_to_do_next_and_warns_of_random_data(lenet):
    record = replace(lenet, provenance={RANDOM_DATA: "yes"})
    for one in (record, replace(record, trials=())):
        note = dashboard._study_note(one)
        assert note.index("on random data: this says nothing about the network's task") < note.index("Next:")
        assert "score real data first" in note
    assert lenet.loss_parts.layers[0].layer in dashboard._study_note(lenet).partition("Layers that hurt most")[2]
    worst = next(trial for trial in lenet.trials if trial.satisfied is False)
    assert dashboard._trial_note(lenet, worst).startswith("**not satisfied** ` lost ")


def test_figures_notes_and_report_are_there_and_the_storage_is_as_before(ask, finished, tmp_path):
    before = finished.optuna._storage.get_study_system_attrs(0)
    detail = json.loads(ask("/api/studies/0?after=0"))
    assert {figure["id"] for figure in detail["plotly_graph_objects"]} == set(FIGURES)
    assert f"{finished.record().best.ratio:.2f}× smaller" in detail["note"]["body"]
    assert "| conv1 |" in detail["trials"][0]["note"]["body"]
    (artifact,) = detail["artifacts"]
    assert artifact["filename"] == "report.html"
    assert ask(f"/artifacts/0/{artifact['artifact_id']}") == (tmp_path / "report.html").read_bytes()
    assert finished.optuna._storage.get_study_system_attrs(0) == before


def test_a_note_of_the_users_wins(ask, finished):
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    optuna_dashboard.save_note(finished.optuna, "mine")
    assert json.loads(ask("/api/studies/0?after=0"))["note"]["body"] == "mine"


def test_no_copy_of_the_report_stays_behind(finished, tmp_path):
    with open_dashboard(finished, tmp_path, port=0) as (server, _):
        server.get_app()  # as the server would
    assert not list((tmp_path / "artifacts").iterdir())
    assert optuna.get_all_study_names(finished.optuna._storage)


def test_names_in_notes_are_neither_html_nor_links(lenet):
    evil = "<img src=x onerror=alert(1)> [a](https://evil.example) ![b](c) `d` ``e`` | https://evil.example\n# f"
    written = dashboard.as_code(evil)
    assert written.startswith("``` <img") and written.endswith(" ```")
    assert "\n" not in written
    assert written.replace(r"\|", "").count("|") == 0
    assert dashboard.as_code("conv1_1 top-5") == "conv1_1 top-5"
    layers = tuple(replace(layer, name=layer.name + evil) for layer in lenet.layers)
    note = dashboard._study_note(replace(lenet, name=evil, layers=layers, trials=()))
    assert note.startswith("# ``` <img")
