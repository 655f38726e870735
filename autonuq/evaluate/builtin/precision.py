"""Average precision, and what each picture contributes to it.

A precision is no mean over pictures, so that its pictures have no scores of their own. The infinitesimal jackknife
gives them some: with a weight w_j for each of n pictures the precision is a function T(w) that a common factor does not
change, and the picture's score is T + n dT/dw_j at w = 1. By Euler's theorem the derivatives add up to 0, so that the
mean of the scores is exactly T; their spread is that of T, and the differences between two networks' scores, picture by
picture, have the spread of the difference of their precisions.

**Source**: Jaeckel, The infinitesimal jackknife, 1972; Efron, The Jackknife, the Bootstrap and Other Resampling Plans,
1982, chapter 6. The derivative is an own derivation; see `rank_precision`.

Notation: K detections of a class, n pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.graph.model import Array

_RECALLS = np.linspace(0, 1, 101)  # COCO's


@dataclass(frozen=True)
class Precision:
    """Average precision of a class.

    Attributes
    ----------
    area : float
        Under the curve of the highest precision at this recall or a higher one, as PASCAL VOC counts since 2010.
    at_recalls : float
        Mean over the recalls 0, 0.01, ... 1 of that, as COCO counts.
    influence : ndarray of float64, shape (n,)
        n times the derivative of `area` by each picture's weight; its mean is 0.
    """

    area: float
    at_recalls: float
    influence: NDArray[np.float64]


def rank_precision(
    scores: Array, right: NDArray[np.bool_], images: NDArray[np.int64], objects: NDArray[np.int64]
) -> Precision:
    """Compute the average precision of a class.

    Parameters
    ----------
    scores : ndarray of float, shape (K,)
    right : ndarray of bool, shape (K,)
        Whether a detection is an object.
    images : ndarray of int64, shape (K,)
        Picture of each detection.
    objects : ndarray of int64, shape (n,)
        How many are to be found in each picture; at least one in all.

    Returns
    -------
    Precision

    Notes
    -----
    Detections of one score come together: precision is taken behind the last of them (COCO, for `at_recalls`: behind
    each). In order of falling score, with t_k = 1 for a right detection and weights w:

        V_l = sum_{k<=l} w_k,  P_l = sum_{k<=l} w_k t_k / V_l,  N = sum_j w_j objects_j,  m(k) = argmax_{l>=k} P_l,
        T = A / N,  A = sum_k w_k t_k P_m(k)

    A picture's weight acts on A through its own detections and through the precisions,
    dP_l/dw_j = sum_{i<=l, i in j} (t_i - P_l) / V_l. With U_l = sum of t_k over the k with m(k) = l,

        dA/dw_j = sum_{i in j} (t_i P_m(i) + t_i sum_{l>=i} U_l / V_l - sum_{l>=i} U_l P_l / V_l)
        n dT/dw_j = n (dA/dw_j - T objects_j) / N

    Where two precisions tie for the highest one, T has a kink, and the derivative is that of the later one.
    **Cost**: a sort and a few running sums, O(K log K + n).
    """
    order = np.argsort(-scores, kind="stable")
    truth, places, scores = right[order].astype(np.float64), images[order], scores[order]
    count, total = np.arange(1, len(truth) + 1), float(objects.sum())
    hits = np.cumsum(truth)
    precision = hits / count
    last = np.append(scores[1:] != scores[:-1], True)[: len(truth)]
    best = _later_best(np.where(last, precision, -1.0))
    area = float(truth @ precision[best]) / total
    uses = np.bincount(best, truth, len(truth)) / count
    gained = truth * (precision[best] + _sums_behind(uses)) - _sums_behind(uses * precision)
    derivative = np.bincount(places, gained, len(objects)) - area * objects
    return Precision(area, _at_recalls(hits / total, precision), len(objects) / total * derivative)


def _later_best(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each place that of the largest value from there on, the last one of equals."""
    backwards = values[::-1]
    highest = np.maximum.accumulate(backwards)
    is_new = np.append(True, highest[1:] > highest[:-1])[: len(values)]
    latest = np.maximum.accumulate(np.where(is_new, np.arange(len(values)), 0))
    return np.asarray(len(values) - 1 - latest[::-1], np.int64)


def _sums_behind(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of each value and all behind it."""
    return np.asarray(np.cumsum(values[::-1])[::-1])


def _at_recalls(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Average the highest precision from each recall on; 0 where that recall is not reached.

    **Source**: `COCOeval.accumulate` of pycocotools.
    """
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(highest[np.searchsorted(recall, _RECALLS, side="left")].mean())


@dataclass(frozen=True)
class MeanPrecision:
    """Mean of some average precisions.

    Attributes
    ----------
    value : float
    samples : ndarray of float64, shape (n,)
        What each picture contributes; their mean is the value.
    """

    value: float
    samples: NDArray[np.float64]


def mean_precision(precisions: Iterable[Precision], *, at_recalls: bool = False) -> MeanPrecision:
    """Average over classes, and over overlaps.

    Parameters
    ----------
    precisions : iterable of Precision
        At least one, all of the same pictures.
    at_recalls : bool
        The value is COCO's mean over recalls. That is a step function of the weights, whose derivative misses what a
        lost object does; the samples have the influence of the area instead, of which it is an approximation.
    """
    every: Sequence[Precision] = list(precisions)
    value = float(np.mean([own.at_recalls if at_recalls else own.area for own in every]))
    return MeanPrecision(value, value + np.mean([own.influence for own in every], axis=0))
