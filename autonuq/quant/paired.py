"""What a layer's weights meet in the original network and in the quantized one, and the weights that make up for it.

The quantized network gives a layer inputs x^ in place of x. What the layer should put out is W x, so its weights aim at

    T = W + alpha W D (H^ + damping)**-1,   H^ = E[x^ x^'],   D = E[(x - x^) x^'],

of which feedback on H^ makes codes, and a bias takes up the mean: W E[x] - Q E[x^]. With such a bias, both moments are
centred. In a space of N samples, D (H^ + damping)**-1 is (X - X^) (X^' X^ + N damping)**-1 X^'.

Source: after GPTAQ (Li et al. 2025, arXiv 2504.02692) and Qronos (Zhang et al. 2025, arXiv 2505.11695). alpha = 1/2:
what other layers could make up for, too, is not all to be made up for here. On three networks 0 and 1 are worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.quant.feedback import damping_of
from autonuq.quant.inputs import InputMoments, InputRows, Inputs, second_moments

_SHARE = 0.5  # alpha
_MULTIPLICATIONS = 1 << 35  # that the moments of a layer may take: one or two seconds
# Samples: at least, and for each input. On three networks 6 gave 0.93, 1.05 and 0.97 times the divergence that 12 gave
# at equal size, each to 0.03 to 0.06: no difference was seen.
_FEWEST, _EACH = 4096, 8


@dataclass(frozen=True)
class PairedInputs:
    """Samples of both networks' inputs at the same places.

    Attributes
    ----------
    inputs : Inputs
        The quantized network's, centred if a bias takes up the mean.
    weights : ndarray, shape (rows, K)
        That meet them.
    missing : ndarray of float, shape (rows, K) or (N, rows)
        Sums of W (x - x^) x^', or W (x - x^) of each sample.
    """

    inputs: Inputs
    weights: NDArray[np.floating]
    missing: NDArray[np.floating]

    @property
    def is_finite(self) -> bool:
        """Say whether both networks' inputs are."""
        return bool(np.isfinite(self.inputs.squares).all() and np.isfinite(self.missing).all())

    def aims(self) -> NDArray[np.floating]:
        """Return what the weights should become; what they are where the inputs never change."""
        damping = damping_of(self.inputs)
        if damping == 0:
            return self.weights
        if isinstance(self.inputs, InputRows):
            rows, count = self.inputs.rows.astype(np.float64), self.inputs.samples
            gram = rows @ rows.T + count * damping * np.eye(count)
            return np.asarray(self.weights + _SHARE * np.linalg.solve(gram, self.missing).T @ rows)
        moments = self.inputs.sums.copy()
        moments[np.diag_indices_from(moments)] += self.inputs.samples * damping
        # float32: damped moments are far from singular, and what is solved for is a small correction
        return np.asarray(self.weights + _SHARE * np.linalg.solve(moments, self.missing.T.astype(np.float32)).T)


def samples_of(inputs: int, seen: int) -> int:
    """Return how many of so many samples are enough for K inputs, and not too much work."""
    return min(seen, max(_FEWEST, _EACH * inputs), max(1, _MULTIPLICATIONS // inputs**2))


class InputPairing:
    """Collects samples, pass by pass.

    Parameters
    ----------
    weights : ndarray of float, shape (rows, K)
        That meet them.
    samples : int
        That will come.
    is_centred : bool
        A bias takes up the mean.

    Notes
    -----
    **Cost**: of N samples N K**2 / 2 multiplications for the moments, and N K**2 for what is missing or, where there
    are fewer rows than K / 2, 2 N K rows: each sample meets the weights at once.
    """

    def __init__(self, weights: NDArray[np.floating], samples: int, is_centred: bool) -> None:
        rows, inputs = weights.shape
        self._weights, self._is_centred, self._samples = weights, is_centred, 0
        self._as_rows = samples <= inputs
        self._at_once = self._as_rows or 2 * rows < inputs
        self._rows: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._total, self._total_missing = np.zeros(inputs), np.zeros(rows if self._at_once else inputs)
        self._origins = np.zeros((2, inputs), np.float32)  # first samples: inputs that never change become exactly 0
        if not self._as_rows:
            self._sums = np.zeros((inputs, inputs), np.float32)
            self._missing = np.zeros((len(self._total_missing), inputs), np.float32)

    def add(self, original: NDArray[np.float32], quantized: NDArray[np.float32]) -> None:
        """Take in samples, shape (n, K)."""
        if self._is_centred:
            if not self._samples:
                self._origins = np.stack([original[0], quantized[0]])
            original, quantized = original - self._origins[0], quantized - self._origins[1]
        missing = original - quantized
        if self._at_once:
            missing = missing @ self._weights.astype(np.float32, copy=False).T
        self._samples += len(quantized)
        ones = np.ones(len(quantized), np.float32)
        self._total += ones @ quantized
        self._total_missing += ones @ missing
        if self._as_rows:
            self._rows.append((missing, quantized))
            return
        self._sums += second_moments(quantized)
        self._missing += missing.T @ quantized

    def paired(self) -> PairedInputs:
        """Return what was collected."""
        moved, lacking = self._total / max(1, self._samples), self._total_missing / max(1, self._samples)
        if self._as_rows:
            missing, rows = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
            if self._is_centred:
                rows, missing = rows - moved.astype(np.float32), missing - lacking.astype(np.float32)
            return PairedInputs(InputRows(rows), self._weights, missing)
        if self._is_centred:
            self._sums -= (self._samples * moved[:, None] * moved).astype(np.float32)
            self._missing -= (self._samples * lacking[:, None] * moved).astype(np.float32)
        moments = InputMoments(self._sums, self._samples, self._samples * (self._origins[1] + moved))
        missing = self._missing if self._at_once else self._weights @ self._missing.astype(np.float64)
        return PairedInputs(moments, self._weights, missing)
