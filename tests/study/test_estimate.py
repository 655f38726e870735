"""What `check` foretells: each part from pieces that are timed by a clock of the test's own."""

import warnings
from types import SimpleNamespace

import pytest

from autonuq.compress import pace
from autonuq.compress.needs import study_needs
from autonuq.compress.pace import SEARCHES, BuildPace, ways_s
from autonuq.compress.ways import COARSE, Trying
from autonuq.errors import StudyError
from autonuq.graph.files import load_graph
from autonuq.quant.needs import LayerNeeds
from autonuq.quant.points import Tuning
from autonuq.study import rehearsal, resources, timing
from autonuq.study.estimate import PARTS, Estimate
from autonuq.study.run import StudyRun
from autonuq.study.timing import ScoringPace

ONCE = {part: 1.0 for part in PARTS if part != "trials_s"}


class Clock:
    """A clock that goes as the test says."""

    now = 0.0

    def monotonic(self):
        return self.now

    process_time = monotonic


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    for module in (pace, timing):
        monkeypatch.setattr(module, "time", own)
    return own


def estimate(**other):
    trials = {"trial_s": 3.0, "scoring_s": 2.0, "first_trial_s": 0.5, "trials": 10}
    return Estimate(**ONCE | trials | {"float_search_s": 99.0, "memory_bytes": 5.4, "disk_bytes": 6.0} | other)


def test_the_total_is_all_parts_and_int8_is_the_first_trial():
    found = estimate()
    assert found.trials_run == 9
    assert found.trials_s == 9 * 3.0 + 0.5
    assert found.total_s == len(ONCE) + found.trials_s == sum(found.parts.values())
    assert list(found.parts) == list(PARTS)
    document = found.as_document()
    assert document["total_s"] == found.total_s
    assert document["memory_bytes"] == 5
    assert estimate(int8_s=0.0).trials_run == 10
    assert estimate(trials=0).trials_s == estimate(trials=1).trials_s == 0


def test_scoring_is_told_apart_into_once_and_each_batch_first_time_and_later(clock):
    seen = set()

    def score(batches):
        new = set(range(batches)) - seen
        clock.now += 2.0 + 0.5 * batches + 0.25 * len(new) + (0 if seen else 8.0)
        seen.update(new)

    score(1)
    found = ScoringPace.timed(score, 40, clock.now)
    assert found.of(40) == pytest.approx(2 + 0.5 * 40)
    assert found.first_of(40) == pytest.approx(2 + 0.5 * 40 + 8 + 0.25 * 40)


def test_a_batch_that_takes_long_is_not_timed_often(clock):
    calls = []

    def score(batches):
        calls.append(batches)
        clock.now += 5.0 * batches

    assert ScoringPace.timed(score, 40, 7.0).of(40) == 200
    assert calls == [1]
    assert ScoringPace.timed(score, 40, 50.0).of(40) == 2000
    assert calls == [1]
    assert ScoringPace.timed(score, 1, 0.5).first_of(1) == 5


def layers(**seconds):
    return [LayerNeeds(name, 0, 0, 0, 0, each) for name, each in seconds.items()]


@pytest.mark.parametrize("quick", [1e-4, 3.0])
def test_points_of_all_layers_follow_from_those_that_are_timed(clock, monkeypatch, quick):
    expected = {f"layer{index}": quick * (index + 1) for index in range(40)}
    built = []

    def build(single, record, *, costs, tuning):
        (name,) = single.weights
        built.append(name)
        clock.now += expected[name] * (0.1 + 0.02 * tuning.steps)
        yield name, SimpleNamespace(curve=SimpleNamespace(rates_bytes=[9, 5]))

    monkeypatch.setattr(pace, "build_network_points", build)
    monkeypatch.setattr(pace, "replace", lambda one, **new: SimpleNamespace(**vars(one) | new))
    model = SimpleNamespace(weights=dict.fromkeys(expected), nuq_layers=tuple(expected))
    now, later = layers(**expected), layers(**{name: 3 * each for name, each in expected.items()})
    found = pace.time_points(model, None, {}, now, later)
    for tuning in (COARSE, Tuning()):
        assert found.of(tuning) == pytest.approx(3 * sum(expected.values()) * (0.1 + 0.02 * tuning.steps), rel=0.02)
    assert (found.first, found.found) == ("layer0", 2)
    assert len(built) < 40 if quick < 1 else len(set(built)) < 5


@pytest.mark.parametrize("pass_s", [0.001, 0.3])
def test_networks_of_many_passes_follow_from_those_of_few(clock, monkeypatch, pass_s):
    class Builder:
        def __init__(self, model, passes):
            self.cost, self.built = 0.02 + pass_s * len(passes), 0

        def build(self, candidate):
            self.built += 1
            clock.now += self.cost + (3 * self.cost if self.built == 1 else 0)

    monkeypatch.setattr(pace, "NetworkBuilder", Builder)
    monkeypatch.setattr(pace, "Candidate", lambda model, points: None)
    found = pace.time_builds(SimpleNamespace(weights={}), {}, {}, [4, 50])
    assert [one.each_s for one in found] == pytest.approx([0.02 + 4 * pass_s, 0.02 + 50 * pass_s])
    assert [one.first_s for one in found] == pytest.approx([3 * one.each_s for one in found])
    assert pass_s < 0.1 or clock.now < 60  # 50 passes themselves would take 75 s


def test_what_holds_one_piece_up_makes_no_line_steep():
    assert pace._slope(1, 1.0, 2, 30.0) == 15.0
    assert pace._slope(1, 1.0, 4, 2.5) == 0.5
    assert pace._slope(1, 1.0, 4, 0.5) == 0.0


def test_a_choice_of_ways_is_put_together(monkeypatch):
    monkeypatch.setattr(pace, "available_cores", lambda: 1)
    trying = Trying([[], []], (4.0, 1.0), [[], []], few=False, priced=True)
    assert pace.count_ways(trying) == (7 + 4) / 2
    found = ways_s(trying, 10.0, 1.0, BuildPace(2.0, 0.5), 0.1)
    assert found == pytest.approx(10 + 5.5 * 2 * 1.0 + 2 * (2.0 + 5.5 * 0.6) + SEARCHES * 0.6)
    alone = Trying([[]], (4.0,), [], few=False, priced=True)
    assert ways_s(alone, 10.0, 1.0, BuildPace(), 0.1) == 10.0


def test_what_a_step_warns_of_is_part_of_what_came_of_it():
    def step():
        warnings.warn("beware", stacklevel=1)
        warnings.warn("beware", stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return "done"

    def fails():
        warnings.warn("of this", stacklevel=1)
        raise StudyError("no")

    found = rehearsal._taken("one", step)
    assert (found.state, found.detail, found.warnings) == ("passed", "done", ("beware",))
    found = rehearsal._taken("two", fails)
    assert (found.state, found.warnings) == ("failed", ("of this",))


def test_batches_that_are_too_large_are_warned_of(task, monkeypatch):
    needs = resources.needs_of(StudyRun(task).model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resources.warn_of_resources(task, needs)
    monkeypatch.setattr(resources, "available_memory", lambda: 2e8)
    with pytest.warns(UserWarning, match=r"takes about 0\.3 GB of memory; 0\.2 GB are free: use smaller"):
        resources.warn_of_resources(task, needs)


def test_needs_grow_with_the_inputs_that_a_pass_has(tiny):
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    few, many = (study_needs(graph, ["conv", "fc"], ["conv", "fc"], 2, {"data": (n, 2, 8, 8)}) for n in (4, 400))
    assert many.kept_bytes == 100 * few.kept_bytes
    assert many.disk_bytes > few.disk_bytes
    assert many.memory_bytes > few.memory_bytes > few.beyond_process_bytes > 0
    assert few.preparation_s(400) > few.preparation_s(4) > few.curves_s > 0
