"""The module that a script gets for `import caffe` after `autonuq.pycaffe.install()`.

Names and constants are pycaffe's. What needs training or a patched build is not here.
"""

from __future__ import annotations

import sys
from types import ModuleType

from autonuq.graph.hosted.python_layer import PythonLayer as Layer
from autonuq.graph.model import TEST, TRAIN
from autonuq.pycaffe import io
from autonuq.runtime.device import select_accelerator, select_card, select_cpu
from autonuq.runtime.net import Net
from autonuq.runtime.seed import seed_fillers

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
    """Run on the CPU from now on, which is the default."""
    select_cpu()


def set_mode_gpu() -> None:
    """Run on the GPU or NPU from now on; nets that are there already follow.

    Raises
    ------
    RuntimeFailure
        The installed onnxruntime has no such device; there is no silent fall-back to the CPU.
    """
    select_accelerator()


def set_device(device_id: int) -> None:
    """Choose the card that `set_mode_gpu` means; 0 is the default.

    Raises
    ------
    RuntimeFailure
        There is no accelerator, or the process ran on another card already: quantization runs on one device only.
    """
    select_card(device_id)


def init_log(*_ignored: object) -> None:
    """Do nothing: there is no glog here."""


def set_random_seed(seed: int) -> None:
    """Seed the random fillers of nets that are made without weights; nothing else draws numbers in phase TEST."""
    seed_fillers(seed)


def install() -> None:
    """Make `import caffe`, `caffe.io` and `caffe.proto.caffe_pb2` give ours, in this process."""
    sys.modules |= {
        "caffe": sys.modules[__name__],
        "caffe.io": io,
        "caffe.proto": proto,
        "caffe.proto.caffe_pb2": io.caffe_pb2,
    }
