"""A plan's network is built once: what is scored, stored, read back and exported is the same."""

from dataclasses import replace

import numpy as np
import pytest

from autonuq.compress.outputs import fake_quant_pair, packed_path
from autonuq.compress.packed_file import load_packed
from autonuq.errors import StudyError
from autonuq.quant.codec import EntropyCodec
from autonuq.records import ARTIFACTS, CALIBRATED, POINTS, SEAL, WAYS
from autonuq.runtime.inputs import input_files, inputs_folder
from autonuq.study.attributes import store_long
from autonuq.study.locate import open_study
from autonuq.study.plan_networks import PlanNetworks
from autonuq.study.points_cache import INDEX
from autonuq.study.run import StudyRun
from autonuq.study.stored import Study
from autonuq.study.task import file_digest
from autonuq.study.workers import work


@pytest.fixture
def finished(task):
    """Run the study of three trials; return (task, run, study)."""
    run = StudyRun(replace(task, n_trials=4))
    return run.task, run, run.run(exists=False)


def networks_of(task, run):
    return PlanNetworks(task, run._candidate, open_study(task.name, task.storage).optuna)


def searched_plan(study):
    """Return the plan of a trial that is not int8 alone."""
    return next(trial.points for trial in study.record().trials if any(trial.points.values()))


def stored(task):
    return sorted((task.points_folder / "plans").glob("*.npz"))


def assert_same(one, other):
    assert one.made.keys() == other.made.keys() and one.plan == other.plan
    for name, made in one.made.items():
        assert (made.codes == other.made[name].codes).all() and made.codes.dtype == np.int8
        assert (made.bias is None) == (other.made[name].bias is None)
        assert made.bias is None or (made.bias == other.made[name].bias).all()


def test_a_network_is_read_back_as_it_was_built(finished, monkeypatch):
    task, run, study = finished
    plan = searched_plan(study)
    for path in stored(task):
        path.unlink()
    built = networks_of(task, run).network(plan)
    assert built.made and len(stored(task)) == 1
    monkeypatch.setattr(PlanNetworks, "_builder", None)  # nothing is built again
    assert_same(networks_of(task, run).network(plan), built)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path):
    path.write_bytes(b"no archive")


def empty(path):
    path.write_bytes(b"")


def incomplete(path):
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if not name.endswith("codes")}
    np.savez(path, **kept)


def other_bytes(path):
    with np.load(path) as arrays:
        changed = {name: arrays[name] for name in arrays}
    name = next(name for name in changed if name.endswith("codes"))
    changed[name] = np.append(changed[name][:-3], np.uint8([1, 2, 3]))
    np.savez(path, **changed)


def test_what_is_damaged_is_built_again(finished):
    task, run, study = finished
    plan = searched_plan(study)
    built = networks_of(task, run).network(plan)
    (path,) = [path for path in stored(task) if path == networks_of(task, run)._path(plan)]
    for damage in (cut, garbage, empty, incomplete, other_bytes):
        damage(path)
        assert_same(networks_of(task, run).network(plan), built)
        with np.load(path) as arrays:
            assert arrays["layers"].tolist() == list(built.made), damage.__name__


def test_int8_alone_is_what_was_scored_before_the_search(finished):
    task, run, study = finished
    before = stored(task)
    for plan in ({}, dict.fromkeys(run._candidate.points, 0)):
        assert not networks_of(task, run).network(plan).made
    assert stored(task) == before


def test_networks_of_plans_that_broke_the_limit_are_not_kept(finished):
    task, run, study = finished
    satisfied = {
        tuple(sorted(trial.points.items()))
        for trial in study.record().trials
        if trial.satisfied and any(trial.points.values())
    }
    assert len(stored(task)) == len(satisfied)
    networks_of(task, run).forget({"conv": 1, "fc": 1})  # of which there is none


def test_lost_inputs_are_told_with_what_helps(finished):
    task, run, study = finished
    plan = searched_plan(study)
    built = networks_of(task, run).network(plan)
    for path in input_files(task.record_file):
        path.unlink()
    assert_same(networks_of(task, run).network(plan), built)  # what was built is still there
    networks_of(task, run).forget(plan)
    with pytest.raises(StudyError, match=r"inputs beside .* were lost; resume the study where it was started"):
        networks_of(task, run).network(plan)


def test_a_study_whose_inputs_were_lost_calibrates_again_and_goes_on(finished):
    task, run, study = finished
    kept = [path.read_bytes() for path in input_files(task.record_file)]
    plan = searched_plan(study)
    built = networks_of(task, run).network(plan)
    for path in [*input_files(task.record_file), *stored(task)]:
        path.unlink()
    inputs_folder(task.record_file).rmdir()
    told = []
    again = StudyRun(replace(task, n_trials=6), told.append)
    record = again.run(exists=True).record()
    assert {"calibration"} <= {step.stage for step in told} and "curves" not in {step.stage for step in told}
    assert [trial.state for trial in record.trials] == ["complete"] * 6
    assert len(input_files(task.record_file)) == len(kept)
    assert_same(networks_of(again.task, again).network(plan), built)


def test_an_exported_trial_is_the_one_that_was_scored(finished):
    """The fake-quant pair scores the very metric; the packed file has the very bytes of codes."""
    task, _, study = finished
    run = StudyRun(task)
    for trial in study.record().trials:
        run.export(study, trial.number, formats=("caffe", "packed"), prefix=str(task.out / "x/net"))
        pair = fake_quant_pair(str(task.out / "x/net"))
        metric = task.evaluator.eval_model(pair.model, pair.weights, task.evaluator.evaluate_batch_num)
        assert metric == trial.metric
        layers = load_packed(packed_path(str(task.out / "x/net"))).layers
        assert sum(len(layer.stream) for layer in layers.values() if layer.stream) == trial.size_bytes
        candidate = run.candidate(study, trial.points)
        assert size_of(candidate) == trial.size_bytes
        rows = {row.layer.name: row for row in study.record().layer_rows(trial)}
        assert sum(row.size_bytes for row in rows.values()) == trial.size_bytes
        for name in trial.built:
            assert rows[name].levels == len(np.unique(candidate.codes(name)))
        assert trial.built.keys() == candidate.made.keys()
        assert trial.ratio == 4 * sum(candidate.model.weight_counts.values()) / trial.size_bytes


def size_of(candidate):
    codes = [candidate.codes(name) for name in candidate.points]
    return sum(EntropyCodec(own.shape).size_bytes(own) for own in codes)


def tell_as_before(study, task):
    """Let a study hold of its preparation what earlier versions told it: digests of what was published."""
    files = [task.record_file, *(path for path in task.points_folder.iterdir() if path.is_file())]
    store_long(study, ARTIFACTS, {path.relative_to(task.out).as_posix(): file_digest(path) for path in files})
    store_long(study, CALIBRATED, {})
    store_long(study, WAYS, {})
    study.set_user_attr(POINTS, "")
    study.set_user_attr(SEAL, {})


def test_points_of_earlier_versions_are_taken_as_they_were(finished):
    """An index without the newer arrays: nothing is built in order, and no inputs are asked for."""
    task, run, study = finished
    newer = ("rounding", "scale", "prices", "order", "diagonal", "blocks")
    with np.load(task.points_folder / INDEX) as arrays:
        old = {name: arrays[name] for name in arrays if name.rpartition(":")[2] not in newer}
    old.pop("digests"), old.pop("calibration")
    np.savez_compressed(task.points_folder / INDEX, **old)
    for path in [*input_files(task.record_file), *stored(task)]:
        path.unlink()
    tell_as_before(study.optuna, task)
    told = []
    again = StudyRun(replace(task, n_trials=6), told.append)
    record = again.run(exists=True).record()
    assert not {"calibration", "curves", "ways", "foretelling"} & {step.stage for step in told}
    assert len(record.trials) == 6 and not stored(task)
    newest = record.trials[-1]
    sizes = [layer.rates_bytes[newest.points[layer.name]] for layer in record.layers if layer.name in newest.points]
    assert newest.size_bytes == sum(sizes)


def test_a_worker_elsewhere_builds_the_same_networks(finished):
    task, run, study = finished
    study.optuna.set_user_attr("autonuq:target_trials", 6)
    elsewhere = replace(task, out=task.out.parent / "elsewhere", artifacts=task.artifacts_location)
    record = work(elsewhere).record()
    assert [trial.state for trial in record.trials] == ["complete"] * 6
    there, here = (input_files(one.record_file) for one in (elsewhere, task))
    assert [path.read_bytes() for path in there] == [path.read_bytes() for path in here]
    newest = record.trials[-1]
    assert size_of(StudyRun(task).candidate(Study(study.optuna), newest.points)) == newest.size_bytes


def test_the_same_study_twice_builds_the_same_networks(task):
    one, other = (
        StudyRun(replace(task, out=task.out / name, storage=f"sqlite:///{task.out.parent}/{name}.db")).run(exists=False)
        for name in ("one", "other")
    )
    assert [t.size_bytes for t in one.record().trials] == [t.size_bytes for t in other.record().trials]
    assert [t.metric for t in one.record().trials] == [t.metric for t in other.record().trials]
    assert one.record().rounding == other.record().rounding and one.record().rounding.way
