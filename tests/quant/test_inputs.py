"""Second moments are right whatever BLAS makes of a matrix times itself."""

import numpy as np
import pytest

from autonuq.quant.inputs import second_moments


class Misread(np.ndarray):
    """An array whose product with itself is as wrong as where OpenBLAS misses half of it."""

    wrong = 0.0

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        plain = [np.asarray(one) for one in inputs]
        found = getattr(ufunc, method)(*plain, **settings)
        if ufunc is np.matmul and np.shares_memory(*plain):
            found[..., 0, 1] = self.wrong
        return found


@pytest.fixture(params=[(300, 9), (1, 200, 40), (3, 50, 8)], ids=str)
def samples(request):
    return np.random.default_rng(0).random(request.param, np.float32)


def product(samples):
    exact = samples.astype(np.float64)
    return np.einsum("...ni,...nj->...ij", exact, exact)


def test_they_are_the_sums_of_products(samples):
    assert second_moments(samples) == pytest.approx(product(samples), rel=1e-5)


@pytest.mark.parametrize("wrong", [0.0, 1e3, np.inf, np.nan])
def test_what_blas_gets_wrong_is_multiplied_out(samples, wrong, monkeypatch):
    monkeypatch.setattr(Misread, "wrong", wrong)
    misread = samples.view(Misread)
    assert not np.allclose(np.asarray(misread.swapaxes(-1, -2) @ misread), product(samples))
    assert np.asarray(second_moments(misread)) == pytest.approx(product(samples), rel=1e-5)


def test_what_is_not_finite_stays_so():
    assert not np.isfinite(second_moments(np.full((3, 2), np.inf, np.float32))).any()
