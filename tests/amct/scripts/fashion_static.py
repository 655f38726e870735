"""Static quantization, uniform or (by --cfg_define) non-uniform, in the shape of AMCT's ResNet-50 sample."""

import json
import os

from fashion_lmdb import parse_args, run_caffe_model, set_device

TMP = "./tmp"
RESULT = "./results"


def main():
    args = parse_args("static quantization")
    import amct_caffe as amct

    set_device(args)
    for folder in (TMP, RESULT):
        if not os.path.exists(folder):
            os.makedirs(folder)

    # Phase 0: the original model
    top1 = run_caffe_model(args.model_file, args.weights_file, args.test_data, args.batch_size, args.iterations)
    print("[AMCT] phase 0: original top1: %f" % top1)

    # Phase 1: the configuration
    config_json = os.path.join(TMP, "config.json")
    batch_num = 2
    if args.cfg_define is not None:
        amct.create_quant_config(config_json, args.model_file, args.weights_file, [], batch_num, True, args.cfg_define)
    else:
        amct.create_quant_config(config_json, args.model_file, args.weights_file, [], batch_num, True)
    with open(config_json) as config:
        batch_num = json.load(config)["batch_num"]

    # Phase 2: the modified model and its calibration
    record = os.path.join(TMP, "scale_offset_record.txt")
    graph = amct.init(config_json, args.model_file, args.weights_file, record)
    modified_model = os.path.join(TMP, "modified_model.prototxt")
    modified_weights = os.path.join(TMP, "modified_model.caffemodel")
    amct.quantize_model(graph, modified_model, modified_weights)
    run_caffe_model(modified_model, modified_weights, args.calibration_data, args.batch_size, batch_num)
    print("[AMCT] phase 2: calibration done")

    # Phase 3: the quantized model
    amct.save_model(graph, "Both", os.path.join(RESULT, "fashion_"))
    top1 = run_caffe_model(
        os.path.join(RESULT, "fashion__fake_quant_model.prototxt"),
        os.path.join(RESULT, "fashion__fake_quant_weights.caffemodel"),
        args.test_data,
        args.batch_size,
        args.iterations,
    )
    print("******final top1: %f******" % top1)


if __name__ == "__main__":
    main()
