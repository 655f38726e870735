"""Samples of a metric that is no mean over images, so that it has an error and two networks can be compared by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from autonuq.evaluate.samples import Score


def jackknifed(metric: float, derivatives: ArrayLike) -> Score:
    """Return a metric with one sample for each image.

    Parameters
    ----------
    metric : float
        T, with every image counted once.
    derivatives : array of float64, shape (images,)
        dT/dw_j, where w_j says how often image j is counted; at w = 1.

    Notes
    -----
    The sample of image j is T + n dT/dw_j. A metric does not change when all images are counted twice, so that it is
    homogeneous of degree 0 in w, and by Euler's theorem sum_j w_j dT/dw_j = 0: the mean of the samples is T exactly.
    Their standard error is T's, to first order; the same goes for the difference of two networks' metrics over the same
    images, whose derivatives are the differences of theirs.

    **Shapes**: a ratio A / B of sums over images, sum_j w_j a_j / sum_j w_j b_j, has dT/dw_j = (a_j - T b_j) / B.
    **Source**: the infinitesimal jackknife (Jaeckel 1972; Efron and Tibshirani, An Introduction to the Bootstrap,
    chapter 21).
    """
    slopes = np.asarray(derivatives, np.float64)
    samples = metric + len(slopes) * (slopes - slopes.mean())  # their mean is 0 but for rounding
    return Score(metric, samples=samples)
