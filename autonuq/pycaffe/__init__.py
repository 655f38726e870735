"""What a script gets as `caffe`: `module` is that module, `io` its `caffe.io`."""

from autonuq.pycaffe.module import (
    TEST,
    TRAIN,
    Layer,
    Net,
    init_log,
    install,
    io,
    proto,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_random_seed,
)

__all__ = [
    "TEST",
    "TRAIN",
    "Layer",
    "Net",
    "init_log",
    "install",
    "io",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_random_seed",
]
