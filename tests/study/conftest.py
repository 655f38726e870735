"""A study that logs its evaluator's calls."""

import numpy as np
import pytest

LOGGING_EVALUATOR = """
import os, time
from pathlib import Path

import numpy as np

import autonuq as nuq

HERE = Path(__file__).parent


class Top1(nuq.Evaluator):
    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        data = np.load(HERE / "images.npz")
        self.images, self.labels = data["images"], data["labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        with (HERE / "calls.log").open("a") as log:
            log.write(f"{os.getpid()} {Path(model_file).name} {hash(Path(weights_file).read_bytes())}\\n")
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        found = net.forward_all(data=self.images)["prob"].argmax(1)
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        return float((found == self.labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1
"""


@pytest.fixture
def logging_study(tiny_study, monkeypatch):
    """Give the tiny study an evaluator that knows the right answers from a file, and logs its calls."""
    from autonuq import Net

    folder = tiny_study.parent
    images = np.random.default_rng(0).standard_normal((32, 2, 8, 8), np.float32)
    labels = Net(folder / "tiny.prototxt", folder / "tiny.caffemodel").forward_all(data=images)["prob"].argmax(1)
    np.savez(folder / "images.npz", images=images, labels=labels)
    (folder / "evaluate.py").write_text(LOGGING_EVALUATOR)
    text = tiny_study.read_text().replace(":Agreement", ":Top1")
    tiny_study.write_text(text.replace("trials = 8", "trials = 14"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # the log's hashes are of several processes
    return tiny_study
