"""AMCT's interface on autonuq: the names and files of `amct_caffe`, none of its algorithms here.

What AMCT's documents leave open, and what is done about it, stands in `unsaid`.
"""

from autonuq.amct.auto_nuq import AutoNuqEvaluatorBase, auto_nuq
from autonuq.amct.quant_config import create_quant_config

__all__ = ["AutoNuqEvaluatorBase", "auto_nuq", "create_quant_config"]
