"""Automatic non-uniform quantization, in the shape of AMCT's auto_nuq sample."""

import os

from fashion_lmdb import parse_args, run_caffe_model, set_device

ARGS = parse_args("auto nuq")

import amct_caffe as amct  # noqa: E402
from amct_caffe.auto_nuq import AutoNuqEvaluatorBase  # noqa: E402

TMP = "./tmp"
RESULT = "./results/calibration_results"


class AutoNuqEvaluator(AutoNuqEvaluatorBase):
    """Top-1 of a number of batches."""

    def __init__(self, evaluate_batch_num):
        super().__init__(self)
        self.evaluate_batch_num = evaluate_batch_num

    def eval_model(self, model_file, weights_file, batch_num):
        data = ARGS.test_data if batch_num == self.evaluate_batch_num else ARGS.calibration_data
        return run_caffe_model(model_file, weights_file, data, ARGS.batch_size, batch_num)

    def is_satisfied(self, original_metric, new_metric):
        return (original_metric - new_metric) * 100 < 1


def main():
    set_device(ARGS)
    for folder in (TMP, RESULT):
        if not os.path.exists(folder):
            os.makedirs(folder)
    config_file = os.path.join(TMP, "config.json")
    amct.create_quant_config(config_file, ARGS.model_file, ARGS.weights_file, [], 1, True, ARGS.cfg_define)
    evaluator = AutoNuqEvaluator(ARGS.iterations)
    scale_offset_record_file = os.path.join(TMP, "scale_offset_record.txt")
    result_path = os.path.join(RESULT, "Fashion")
    amct.auto_nuq(ARGS.model_file, ARGS.weights_file, evaluator, config_file, scale_offset_record_file, result_path)
    top1 = evaluator.eval_model(
        result_path + "_fake_quant_model.prototxt",
        result_path + "_fake_quant_weights.caffemodel",
        ARGS.iterations,
    )
    print("******final top1: %f******" % top1)


if __name__ == "__main__":
    main()
