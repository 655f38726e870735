"""What the calibration saw of a layer's inputs: their second moments, or, where that is less, the inputs themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN_LEFT = 0.3
"""What is left of the inputs' mean where a bias takes up the mean error, for a quantized network's inputs have another.
Nothing left is as good where much is to be won (efficientnet-lite0), and no better elsewhere."""

_WIDEST = 9216  # a 3 x 3 kernel's over 1,024 channels: 340 MB of float32
_SAMPLES, _FEWEST_SAMPLES = 20, 4096  # for each input, and at least
_SCARCE = 4  # with fewer samples than inputs over this, working on the samples is the faster way
_MOST_ROWS, _MOST_VALUES = 2048, 1 << 26
_ROUNDING = 1e-4  # of float32 sums, beside all that was summed


def second_moments(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums of x x'.

    Parameters
    ----------
    samples : ndarray of float32, shape (..., n, K)
        x in rows, contiguous.

    Returns
    -------
    ndarray of float32, shape (..., K, K)

    Notes
    -----
    NumPy sees that such a product is symmetric, and lets BLAS make half of it (`ssyrk`). On ARM with SME, and where
    vectors of SVE are longer than 128 bits and OpenBLAS does not know the processor, that is wrong in OpenBLAS up to
    0.3.34 at least, infinite or not: so it is compared with what it is the product of, and the whole is multiplied out
    where they differ.

    **Cost**: n * K**2 multiplications, or twice as many there; 4 n * K for the comparison.
    **Source**: OpenBLAS issue 5873; the comparison is Freivalds', *Probabilistic machines can use less running time*,
    1977, with one vector.
    """
    across = samples.swapaxes(-1, -2)
    with np.errstate(all="ignore"):  # an overflow is no error of ours: whoever takes the sums looks at them
        found = across @ samples
        return found if _is_product(found, samples) else across @ samples.copy()


def _is_product(sums: NDArray[np.float32], samples: NDArray[np.float32]) -> bool:
    probe = np.random.default_rng(0).standard_normal(samples.shape[-1], np.float32)
    expected = ((samples @ probe)[..., None, :] @ samples)[..., 0, :]
    scale = np.vdot(samples, samples) * np.linalg.norm(probe)
    return bool(np.linalg.norm(sums @ probe - expected) <= _ROUNDING * scale)


@dataclass(frozen=True)
class InputMoments:
    """Second moments of what the weights of an output multiply.

    Attributes
    ----------
    sums : ndarray of float, shape (K, K)
        Sum of x x'.
    samples : int
        Number of x.
    totals : ndarray of float, shape (K,)
        Sum of x.
    """

    sums: NDArray[Any]
    samples: int
    totals: NDArray[Any]

    @property
    def inputs(self) -> int:
        """K."""
        return len(self.sums)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of x, shape (K,)."""
        return np.asarray(self.totals, np.float64) / max(1, self.samples)

    @property
    def squares(self) -> NDArray[np.float64]:
        """Mean of each x**2, shape (K,)."""
        return np.diag(self.sums).astype(np.float64) / max(1, self.samples)

    def centred(self) -> InputMoments:
        """Return the moments of x without most of its mean; see `MEAN_LEFT`."""
        mean = self.mean.astype(np.float32)
        sums = self.sums - (np.float32((1 - MEAN_LEFT**2) * self.samples) * mean)[:, None] * mean
        return InputMoments(sums, self.samples, self.totals)


@dataclass(frozen=True)
class InputRows:
    """Samples of what the weights of an output multiply.

    Attributes
    ----------
    rows : ndarray of float32, shape (N, K)
    """

    rows: NDArray[np.float32]

    @property
    def samples(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def inputs(self) -> int:
        """K."""
        return int(self.rows.shape[1])

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of x, shape (K,)."""
        return np.asarray(self.rows.mean(axis=0, dtype=np.float64))

    @property
    def squares(self) -> NDArray[np.float64]:
        """Mean of each x**2, shape (K,)."""
        sums = sum(np.square(row, dtype=np.float64) for row in self.rows)
        return np.asarray(sums / max(1, self.samples), np.float64)

    def centred(self) -> InputRows:
        """Return the samples without most of their mean; see `MEAN_LEFT`."""
        return InputRows(self.rows - np.float32(1 - MEAN_LEFT) * self.mean.astype(np.float32))


Inputs = InputMoments | InputRows


@dataclass(frozen=True)
class Sampling:
    """How much is kept of what the calibration sees of a layer's inputs.

    Attributes
    ----------
    samples : int
        Samples of which second moments are made.
    scarce : int
        With so many samples or fewer, they are kept as they are.
    rows : int
        Samples that are kept then, at most.

    Notes
    -----
    Second moments take K**2 numbers, and an assignment K**2 / 2 multiplications a row of weights; N samples take N K,
    and 2 N K. Where both are too many, a part of the samples is kept. What that costs, in the output's squared error
    over that with all 128,000 samples (cifar10-quick's conv2, K = 800): 1.6 with K / 2 samples, 2.1 with K / 4, 2.8
    with K / 8, 3.9 with K / 16; plain rounding costs 17. Blocks of columns did as well (2.6 with K / 8).

    Second moments of 20 K samples give the same codes as those of ten times as many: on six layers of ResNet-20 and
    cifar10-quick the squared error was within 3 % (5 % with 10 K).
    """

    samples: int
    scarce: int
    rows: int

    def expected(self, seen: int) -> tuple[int, bool]:
        """Return how many of so many samples are used, and whether as they are."""
        used = min(seen, self.samples)
        return (min(used, self.rows), True) if used <= self.scarce else (used, False)


def sampling_of(inputs: int) -> Sampling:
    """Return how K inputs are sampled."""
    samples = max(_SAMPLES * inputs, _FEWEST_SAMPLES)
    scarce = inputs // _SCARCE if inputs <= _WIDEST else samples
    return Sampling(samples, scarce, min(_MOST_ROWS, max(1, _MOST_VALUES // inputs)))
