"""The mathematics of the search and its Optuna face: allocation, the model of the loss, proposals, the sampler."""

from autonuq.quant.curve import Curve
from autonuq.search.rate_distortion import RateDistortionSampler

__all__ = ["Curve", "RateDistortionSampler"]
