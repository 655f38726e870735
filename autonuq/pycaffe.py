"""The module that a script gets for `import caffe` after `autonuq.pycaffe.install()`.

Names and constants are pycaffe's. What needs training or a patched build is not here.
"""

from __future__ import annotations

import sys
from types import ModuleType

from autonuq import pycaffe_io as io
from autonuq.errors import RuntimeFailure
from autonuq.graph.hosted.python_layer import PythonLayer as Layer
from autonuq.graph.model import TEST, TRAIN
from autonuq.runtime.net import Net

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

__version__ = "1.0.0"  # the pycaffe whose interface this is

proto = ModuleType("caffe.proto", "Caffe's messages.")
proto.caffe_pb2 = io.caffe_pb2  # type: ignore[attr-defined]


def set_mode_cpu() -> None:
    """Run on the CPU, which is the default."""


def set_mode_gpu() -> None:
    """Refuse: this build runs on the CPU only.

    Raises
    ------
    RuntimeFailure
        Always; a silent fall-back to the CPU would be worse.
    """
    raise RuntimeFailure("set_mode_gpu: the installed onnxruntime runs on the CPU only; call set_mode_cpu instead")


def set_device(device_id: int) -> None:
    """Select a device; only device 0 exists on a CPU.

    Raises
    ------
    RuntimeFailure
        Another device is asked for.
    """
    if device_id != 0:
        raise RuntimeFailure(f"set_device: device {device_id} does not exist, the CPU is device 0")


def init_log(*_ignored: object) -> None:
    """Do nothing: there is no glog here."""


def set_random_seed(seed: int) -> None:
    """Do nothing: networks in phase TEST draw no numbers."""


def install() -> None:
    """Make `import caffe`, `caffe.io` and `caffe.proto.caffe_pb2` give ours, in this process."""
    sys.modules |= {
        "caffe": sys.modules[__name__],
        "caffe.io": io,
        "caffe.proto": proto,
        "caffe.proto.caffe_pb2": io.caffe_pb2,
    }
