"""The module that a script gets for `import caffe` after `autonuq.pycaffe.install()`.

Names and constants are pycaffe's. What needs training or a patched build is not here.
"""

from __future__ import annotations

import sys

from autonuq.errors import RuntimeFailure
from autonuq.graph.hosted.python_layer import PythonLayer as Layer
from autonuq.graph.model import TEST, TRAIN
from autonuq.runtime.net import Net

__all__ = ["TEST", "TRAIN", "Layer", "Net", "install", "set_device", "set_mode_cpu", "set_mode_gpu"]

__version__ = "1.0.0"  # the pycaffe whose interface this is


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


def install() -> None:
    """Make `import caffe` give this module, in this process."""
    sys.modules["caffe"] = sys.modules[__name__]
