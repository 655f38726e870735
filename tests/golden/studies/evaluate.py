"""Top-1 on the images of this folder."""

import os
import time
from pathlib import Path

import numpy as np

import autonuq as nuq


class Top1(nuq.Evaluator):
    """Share of the images that are labelled right."""

    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        data = np.load(Path(__file__).parent / "images.npz")
        self.images, self.labels = data["images"] / np.float32(255), data["labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        time.sleep(float(os.environ.get("PAUSE_S", 0)))
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        images, labels = self.images[: 4 * batch_num], self.labels[: 4 * batch_num]
        return float((net.forward_all(data=images)["prob"].argmax(1) == labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < 0.1
