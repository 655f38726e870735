"""An auto_nuq script that reads an LMDB as AMCT's samples do, killed in the middle and run again."""

import re
import subprocess
import sys
import time

import lmdb
import numpy as np
import pytest

from autonuq import pycaffe

SCRIPT = """
import os
import time

import lmdb
import numpy as np

import caffe
import amct_caffe as amct
from amct_caffe.auto_nuq import AutoNuqEvaluatorBase
from caffe.proto import caffe_pb2

FILES = "tiny.prototxt", "tiny.caffemodel"


def batches(count):
    datum = caffe_pb2.Datum()
    with lmdb.open("data", readonly=True, lock=False) as env, env.begin() as txn:
        cursor = txn.cursor()
        for _ in range(count):
            images = []
            while len(images) < 4:
                cursor.next() or cursor.first()
                datum.ParseFromString(cursor.value())
                pixels = np.fromstring(datum.data, np.uint8)
                images.append(pixels.reshape(datum.channels, datum.height, datum.width).astype(np.float) / 128 - 1)
            yield np.array(images)


class AutoNuqEvaluator(AutoNuqEvaluatorBase):
    def __init__(self, evaluate_batch_num):
        super().__init__(self)
        self.evaluate_batch_num = evaluate_batch_num
        self.original = self.outputs(*FILES, evaluate_batch_num)

    def outputs(self, model_file, weights_file, batch_num):
        net = caffe.Net(model_file, weights_file, caffe.TEST)
        return [net.forward(data=images)["prob"].argmax(axis=1) for images in batches(batch_num)]

    def eval_model(self, model_file, weights_file, batch_num):
        time.sleep(float(os.environ["SLEEP_S"]))
        found = self.outputs(model_file, weights_file, batch_num)
        return np.mean([a == b for a, b in zip(found, self.original)])

    def is_satisfied(self, original_metric, new_metric):
        return (original_metric - new_metric) * 100 < 15


amct.create_quant_config("config.json", *FILES, [], 2, True)
amct.auto_nuq(*FILES, AutoNuqEvaluator(8), "config.json", "record.txt", "results/Tiny")
"""
COMMAND = [sys.executable, "-m", "autonuq.amct", "script.py"]


@pytest.mark.slow
def test_a_killed_script_says_where_it_goes_on(tiny, monkeypatch):
    monkeypatch.setenv("AMCT_LOG_LEVEL", "INFO")
    (tiny / "script.py").write_text(SCRIPT)
    images = np.random.default_rng(2).integers(0, 256, (32, 2, 8, 8), np.uint8)
    with lmdb.open("data", map_size=1 << 22) as database, database.begin(write=True) as transaction:
        for index, image in enumerate(images):
            transaction.put(f"{index:08d}".encode(), pycaffe.io.array_to_datum(image, 0).SerializeToString())
    monkeypatch.setenv("SLEEP_S", "0.2")
    log = tiny / "amct_log/amct_caffe.log"
    first = subprocess.Popen(COMMAND, stderr=subprocess.DEVNULL)
    ends = time.monotonic() + 120
    while not (log.exists() and "trial 3/40" in log.read_text()):
        assert first.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.05)
    first.kill()
    first.wait()
    monkeypatch.setenv("SLEEP_S", "0")
    again = subprocess.run(COMMAND, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    said = re.search(r"goes on with (\d+) of 40 trials, which results/Tiny_study holds", again.stderr)
    assert said, again.stderr
    assert 3 <= int(said[1]) < 40
    assert "trial 40/40" in again.stderr
    assert (tiny / "results/Tiny_deploy_weights.caffemodel").is_file()
