"""A metric that knows what its samples scored, so that a loss has the error of the same samples compared."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autonuq.errors import EvaluatorError
from autonuq.plain import from_plain

_SAME = 1e-5  # relative; samples may be float32


class Score(float):
    """A number that carries what the samples scored; `eval_model` may return one wherever it returns a number.

    Parameters
    ----------
    value : float
        The metric: the mean of the samples.
    samples : array of bool or float, shape (n,)
        What each sample scored, in the metric's unit and always in the same order: whether it was labelled right, its
        loss, its F1.

    Attributes
    ----------
    samples : ndarray of float64 or bool, shape (n,)
        Read-only.

    Raises
    ------
    ValueError
        The samples are no row of finite numbers, or their mean is not the value.

    Examples
    --------
    >>> original, new = Score(0.75, samples=[True, True, True, False]), Score(0.5, samples=[True, True, False, False])
    >>> float(original - new), paired_error(original, new)
    (0.25, 0.25)
    """

    samples: NDArray[Any]

    def __new__(cls, value: float, *, samples: ArrayLike) -> Score:
        """Make a score; see the class."""
        score, own = super().__new__(cls, value), np.array(samples)
        if own.ndim != 1 or not own.size or own.dtype.kind not in "biuf" or not np.isfinite(own).all():
            got = f"shape {own.shape}, {own.dtype}"
            raise ValueError(f"The 'samples' parameter of Score must be a row of finite numbers. Got {got} instead.")
        own = own if own.dtype == bool else own.astype(np.float64)
        if not math.isclose(own.mean(), score, rel_tol=_SAME, abs_tol=_SAME * float(np.abs(own).max())):
            rule = "the mean of its samples, which are in the metric's unit"
            raise ValueError(f"A Score must be {rule}. Got {float(score):g} and a mean of {own.mean():g} instead.")
        own.flags.writeable = False
        score.samples = own
        return score

    def __getnewargs_ex__(self) -> Any:
        """Say how it is made again where it is unpickled."""
        return (float(self),), {"samples": self.samples}


def paired_error(original: float, new: float) -> float | None:
    """Return the standard error of the loss from the original network to another one, by the same samples.

    Parameters
    ----------
    original, new : float or Score
        In the metric's unit.

    Returns
    -------
    float or None
        None unless both know at least two samples.

    Raises
    ------
    EvaluatorError
        They know different numbers of samples.

    Notes
    -----
    **Source**: the standard error of the mean of n paired differences d, sqrt(sum (d - mean d)^2 / (n - 1) / n). Most
    samples score alike in both networks, so that it is far below the error of either metric.
    """
    if not isinstance(original, Score) or not isinstance(new, Score):
        return None
    before, after = original.samples, new.samples
    if len(before) != len(after):
        raise EvaluatorError(
            f"eval_model returned a Score of {len(after)} samples; of the original network there are {len(before)}. "
            "A pass must score the same samples in the same order each time"
        )
    if len(before) < 2:
        return None
    differences = before.astype(np.float64) - after
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))


@dataclass(frozen=True)
class StoredSamples:
    """What samples scored, in JSON.

    Attributes
    ----------
    count : int
    is_bool : bool
        One bit each; otherwise a float32.
    data : str
        That, compressed, in base 64.
    """

    count: int
    is_bool: bool
    data: str


def samples_as_data(samples: NDArray[Any]) -> dict[str, Any]:
    """Return the fields of `StoredSamples`."""
    is_bool = samples.dtype == bool
    raw = np.packbits(samples) if is_bool else samples.astype("<f4")
    data = base64.b64encode(zlib.compress(raw.tobytes())).decode("ascii")
    return asdict(StoredSamples(len(samples), is_bool, data))


def samples_from_data(entry: Mapping[str, Any]) -> NDArray[Any]:
    """Read what `samples_as_data` wrote.

    Raises
    ------
    ValueError
        It is damaged.
    """
    stored: StoredSamples = from_plain(StoredSamples, entry)
    size = -(-stored.count // 8) if stored.is_bool else 4 * stored.count
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(stored.data, validate=True), max(1, size + 1))
    except (zlib.error, OverflowError) as error:
        raise ValueError(f"the samples cannot be unpacked: {error}") from error
    if len(raw) != size:
        raise ValueError(f"there are not {stored.count} samples")
    if stored.is_bool:
        return np.unpackbits(np.frombuffer(raw, np.uint8), count=stored.count).astype(bool)
    return np.frombuffer(raw, "<f4", stored.count).astype(np.float64)
