"""Quantization by a record file that exists already, in the shape of AMCT's convert_model sample."""

import os

from fashion_lmdb import parse_args, run_caffe_model, set_device

RECORD = "./tmp/scale_offset_record.txt"
RESULT = "./results/convert"


def main():
    args = parse_args("convert_model")
    import amct_caffe as amct

    set_device(args)
    amct.convert_model(args.model_file, args.weights_file, RECORD, RESULT)
    top1 = run_caffe_model(
        os.path.realpath(RESULT + "_fake_quant_model.prototxt"),
        os.path.realpath(RESULT + "_fake_quant_weights.caffemodel"),
        args.test_data,
        args.batch_size,
        args.iterations,
    )
    print("******final top1: %f******" % top1)


if __name__ == "__main__":
    main()
