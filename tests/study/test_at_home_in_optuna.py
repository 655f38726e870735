"""What a user of Optuna expects of `tune`: callbacks, sampler and pruner objects, trials of one's own, attributes."""

import sys
import threading

import optuna
import pytest
from optuna.trial import TrialState, create_trial

import autonuq as nuq
from autonuq.errors import EvaluatorError, StudyError, StudyExists
from autonuq.evaluate.evaluator import load_evaluator
from autonuq.records import TRIAL, StudyRecord, TrialRecord
from autonuq.search.sampler import check_sampler
from autonuq.study.stored import Best
from autonuq.study.trials import BY_CALLBACK, FOREIGN


class Fixed(nuq.Evaluator):
    """Agreement with the float network's decisions, which it knows from the start; it does not change with its use."""

    evaluate_batch_num = 1
    limit = 0.3

    def __init__(self, folder, fails=()):
        import numpy as np

        super().__init__()
        self.images = np.random.default_rng(5).standard_normal((32, 2, 8, 8), np.float32)
        self.labels = self.decide(folder / "tiny.prototxt", folder / "tiny.caffemodel")
        self.fails, self.calls = fails, 0

    def decide(self, model_file, weights_file):
        return nuq.Net(model_file, weights_file, nuq.pycaffe.TEST).forward_all(data=self.images)["prob"].argmax(1)

    def eval_model(self, model_file, weights_file, batch_num):
        self.calls += 1
        if self.calls in self.fails:
            raise ValueError("asked to fail")
        return float((self.decide(model_file, weights_file) == self.labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < self.limit


@pytest.fixture
def tuned(tiny, monkeypatch):
    """Run `tune` in the folder of `tiny`."""
    monkeypatch.chdir(tiny)

    def tune(evaluator=None, **options):
        options = {"out": "out", "n_trials": 4, **options}
        return nuq.tune("tiny.prototxt", "tiny.caffemodel", evaluator or Fixed(tiny), **options)

    return tune


def plans(study):
    return [trial.points for trial in study.record().trials]


# ------------------------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_after_each_trial_also_a_failed_one(tuned, tiny):
    seen = []

    def look(study, trial):
        assert study.trials[trial.number].state.is_finished()
        assert isinstance(study, optuna.Study) and isinstance(trial, optuna.trial.FrozenTrial)
        trial.params.clear()  # a copy
        seen.append((trial.number, trial.state))

    study = tuned(Fixed(tiny, fails=(4,)), callbacks=[look, lambda study, trial: study.set_user_attr("owner", "me")])
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert [state for _, state in seen] == [trial.state for trial in study.optuna.trials]
    assert TrialState.FAIL in dict(seen).values()
    assert study.optuna.user_attrs["owner"] == "me"
    assert study.record().counts.finished == 4
    seen.clear()
    nuq.resume("out", evaluator=Fixed(tiny), trials=5, callbacks=[look])
    assert seen == [(4, TrialState.COMPLETE)], "those of the first run are not called for again"


def test_stop_in_a_callback_ends_the_search_in_order(tuned, tiny):
    def stop(study, trial):
        if trial.number == 2:
            study.stop()

    study = tuned(n_trials=9, callbacks=[stop], confirm=Fixed(tiny))
    record = study.record()
    assert record.counts.finished == 3
    assert record.stopped == BY_CALLBACK
    assert record.confirmation is not None
    assert (tiny / "out" / "out.nuq").exists()
    assert nuq.resume("out", evaluator=Fixed(tiny)).record().counts.finished == 9


@pytest.mark.slow
def test_optunas_own_callbacks_work(tuned):
    study = tuned(n_trials=9, callbacks=[optuna.study.MaxTrialsCallback(3, states=None)])
    assert study.record().counts.finished == 3


@pytest.mark.slow
def test_what_a_callback_raises_leaves_a_study_that_goes_on(tuned, tiny):
    def fail(study, trial):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        tuned(callbacks=[fail])
    assert nuq.resume("out", evaluator=Fixed(tiny)).record().counts.complete == 4


@pytest.mark.slow
def test_callbacks_of_several_workers_are_called_here(tuned, tiny):
    seen, evaluator = [], load_evaluator("evaluate.py:Agreement", tiny, 8)  # workers cannot import this module

    def stop(study, trial):
        seen.append(trial.number)
        if len(seen) == 3:
            study.stop()

    sampler = optuna.samplers.TPESampler(seed=1)
    study = tuned(evaluator, n_trials=300, jobs=2, sampler=sampler, callbacks=[stop])
    assert len(seen) == study.record().counts.finished < 300

    def fail(study, trial):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        tuned(evaluator, out="other", n_trials=300, jobs=2, callbacks=[fail])
    assert nuq.resume("other", evaluator=evaluator, trials=20).record().counts.finished >= 20


def test_a_plan_that_a_callback_queues_is_scored(tuned):
    def add(study, trial):
        if trial.number == 1:
            study.enqueue_trial(
                {name: value * 0.97 for name, value in trial.params.items()}, user_attrs={"why": "mine"}
            )

    study = tuned(n_trials=5, callbacks=[add])
    mine = [trial for trial in study.optuna.trials if trial.user_attrs.get("why") == "mine"]
    assert [trial.state for trial in mine] == [TrialState.COMPLETE]
    assert study.record().trials[mine[0].number].state == "complete"
    assert not study.record().ignored


# ------------------------------------------------------------------------------------- samplers and pruners as objects

SAMPLERS = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=3),
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "nsga": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=3),
}


@pytest.mark.parametrize("name", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "nsga"))])
def test_sampler_objects(tuned, tiny, name):
    make = SAMPLERS[name]
    study = tuned(n_trials=7, sampler=make())
    first = plans(study)
    assert study.record().counts.complete == 7
    assert type(study.optuna.sampler) is type(make())
    assert study.record().provenance["sampler"] == f"{type(make()).__name__} object"
    again = tuned(n_trials=7, sampler=make(), out="again")
    assert plans(again) == first, "its seed counts"
    with pytest.raises(StudyError, match=rf"sampler={type(make()).__name__}\(\.\.\.\).*sampler='rate-distortion'"):
        nuq.resume("out", evaluator=Fixed(tiny), trials=9)
    after = nuq.resume("out", evaluator=Fixed(tiny), trials=9, sampler=make())
    assert plans(after)[:7] == first
    assert after.record().counts.complete == 9


class Odd(optuna.samplers.RandomSampler):
    """Cannot be sent, and raises when it is asked."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def sample_independent(self, *arguments):
        raise ZeroDivisionError("mine")


@pytest.mark.slow
def test_a_sampler_that_raises_leaves_a_study_that_goes_on(tuned, tiny):
    with pytest.raises(ZeroDivisionError, match="mine"):
        tuned(n_trials=8, sampler=Odd())
    with pytest.raises(StudyError, match="its sampler, Odd object, cannot be sent to workers: TypeError"):
        nuq.resume("out", evaluator=Fixed(tiny), sampler=Odd(), jobs=2)
    assert nuq.resume("out", evaluator=Fixed(tiny), sampler="random").record().counts.complete == 8


@pytest.mark.slow
def test_another_sampler_goes_on_and_the_provenance_tells(tuned, tiny):
    study = tuned(sampler=optuna.samplers.RandomSampler(seed=1))
    for sampler in ("rate-distortion", "rate-distortion", "tpe"):
        study = nuq.resume("out", evaluator=Fixed(tiny), trials=5, sampler=sampler)
    assert study.record().provenance["sampler"] == "RandomSampler object, then rate-distortion, then tpe"


@pytest.mark.slow
def test_a_grid_sampler_that_is_exhausted_ends_the_search(tuned):
    space = {f"ratio/{name}": [8.0, 12.0] for name in ("conv", "fc")}
    study = tuned(n_trials=30, sampler=optuna.samplers.GridSampler(space, seed=0))
    assert study.record().counts.finished < 30
    assert study.record().stopped == BY_CALLBACK


@pytest.mark.slow
def test_a_sampler_of_other_curves_does_no_harm(tuned):
    import numpy as np

    from autonuq.search import Curve, RateDistortionSampler

    other = RateDistortionSampler([Curve("conv9", np.array([300, 200, 100]), np.array([0.0, 1.0, 4.0]))], seed=0)
    assert tuned(n_trials=8, sampler=other).record().counts.complete == 8


def test_what_is_no_sampler_no_pruner_and_no_callback_is_refused_before_anything_is_made(tuned, tiny):
    with pytest.raises(StudyError, match="Did you mean 'tpe'"):
        tuned(sampler="tep")
    with pytest.raises(StudyError, match="or an object of a sampler"):
        tuned(sampler=optuna.samplers.TPESampler)
    with pytest.raises(StudyError, match="pruner must be"):
        tuned(pruner="median")
    with pytest.raises(TypeError, match="callbacks must be callable"):
        tuned(callbacks=["stop"])
    assert not (tiny / "out").exists()
    check_sampler("gp")


@pytest.mark.slow
def test_a_pruner_is_for_trials_of_ones_own(tuned, tiny):
    study = tuned(pruner=optuna.pruners.ThresholdPruner(upper=1.0))

    def objective(trial):
        trial.report(2.0, step=1)
        if trial.should_prune():
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1)

    before = study.record()
    study.optuna.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.optuna.trials[-2:]] == [TrialState.PRUNED] * 2
    assert study.record().trials == before.trials
    assert list(study.record().ignored.values()) == [FOREIGN] * 2
    assert nuq.resume("out", evaluator=Fixed(tiny), trials=5).record().counts.complete == 5


# ----------------------------------------------------------------------------- trials and attributes of one's own


def test_queued_plans_are_scored_as_ours(tuned, tiny):
    """Parts of a plan, values between two points, and out of range; with attributes, which stay."""
    study = tuned()
    low = {name: d.low for name, d in study.optuna.trials[1].distributions.items()}
    name = min(low)
    study.optuna.enqueue_trial({name: low[name] * 1.3}, user_attrs={"why": "part"})
    study.optuna.enqueue_trial({key: value * 1.7 for key, value in low.items()}, user_attrs={"why": "whole"})
    with pytest.warns(UserWarning, match="out of range"):
        study.optuna.enqueue_trial({key: 1e6 for key in low}, user_attrs={"why": "far"})
        after = nuq.resume("out", evaluator=Fixed(tiny), trials=8)
    record = after.record()
    assert not record.ignored
    for number, why in ((4, "part"), (5, "whole"), (6, "far")):
        assert after.optuna.trials[number].user_attrs["why"] == why
        assert record.trials[number].state == "complete"
    assert after.optuna.trials[4].params[name] == low[name] * 1.3


def test_ask_and_tell_and_an_objective_of_ones_own_stay_apart(tuned, tiny):
    study = tuned()
    before = study.record()
    trial = study.optuna.ask()
    trial.set_user_attr("note", "mine")
    study.optuna.tell(trial, trial.suggest_float("x", 0, 1))
    study.optuna.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.optuna.add_trial(create_trial(value=1e9))
    assert study.record().trials == before.trials and study.best == study.best
    assert len(study.record().ignored) == 4
    seen = []

    def look(study, _):
        seen.append((study.best_value < 1e9, len(study.trials), study.trials[-1].number))

    after = nuq.resume("out", evaluator=Fixed(tiny), trials=6, callbacks=[look])
    assert after.record().counts.complete == 6
    assert seen == [(True, 5, 8), (True, 6, 9)], "callbacks see the study's own trials"
    assert after.optuna.trials[4].user_attrs["note"] == "mine"


@pytest.mark.slow
def test_attributes_of_the_user_break_no_seal(tuned, tiny):
    study = tuned()
    study.optuna.set_user_attr("owner", {"name": "me", "since": 2020})
    study.optuna.set_user_attr("long", "x" * 10_000)
    again = nuq.resume("out", evaluator=Fixed(tiny), trials=5)
    assert again.optuna.user_attrs["owner"] == {"name": "me", "since": 2020}
    assert again.record().counts.complete == 5
    assert nuq.load_study("out").best == again.best


PLOTS = {
    "plot_optimization_history": {},
    "plot_slice": {},
    "plot_contour": {},
    "plot_rank": {},
    "plot_parallel_coordinate": {},
    "plot_edf": {},
    "plot_timeline": {},
    "plot_intermediate_values": {},
    "plot_param_importances": {
        "target": lambda trial: -trial.user_attrs[TRIAL]["metric"],
        "target_name": "metric",
    },
    "plot_pareto_front": {
        "targets": lambda trial: (trial.value, trial.user_attrs[TRIAL]["metric"]),
        "target_names": ["ratio", "metric"],
    },
}


@pytest.mark.slow
def test_optunas_figures(tuned, tiny):
    study = tuned(n_trials=8)
    for name, options in PLOTS.items():
        figure = getattr(optuna.visualization, name)(study.optuna, **options)
        assert len(figure.data) or name == "plot_intermediate_values", name


@pytest.mark.browser
def test_optunas_figures_as_pictures(tuned, tiny):
    study = tuned(n_trials=8)
    for name, options in PLOTS.items():
        getattr(optuna.visualization, name)(study.optuna, **options).write_image(tiny / f"{name}.png")
        assert (tiny / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


# -------------------------------------------------------------------------------- going on, and with what evaluator


def test_load_if_exists(tuned, tiny):
    assert tuned(load_if_exists=True).record().counts.complete == 4
    with pytest.raises(StudyExists, match="nuq.resume, or tune with load_if_exists=True"):
        tuned()
    assert tuned(load_if_exists=True, n_trials=6).record().counts.complete == 6
    with pytest.raises(StudyError, match="was started with another quantization"):
        tuned(load_if_exists=True, activation_offset=False)
    optuna.create_study(storage=f"sqlite:///{tiny}/other.db", study_name="out").optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(StudyError, match="was not made by autonuq"):
        tuned(load_if_exists=True, storage=f"sqlite:///{tiny}/other.db", out="other", name="out")


@pytest.mark.slow
def test_from_a_study_file(tiny_study):
    found = nuq.tune_file(tiny_study, trials=3, sampler=optuna.samplers.RandomSampler(seed=1), load_if_exists=True)
    seen = []
    nuq.tune_file(tiny_study, trials=4, load_if_exists=True, callbacks=[lambda study, trial: seen.append(trial.number)])
    assert seen == [3]
    assert found.record().provenance["sampler"] == "RandomSampler object, then rate-distortion"


def typed(text):
    space = {"Fixed": Fixed}
    exec(text, space)
    return space["Typed"]


TYPED = "class Typed(Fixed):\n    def note(self):\n        {}\n"


def test_an_evaluator_whose_first_call_failed_may_be_corrected(tuned, tiny):
    with pytest.raises(EvaluatorError, match="asked to fail"):
        tuned(typed(TYPED.format("return 1"))(tiny, fails=(1,)))
    right = typed(TYPED.format("return 2"))
    assert nuq.resume("out", evaluator=right(tiny)).record().counts.complete == 4
    with pytest.raises(StudyError, match=r"another evaluator; restore it \(.*corrected=True.*or start a study"):
        nuq.resume("out", evaluator=typed(TYPED.format("return 1"))(tiny), trials=5)


@pytest.mark.slow
def test_a_corrected_evaluator_is_accepted_if_it_measures_as_before(tuned, tiny):
    tuned(typed(TYPED.format("return 1"))(tiny))
    other = typed(TYPED.format("return 2"))
    study = nuq.resume("out", evaluator=other(tiny), corrected=True, trials=5)
    assert study.record().counts.complete == 5
    assert study.record().provenance["evaluator corrected"] == "yes"
    assert nuq.resume("out", evaluator=other(tiny), trials=6).record().counts.complete == 6
    strict = typed(TYPED.format("return 3"))(tiny)
    strict.limit = 1e-9
    with pytest.raises(StudyError, match="gives a trial another verdict"):
        nuq.resume("out", evaluator=strict, corrected=True)
    shifted = typed(TYPED.format("return 3"))(tiny)
    shifted.labels = shifted.labels + 1
    with pytest.raises(StudyError, match="does not score the original network as before"):
        nuq.resume("out", evaluator=shifted, corrected=True)


def test_ctrl_c_leaves_a_study_that_goes_on_in_the_same_process(tuned, tiny):
    class Interrupted(Fixed):
        def eval_model(self, *arguments):
            if self.calls == 4:
                self.calls += 1
                raise KeyboardInterrupt
            return super().eval_model(*arguments)

    evaluator = Interrupted(tiny)
    with pytest.raises(KeyboardInterrupt):
        tuned(evaluator)
    assert nuq.resume("out", evaluator=evaluator).record().counts.complete == 4


# --------------------------------------------------------------------------------------------------- what is read


def trial(number, ratio, metric, satisfied=True, **more):
    return TrialRecord(number, "complete", ratio, metric, satisfied, margin=-0.5 if satisfied else 0.5, **more)


def test_front():
    trials = (
        trial(0, 4.0, 0.90),
        trial(1, 8.0, 0.89),
        trial(2, 8.0, 0.89),  # an equal, later
        trial(3, 7.0, 0.88),  # beaten in both
        trial(4, 9.0, 0.80, satisfied=False),
        trial(5, 8.5, 0.85),
        TrialRecord(6, "failed"),
        trial(7, 3.0, 0.90),
    )
    record = StudyRecord("s", "entropy", 0.9, (), trials, 8)
    assert [one.number for one in record.front()] == [5, 1, 0]
    falling = StudyRecord("s", "entropy", 1.0, (), (trial(0, 4.0, 1.1), trial(1, 4.0, 1.0), trial(2, 5.0, 1.5)), 3)
    losses = StudyRecord(**{**falling.__dict__, "trials": (*falling.trials, trial(3, 9.0, 3.0, satisfied=False))})
    assert [one.number for one in losses.front()] == [2, 1]
    assert StudyRecord("s", "entropy", None, (), (), 3).front() == ()


def test_best_front_and_frame(tuned):
    pd = pytest.importorskip("pandas")
    study = tuned(n_trials=6)
    study.optuna.optimize(lambda trial: 1.0, n_trials=1)
    record, frame = study.record(), study.trials_dataframe()
    assert study.best.number == study.best.trial == record.best.number
    assert study.front() == record.front() and study.front()[0].ratio >= study.best.ratio
    assert isinstance(frame, pd.DataFrame)
    assert list(frame["number"]) == [trial.number for trial in record.trials] == list(range(6)), "its own trials alone"
    best = frame.set_index("number").loc[study.best.number]
    assert best["ratio"] == study.best.ratio
    assert best["loss"] == pytest.approx(study.best.loss)
    assert best["satisfied"] and best["size_bytes"] == study.best.size_bytes
    assert {name: best[f"levels/{name}"] for name in study.best.levels} == study.best.levels
    assert frame["started"].dt.tz is not None and (frame["duration_s"] >= 0).all()
    assert set(frame["state"]) == {"complete"} and frame["worker"].str.contains(":").all()
    assert frame["satisfied"].dtype == "boolean"


def test_a_frame_of_nothing_yet_has_its_columns():
    pytest.importorskip("pandas")
    from autonuq.study.frame import trials_frame

    running = TrialRecord(1, "running", size_bytes=10, started="2026-01-01T12:00:02+00:00", worker="a:1")
    frame = trials_frame(StudyRecord("s", "entropy", 0.9, (), (TrialRecord(0, "waiting"), running), 8))
    assert list(frame["state"]) == ["waiting", "running"]
    assert frame["ratio"].isna().all() and frame["started"].isna().tolist() == [True, False]
    assert list(trials_frame(StudyRecord("s", "", None, (), (), 8)).columns) == list(frame.columns)


def test_without_pandas(monkeypatch):
    from autonuq.study.frame import trials_frame

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StudyError, match="pip install pandas"):
        trials_frame(StudyRecord("s", "entropy", 0.9, (), (), 8))


def test_the_best_trial_has_optunas_name_for_its_number():
    assert Best(7, 2.0, 0.9, {}, 10).number == 7
