"""AMCT's device switches: where weights are quantized. Activations are calibrated wherever `caffe` runs."""

from autonuq import pycaffe


def set_cpu_mode() -> None:
    """Quantize weights on the CPU, which is the default."""


def set_gpu_mode() -> None:
    """Ask for a GPU.

    Raises
    ------
    RuntimeFailure
        The installed onnxruntime has none; a silent fall-back to the CPU would be worse.
    """
    pycaffe.set_mode_gpu()
