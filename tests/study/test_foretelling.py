"""What plans do to a network's results is measured before the first trial, and corrects the layers' curves."""

import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress import ways
from autonuq.compress.candidate import Candidate
from autonuq.quant import cores
from autonuq.quant.curve import Curve
from autonuq.quant.points import OperatingPoints
from autonuq.records import Rounding
from autonuq.study import foretelling
from autonuq.study.foretelling import corrected
from autonuq.study.stored import CORRECTED_CURVE_ERROR, curve_error


@pytest.fixture
def tuned(tiny, monkeypatch):
    """Study the tiny network as if it were not small; return the study and what it told."""
    monkeypatch.setattr(foretelling, "_FEW", 0)
    monkeypatch.syspath_prepend(str(tiny))
    from evaluate import Agreement

    def tune(name, **options):
        told = tune.told = []
        paths = tiny / "tiny.prototxt", tiny / "tiny.caffemodel"
        study = nuq.tune(*paths, Agreement(), out=tiny / name, n_trials=2, on_progress=told.append, **options)
        return study, [step.message for step in told if step.stage == "foretelling"]

    return tune


def test_the_curves_of_a_study_are_corrected(tuned):
    study, told = tuned("corrected")
    rounding = study.record().rounding
    searched = [layer for layer in study.record().layers if len(layer.rates_bytes) > 1]
    assert rounding.factors.keys() == {layer.name for layer in searched}
    assert all(factor > 0 for factor in rounding.factors.values())
    assert len(told) == 2 and "images" in told[0] and "corrected" in told[1]
    assert curve_error(rounding) == CORRECTED_CURVE_ERROR < curve_error(Rounding())
    again, _ = tuned("again")
    assert again.record().rounding.factors == rounding.factors


def arrays_of(index):
    """Return the arrays of an archive as bytes, by name."""
    with np.load(index) as arrays:
        return {name: arrays[name].tobytes() for name in arrays.files if name != "key"}


def test_a_study_is_prepared_the_same_on_any_number_of_cores(tuned, tiny, monkeypatch):
    monkeypatch.setattr(ways, "_FEW", 0)
    found = []
    for count in (1, 3):
        monkeypatch.setattr(cores, "available_cores", lambda count=count: count)
        study, told = tuned(f"of_{count}")
        assert told
        points = sorted((tiny / f"of_{count}" / "calibration" / "points").glob("*.np[yz]"))
        steps = [(step.stage, step.message, step.done, step.total) for step in tuned.told if step.stage != "trial"]
        codes = {path.name: path.read_bytes() for path in points if path.suffix == ".npy"}
        found.append((codes, arrays_of(points[-1]), study.record().rounding, steps))
    assert found[0] == found[1]
    curves = [(done, total) for stage, _, done, total in steps if stage == "curves"]
    assert curves == [(1, 2), (2, 2)]


def test_factors_scale_distortions():
    curve = Curve("conv", np.array([9, 3]), np.array([0.0, 0.5]))
    candidate = Candidate(None, {"conv": OperatingPoints(curve, np.zeros((2, 1), np.int8))})
    found = corrected(candidate, Rounding(factors={"conv": 3.0}))
    assert found.points["conv"].curve.distortions.tolist() == [0.0, 1.5]
    assert corrected(candidate, Rounding()).points["conv"].curve.distortions.tolist() == [0.0, 0.5]


def test_small_networks_and_those_that_are_not_built_in_order_do_without(tuned, monkeypatch):
    study, told = tuned("another", python_layers=True)
    assert not told and not study.record().rounding.factors
    monkeypatch.setattr(foretelling, "_FEW", 1 << 13)
    study, told = tuned("small")
    assert not told and not study.record().rounding.factors
