"""The module that a script gets for `import caffe` after `autonuq.pycaffe.install()`.

Names and constants are pycaffe's. Left out: `draw` (it needs pydot and Graphviz), NCCL and parallel solvers, HDF5
(`save_hdf5`, `load_hdf5`: it needs h5py), callbacks before and after every layer (`before_forward` and its like: the
engine executes many layers at once). What trains is there and says that it does not.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType

from autonuq.graph.hosted.python_layer import PythonLayer as Layer
from autonuq.graph.layers import LAYER_TYPES
from autonuq.graph.model import TEST, TRAIN
from autonuq.pycaffe import classifier, detector, io, net_spec
from autonuq.pycaffe import coordinates as coord_map
from autonuq.pycaffe.classifier import Classifier
from autonuq.pycaffe.detector import Detector
from autonuq.pycaffe.net_spec import NetSpec, layers, params, to_proto
from autonuq.runtime.device import select_accelerator, select_card, select_cpu
from autonuq.runtime.net import Net, refuse_to_train
from autonuq.runtime.seed import seed_fillers

__all__ = [
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "TEST",
    "TRAIN",
    "Timer",
    "get_solver",
    "has_nccl",
    "init_log",
    "install",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "params",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
    "to_proto",
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


get_solver = SGDSolver = NesterovSolver = AdaGradSolver = RMSPropSolver = AdaDeltaSolver = AdamSolver = refuse_to_train


def layer_type_list() -> list[str]:
    """Return the names of all layer types that can be executed."""
    return sorted(LAYER_TYPES)


class Timer:
    """Measures wall-clock time between `start` and `stop`."""

    def __init__(self) -> None:
        self._began = self._passed = 0.0

    def start(self) -> None:
        """Begin."""
        self._began = time.perf_counter()

    def stop(self) -> None:
        """End."""
        self._passed = time.perf_counter() - self._began

    @property
    def ms(self) -> float:
        """Milliseconds between the two."""
        return self._passed * 1000


def init_log(*_ignored: object) -> None:
    """Do nothing: there is no glog here."""


def log(message: str) -> None:
    """Do nothing: there is no glog here."""


def has_nccl() -> bool:
    """Say that networks are not trained on several cards."""
    return False


def solver_count() -> int:
    """Return 1: a process is alone."""
    return 1


def solver_rank() -> int:
    """Return 0: a process is alone."""
    return 0


def set_solver_count(count: int) -> None:
    """Do nothing: it says how many processes train."""


def set_solver_rank(rank: int) -> None:
    """Do nothing: it says which of the processes that train this is."""


def set_multiprocess(multiprocess: bool) -> None:
    """Do nothing: it says that several processes train."""


def set_random_seed(seed: int) -> None:
    """Seed the random fillers of nets that are made without weights; nothing else draws numbers in phase TEST."""
    seed_fillers(seed)


def install() -> None:
    """Make `import caffe`, its submodules and `caffe.proto.caffe_pb2` give ours, in this process."""
    sys.modules |= {
        "caffe": sys.modules[__name__],
        "caffe.classifier": classifier,
        "caffe.coord_map": coord_map,
        "caffe.detector": detector,
        "caffe.io": io,
        "caffe.net_spec": net_spec,
        "caffe.pycaffe": sys.modules[__name__],
        "caffe.proto": proto,
        "caffe.proto.caffe_pb2": io.caffe_pb2,
    }
