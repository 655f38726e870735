"""What a study left in its folder is used again only if it is what the study was told of."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_network import write_tiny, write_tiny_study

from autonuq.compress.packed_file import load_packed
from autonuq.errors import StudyError
from autonuq.graph.files import ModelPair
from autonuq.records import ARTIFACTS, CALIBRATED, TARGET_TRIALS
from autonuq.study.artifacts import load_config
from autonuq.study.attributes import StudyAttributes
from autonuq.study.locate import open_study
from autonuq.study.points_cache import INDEX
from autonuq.study.run import StudyRun
from autonuq.study.study_file import load_task
from autonuq.study.task import file_digest
from autonuq.study.workers import work


class Louder:
    """The same evaluator on inputs that are a hundred times as large."""

    evaluate_batch_num = 8

    def __init__(self, evaluator):
        self._evaluator = evaluator

    def eval_model(self, *arguments):
        images, self._evaluator.images = self._evaluator.images, self._evaluator.images * 100
        try:
            return self._evaluator.eval_model(*arguments)
        finally:
            self._evaluator.images = images

    def is_satisfied(self, original_metric, new_metric):
        return self._evaluator.is_satisfied(original_metric, new_metric)


def stages_of(task, *, exists):
    told = []
    study = StudyRun(task, told.append).run(exists=exists)
    return study, {step.stage for step in told}


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alone(task, tmp_path, **other):
    """Run the task in a folder of its own, and return what its calibration left."""
    own = replace(task, out=tmp_path / "alone", storage=f"sqlite:///{tmp_path}/alone.db", **other)
    StudyRun(own).run(exists=False)
    return files_of(own.record_file.parent)


@pytest.mark.slow
@pytest.mark.parametrize("is_deleted", [True, False], ids=["its storage deleted", "beside another"])
@pytest.mark.parametrize("more", [{}, {"batch_num": 2}], ids=["another evaluator", "and another batch_num"])
def test_a_second_study_in_a_folder_takes_nothing_over(task, tmp_path, is_deleted, more):
    first = StudyRun(task).run(exists=False).record()
    if is_deleted:
        Path(task.storage.removeprefix("sqlite:///")).unlink()
    name = task.name if is_deleted else "second"
    second = replace(task, name=name, evaluator=Louder(task.evaluator), **more)
    study, stages = stages_of(second, exists=False)
    assert {"calibration", "curves"} <= stages
    assert files_of(task.record_file.parent) == alone(second, tmp_path)
    if not is_deleted:  # and the first one makes its own again
        again, stages = stages_of(replace(task, n_trials=4), exists=True)
        assert {"calibration", "curves"} <= stages
        assert again.record().layers == first.layers and len(again.record().trials) == 4


def test_a_second_study_of_the_same_calibration_shares_the_points(task):
    StudyRun(task).run(exists=False)
    _, stages = stages_of(replace(task, name="second"), exists=False)
    assert "calibration" in stages and "curves" not in stages


def test_a_study_that_goes_on_repeats_nothing(task):
    StudyRun(task).run(exists=False)
    assert not stages_of(replace(task, n_trials=4), exists=True)[1] & {"calibration", "curves", "baseline"}


def flip(path):
    """Change one byte in the middle of a file, which may be linked from the artifacts."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap_codes(points):
    one, other = points / "0.npy", points / "1.npy"
    first = one.read_bytes()
    one.write_bytes(other.read_bytes()), other.write_bytes(first)


def edit_index(points):
    with np.load(points / INDEX) as arrays:
        kept = dict(arrays)
    kept["0:distortions"] = kept["0:distortions"] * 2
    np.savez_compressed(points / INDEX, **kept)


DAMAGES = {
    "codes": lambda task: flip(task.points_folder / "0.npy"),
    "swapped": lambda task: swap_codes(task.points_folder),
    "index": lambda task: flip(task.points_folder / INDEX),
    "index, consistently": lambda task: edit_index(task.points_folder),
    "no index": lambda task: (task.points_folder / INDEX).unlink(),
    "record": lambda task: task.record_file.write_text(
        task.record_file.read_text().replace("scale_d: 0.", "scale_d: 1.")
    ),
    "inputs": lambda task: flip(task.record_file.with_name("record.txt.inputs") / "0.npz"),
    "stale inputs": lambda task: shutil.copy(
        task.record_file.with_name("record.txt.inputs") / "0.npz",
        task.record_file.with_name("record.txt.inputs") / "7.npz",
    ),
    "a network": lambda task: [flip(path) for path in (task.points_folder / "plans").iterdir()],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run a study of four trials once; return its task and the packed file of its best."""
    folder = tmp_path_factory.mktemp("made")
    write_tiny(folder)
    task = load_task(write_tiny_study(folder), trials=4)
    run = StudyRun(task)
    (packed,) = run.export(run.run(exists=False), formats=("packed",))
    return task, streams_of(packed)


@pytest.fixture
def finished(made, tmp_path):
    """Copy that study's folder; return (task, its record, its kept files, its packed best)."""
    task, packed = made
    out = shutil.copytree(task.out, tmp_path / "out")
    task = replace(task, out=out, storage=f"journal://{out}/study.journal").made()
    return task, open_study(task.name, task.storage).record(), files_of(task.record_file.parent), packed


def export_of(task, number, prefix):
    study = open_study(task.name, task.storage)
    (packed,) = StudyRun(task).export(study, number, formats=("packed",), prefix=str(prefix))
    return streams_of(packed)


def streams_of(packed):
    """Return what a packed file holds of each layer; its head says of what trial, in words that change."""
    return {name: layer.stream for name, layer in load_packed(packed).layers.items()}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_made_again_when_the_study_goes_on(finished, damage):
    task, before, kept, packed = finished
    damage(task)
    again = StudyRun(replace(task, n_trials=5)).run(exists=True)
    assert [trial.metric for trial in again.record().trials[:4]] == [trial.metric for trial in before.trials]
    now = files_of(task.record_file.parent)
    assert without_plans(now) == without_plans(kept)
    assert export_of(task, before.best.number, task.out / "x") == packed
    digests = StudyAttributes(again.optuna).long(ARTIFACTS, dict[str, str])
    for digest in digests.values():  # also what was linked, and damaged with its twin
        assert file_digest(task.out / "artifacts" / digest) == digest


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_exported_is_what_was_scored(finished, damage):
    """It comes from the artifacts where these are intact, or is refused."""
    task, before, _, packed = finished
    damage(task)
    try:
        assert export_of(task, before.best.number, task.out / "x") == packed
    except StudyError as error:
        assert "'autonuq resume' makes them again" in str(error)


def without_plans(files):
    return {path: data for path, data in files.items() if "plans" not in path.parts}


@pytest.mark.parametrize("damage", [DAMAGES[name] for name in ("record", "inputs", "stale inputs", "index")])
def test_a_worker_elsewhere_mends_what_is_damaged_there(finished, damage, tmp_path):
    task, _, kept, _ = finished
    elsewhere = replace(task, out=tmp_path / "elsewhere", artifacts=task.artifacts_location)
    work(elsewhere)
    damage(elsewhere)
    open_study(task.name, task.storage).optuna.set_user_attr(TARGET_TRIALS, 5)
    assert len(work(elsewhere).record().trials) == 5
    assert without_plans(files_of(elsewhere.record_file.parent)) == without_plans(kept)


def test_a_calibration_that_cannot_be_made_again_as_it_was_is_refused(finished):
    task, _, _, _ = finished
    task.record_file.unlink()
    task.evaluator.images = task.evaluator.images + 1
    with pytest.raises(StudyError, match="calibration .*record.txt.* cannot be built again as they were"):
        StudyRun(replace(task, n_trials=5)).run(exists=True)


def test_a_killed_preparation_calibrates_again_where_moments_are_damaged(task, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("autonuq.study.preparation.store_points", die)
        StudyRun(task).run(exists=False)
    moments = sorted(task.record_file.with_name("record.txt.moments").iterdir())
    assert CALIBRATED in open_study(task.name, task.storage).optuna.user_attrs
    flip(next(path for path in moments if path.stat().st_size))
    assert "calibration" in stages_of(task, exists=True)[1]


def test_a_damaged_configuration_among_the_artifacts_names_its_file(tmp_path, task):
    path = tmp_path / "quantization.json"
    StudyRun(task).run(exists=False)
    for text in ("{", "[]", "5", "[" * 100_000, json.dumps({"layers": {"conv": 3}}), '{"layers": {}, "x": 1}'):
        path.write_text(text)
        with pytest.raises(StudyError, match="quantization.json is no quantization configuration"):
            load_config(path)


def test_another_network_is_refused_before_anything_is_reused(task, tmp_path):
    StudyRun(task).run(exists=False)
    other = tmp_path / "other.caffemodel"
    data = bytearray(task.source.weights.read_bytes())
    data[-8] ^= 1
    other.write_bytes(data)
    with pytest.raises(StudyError, match="another weights"):
        StudyRun(replace(task, source=ModelPair(task.source.model, other))).run(exists=True)
