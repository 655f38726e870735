"""Automatic non-uniform quantization as a script for AMCT does it; nothing in it knows of autonuq."""

import os
import sys

import amct_caffe as amct
import caffe
import numpy as np
from amct_caffe.auto_nuq import AutoNuqEvaluatorBase

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fashion_lenet")
MODEL, WEIGHTS = os.path.join(DATA, "lenet.prototxt"), os.path.join(DATA, "lenet.caffemodel")
BATCH_SIZE = 100


class LenetEvaluator(AutoNuqEvaluatorBase):
    """Top-1 accuracy on Fashion-MNIST."""

    def __init__(self, evaluate_batch_num):
        self.evaluate_batch_num = evaluate_batch_num
        with np.load(os.path.join(DATA, "fashion.npz")) as data:
            self.images, self.labels = data["test_images"], data["test_labels"]

    def eval_model(self, model_file, weights_file, batch_num):
        net = caffe.Net(model_file, weights_file, caffe.TEST)
        net.blobs["data"].reshape(BATCH_SIZE, 1, 28, 28)
        correct = 0
        for start in range(0, batch_num * BATCH_SIZE, BATCH_SIZE):
            net.blobs["data"].data[:, 0] = self.images[start : start + BATCH_SIZE] / np.float32(255)
            found = net.forward()["prob"].argmax(axis=1)
            correct += int((found == self.labels[start : start + BATCH_SIZE]).sum())
        return correct / (batch_num * BATCH_SIZE)

    def is_satisfied(self, original_metric, new_metric):
        return (original_metric - new_metric) * 100 < 1


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "results"
    os.makedirs(folder, exist_ok=True)
    config, record = os.path.join(folder, "config.json"), os.path.join(folder, "record.txt")
    amct.set_cpu_mode()
    amct.create_quant_config(config, MODEL, WEIGHTS, [], 2, True)
    amct.auto_nuq(MODEL, WEIGHTS, LenetEvaluator(20), config, record, os.path.join(folder, "lenet"))


if __name__ == "__main__":
    main()
