"""The mathematics of the search and its Optuna face. It knows no file and no network.

`space` says what is searched. `allocation` finds the plans that are best if the loss is known, `loss_model` learns it
from trials, `proposal` decides by both what to try next, `trust` says what a measured loss is worth elsewhere,
`attribution` which layers cause it, and `rate_distortion` makes an Optuna sampler of that; `sampler` has it and
Optuna's own by name. `rollback` finds the layers that int8 is not good enough for.
"""

from autonuq.quant.curve import Curve
from autonuq.search.rate_distortion import RateDistortionSampler

__all__ = ["Curve", "RateDistortionSampler"]
