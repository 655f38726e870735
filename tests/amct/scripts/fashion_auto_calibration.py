"""Accuracy-based automatic calibration, in the shape of AMCT's MobileNetV2 sample."""

import os

from fashion_lmdb import parse_args, run_caffe_model, set_device

ARGS = parse_args("accuracy based auto calibration")

import amct_caffe as amct  # noqa: E402
from amct_caffe.common.auto_calibration import AutoCalibrationEvaluatorBase  # noqa: E402

TMP = "./tmp"
BATCH_NUM = 2


class AutoCalibrationEvaluator(AutoCalibrationEvaluatorBase):
    """Top-1, with a bound on what may be lost."""

    def __init__(self, target_loss):
        super().__init__()
        self.target_loss = target_loss

    def calibration(self, model_file, weights_file):
        run_caffe_model(model_file, weights_file, ARGS.calibration_data, ARGS.batch_size, BATCH_NUM)

    def evaluate(self, model_file, weights_file):
        return run_caffe_model(model_file, weights_file, ARGS.test_data, ARGS.batch_size, ARGS.iterations)

    def metric_eval(self, original_metric, new_metric):
        loss = original_metric - new_metric
        return loss < self.target_loss, loss


def main():
    set_device(ARGS)
    if not os.path.exists(TMP):
        os.makedirs(TMP)
    config_file = os.path.join(TMP, "config.json")
    amct.create_quant_config(
        config_file=config_file,
        model_file=ARGS.model_file,
        weights_file=ARGS.weights_file,
        batch_num=BATCH_NUM,
    )
    amct.accuracy_based_auto_calibration(
        ARGS.model_file,
        ARGS.weights_file,
        AutoCalibrationEvaluator(target_loss=0.01),
        config_file,
        os.path.join(TMP, "record.txt"),
        "./results/fashion",
        strategy="BinarySearch",
        sensitivity="CosineSimilarity",
    )


if __name__ == "__main__":
    main()
