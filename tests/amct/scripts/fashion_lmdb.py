"""What the sample scripts share: options, the place of Caffe, and a loop over an LMDB of Datum records."""

import argparse
import os
import sys

import numpy as np

SCALE = np.float32(1.0 / 255.0)


def parse_args(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model_file", required=True, help="deploy prototxt")
    parser.add_argument("--weights_file", required=True, help="caffemodel")
    parser.add_argument("--caffe_dir", required=True, help="where Caffe was built")
    parser.add_argument("--calibration_data", required=True, help="LMDB for the calibration")
    parser.add_argument("--test_data", required=True, help="LMDB for the evaluation")
    parser.add_argument("--iterations", type=int, default=5, help="batches of an evaluation")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--cfg_define", default=None, help="simplified configuration")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--cpu", action="store_true", default=True)
    group.add_argument("--gpu", type=int, default=None)
    args = parser.parse_args()
    if not os.path.isdir(args.caffe_dir):
        raise RuntimeError("caffe_dir %s is no folder" % args.caffe_dir)
    sys.path.insert(0, os.path.join(args.caffe_dir, "python"))
    return args


def set_device(args):
    import amct_caffe as amct
    import caffe

    if args.gpu is not None:
        caffe.set_mode_gpu()
        caffe.set_device(args.gpu)
        amct.set_gpu_mode()
    else:
        caffe.set_mode_cpu()
        amct.set_cpu_mode()


def read_batches(path, batch_size, batches):
    """Yield (images, labels), from the beginning again where the database ends."""
    import lmdb
    from caffe.proto import caffe_pb2

    env = lmdb.open(path, readonly=True, lock=False)
    datum = caffe_pb2.Datum()
    with env.begin() as txn:
        cursor = txn.cursor()
        for _ in range(batches):
            images, labels = [], []
            while len(images) < batch_size:
                if not cursor.next():
                    cursor.first()
                datum.ParseFromString(cursor.value())
                pixels = np.fromstring(datum.data, np.uint8)
                images.append(pixels.reshape(datum.channels, datum.height, datum.width))
                labels.append(datum.label)
            yield np.array(images), np.array(labels)
    env.close()


def run_caffe_model(model_file, weights_file, data, batch_size, batches):
    """Return top-1 over some batches, phase by phase as Caffe's own examples do it."""
    import caffe

    net = caffe.Net(model_file, weights_file, caffe.TEST)
    net.blobs["data"].reshape(batch_size, *net.blobs["data"].data.shape[1:])
    net.reshape()
    right = total = 0
    for images, labels in read_batches(data, batch_size, batches):
        net.blobs["data"].data[...] = images * SCALE
        net.forward()
        right += (net.blobs["prob"].data.argmax(axis=1) == labels).sum()
        total += len(labels)
    return float(right) / total
