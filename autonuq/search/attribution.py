"""Which layer causes how much of a plan's loss, by the model of the loss.

With the notation of `loss_model`, a plan's loss is exp(a) (S / reference)^exp(beta), a function of the sum

    S = sum_l exp(u_l) distortion_l + exp(u_0) floor,

so layer l is charged with its part of that sum, exp(u_l) distortion_l / S, and the floor with the rest: what
activations in int8 and layers that are not searched cost under any plan. The parts add up to the loss. What is not
known of the factors makes a part uncertain: the derivative of its logarithm by u_k is 1 where k = l, less the part
of k.

Source: parts of the sum are the Aumann-Shapley charges of a cost that depends on a weighted sum only (Aumann & Shapley,
Values of Non-Atomic Games, 1974, chapter 6); the deviations are own derivation, to the first order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autonuq.search.loss_model import Belief, Floats

LEAST = 1e-300


@dataclass(frozen=True)
class Attribution:
    """The parts of one plan's loss; L layers, and last what no plan changes.

    Attributes
    ----------
    layers : tuple of str, length L
    shares : ndarray of float64, shape (L + 1,)
        They sum to 1.
    deviations : ndarray of float64, shape (L + 1,)
        Standard deviations of the logarithms of the shares.
    """

    layers: tuple[str, ...]
    shares: Floats
    deviations: Floats


def attribute_loss(belief: Belief, distortions: Floats, layers: tuple[str, ...]) -> Attribution:
    """Divide a plan's loss among its layers.

    Parameters
    ----------
    belief : Belief
    distortions : ndarray of float64, shape (L,)
        Of the plan, in units of the reference.
    layers : tuple of str, length L
    """
    count = len(layers)
    parts = np.append(distortions, belief.model.floor) * np.exp(belief.posterior.mean[: count + 1])
    shares = parts / max(float(parts.sum()), LEAST)
    slopes = np.eye(count + 1) - shares
    covariance = belief.posterior.covariance[: count + 1, : count + 1]
    variances = ((slopes @ covariance) * slopes).sum(axis=1)
    return Attribution(layers, shares, np.sqrt(np.maximum(variances, 0.0)))
