"""AMCT's device switches: where weights are quantized. Networks run, and are calibrated, wherever `caffe` runs."""

from autonuq.amct.log import warn_of
from autonuq.runtime.device import find_accelerator


def set_cpu_mode() -> None:
    """Quantize weights on the CPU, which is the default."""


def set_gpu_mode() -> None:
    """Ask for a GPU: it must be there, but weights stay on the CPU, with a warning; the numbers are the same.

    Raises
    ------
    RuntimeFailure
        The installed onnxruntime has none.
    """
    found = find_accelerator()
    warn_of([f"set_gpu_mode: weights are quantized on the CPU; {found} runs the networks after caffe.set_mode_gpu"])
