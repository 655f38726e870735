"""The search: evaluators, the space of plans, samplers, and studies that persist.

Read `study` first; `verdict` says how a yes-or-no predicate becomes something a sampler can learn from.
"""

from autonuq.quant.curve import Curve
from autonuq.search.evaluator import Evaluator
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.search.study import Study, load_study, resume, tune

__all__ = ["Curve", "Evaluator", "RateDistortionSampler", "Study", "load_study", "resume", "tune"]
