"""Digests of an evaluator's data: they change with the content, not with where it lies or when it was written."""

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from autonuq.errors import EvaluatorError, StudyError
from autonuq.evaluate.builtin.sources import DataSettings, open_images, sampled_digest
from autonuq.evaluate.evaluator import changed_data, data_digests
from autonuq.records import DATA
from autonuq.study.run import StudyRun


def pictures(folder, seed=0):
    """Write 20 pictures of the same size in bytes, and their labels."""
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (20, 6, 5, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{number}.bmp")
    (folder / "labels.txt").write_text("".join(f"{number}.bmp {number % 3}\n" for number in range(20)))
    return folder


def parts_of(folder):
    return open_images(DataSettings("folder", folder, labels=str(folder / "labels.txt"))).parts()


def test_a_picture_of_the_same_size_is_noticed_and_named(tmp_path):
    folder = pictures(tmp_path / "val")
    before = parts_of(folder)
    assert set(before) == {"labels.txt", "val"}
    data = bytearray((folder / "7.bmp").read_bytes())
    data[-9] ^= 1
    (folder / "7.bmp").write_bytes(data)
    assert changed_data(before, parts_of(folder)) == ["val"]


def test_a_label_is_noticed_and_named(tmp_path):
    folder = pictures(tmp_path / "val")
    before = parts_of(folder)
    text = (folder / "labels.txt").read_text()
    (folder / "labels.txt").write_text(text.replace("3.bmp 0", "3.bmp 1"))
    assert changed_data(before, parts_of(folder)) == ["labels.txt"]


def test_a_copy_with_other_times_and_another_name_is_the_same(tmp_path):
    folder = pictures(tmp_path / "val")
    other = shutil.copytree(folder, tmp_path / "copy")
    for path in other.iterdir():
        os.utime(path, (1, 1))
    assert changed_data(parts_of(folder), parts_of(other)) == []


def test_a_record_of_a_database_is_noticed(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    from autonuq.graph import caffe_pb2

    def write(changed):
        with lmdb.open(str(tmp_path / "db"), map_size=1 << 22) as database, database.begin(write=True) as transaction:
            for number in range(9):
                pixels = np.full(12, number + (number == changed), np.uint8).tobytes()
                datum = caffe_pb2.Datum(channels=3, height=2, width=2, data=pixels, label=number % 2)
                transaction.put(f"{number:08}".encode(), datum.SerializeToString())
        return open_images(DataSettings("lmdb", tmp_path / "db")).parts()

    assert changed_data(write(-1), write(4)) == ["db"]
    assert changed_data(write(-1), write(-1)) == []


def test_of_much_data_a_sample_is_digested(monkeypatch):
    monkeypatch.setattr("autonuq.evaluate.builtin.sources._DIGESTED_BYTES", 4000)
    monkeypatch.setattr("autonuq.evaluate.builtin.sources._DIGESTED", 10)
    things = [bytes([n % 251]) * 1000 for n in range(100)]
    looked = []

    def digest(things):
        looked.clear()

        def content(number):
            looked.append(number)
            return things[number]

        return sampled_digest([len(one) for one in things], content)

    first = digest(things)
    assert len(looked) == 10 and {0, 99} <= set(looked)
    assert digest(things) == first
    assert digest([*things[:-1], b"\0" * 1000]) != first
    assert digest([*things[:50], things[50][:-1], *things[51:]]) != first


class WithData:
    """Tells of its data; otherwise another evaluator."""

    evaluate_batch_num = 8

    def __init__(self, evaluator, digests):
        self._evaluator, self._digests = evaluator, digests

    def eval_model(self, *arguments):
        return self._evaluator.eval_model(*arguments)

    def is_satisfied(self, original_metric, new_metric):
        return self._evaluator.is_satisfied(original_metric, new_metric)

    def data_digests(self):
        return self._digests


def test_a_study_is_not_gone_on_with_on_other_data(task):
    first = replace(task, evaluator=WithData(task.evaluator, {"images.npz": "1", "labels": "2"}))
    study = StudyRun(first).run(exists=False)
    other = replace(task, n_trials=4, evaluator=WithData(task.evaluator, {"images.npz": "3", "labels": "2"}))
    with pytest.raises(StudyError, match="was started with another content of images.npz; restore it"):
        StudyRun(other).run(exists=True)
    with pytest.raises(StudyError, match="another content of images.npz"):
        StudyRun(other).export(study)
    renamed = WithData(task.evaluator, {"pictures.npz": "1", "labels": "2"})
    assert len(StudyRun(replace(other, evaluator=renamed)).run(exists=True).record().trials) == 4


def test_a_study_of_an_earlier_version_learns_of_its_data(task):
    study = StudyRun(task).run(exists=False)
    study.optuna.set_user_attr(DATA, {})
    assert StudyRun(replace(task, n_trials=4)).run(exists=True).best is not None


@pytest.mark.parametrize("digests", [["images"], None, 3])
def test_what_is_no_dict_is_refused(task, digests):
    with pytest.raises(EvaluatorError, match="data_digests must return a dict"):
        data_digests(WithData(task.evaluator, digests))


def test_an_evaluator_keeps_its_digests_where_it_is_sent(task):
    assert data_digests(pickle.loads(pickle.dumps(WithData(None, {"a": "b"})))) == {"a": "b"}
