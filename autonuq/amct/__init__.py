"""AMCT's interface on autonuq: the names and files of `amct_caffe`, none of its algorithms here.

What AMCT's documents leave open, and what is done about it, stands in `unsaid`. `install` makes scripts that import
`caffe` and `amct_caffe` find this package; `python -m autonuq.amct script.py` runs one that way, and after
`python -m autonuq.amct --install` Python itself does. `amct_caffe calibration` is AMCT's command.
"""

from autonuq.amct.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    BinarySearchStrategy,
    CosineSimilaritySensitivity,
    accuracy_based_auto_calibration,
)
from autonuq.amct.auto_nuq import AutoNuqEvaluatorBase, auto_nuq
from autonuq.amct.imports import install
from autonuq.amct.modes import set_cpu_mode, set_gpu_mode
from autonuq.amct.out_of_scope import refuse_name as __getattr__  # noqa: F401
from autonuq.amct.quant_config import create_quant_config
from autonuq.amct.static import convert_model, init, quantize_model, quantize_static, save_model

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "AutoNuqEvaluatorBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "accuracy_based_auto_calibration",
    "auto_nuq",
    "convert_model",
    "create_quant_config",
    "init",
    "install",
    "quantize_model",
    "quantize_static",
    "save_model",
    "set_cpu_mode",
    "set_gpu_mode",
]
