"""Scores and losses of test nets against loops over the labels."""

import numpy as np
import pytest


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def layer(kind, bottoms, tops, parameters=""):
    names = " ".join(f'bottom: "{name}"' for name in bottoms) + " " + " ".join(f'top: "{name}"' for name in tops)
    return f'layer {{ name: "l" type: "{kind}" {names} {parameters} }}'


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((3, 4, 2, 2), 1), ((3, 2, 4), -1)], ids=str)
def test_accuracy(run, rng, shape, axis, top_k, ignored):
    x = rng.integers(0, 5, size=shape)  # equal scores count against the label
    moved = np.moveaxis(x, axis, -1)
    labels = rng.integers(0, 4, size=moved.shape[:-1])
    text = f"axis: {axis} top_k: {top_k}" + (f" ignore_label: {ignored}" if ignored is not None else "")
    found = run(layer("Accuracy", "xt", ["a", "each"], f"accuracy_param {{ {text} }}"), {"x": x, "t": labels})
    right, members, count = np.zeros(4), np.zeros(4), 0
    for scores, label in zip(moved.reshape(-1, 4), labels.ravel(), strict=True):
        if label != ignored:
            count += 1
            members[label] += 1
            right[label] += (scores >= scores[label]).sum() - 1 < top_k
    np.testing.assert_allclose(found["a"], right.sum() / count, rtol=1e-6)
    np.testing.assert_allclose(found["each"], right / np.maximum(members, 1), rtol=1e-6)


def test_accuracy_of_nothing_is_zero(run, rng):
    text = layer("Accuracy", "xt", "a", "accuracy_param { ignore_label: 1 }")
    assert run(text, {"x": rng.normal(size=(3, 4)), "t": np.ones(3)})["a"] == 0


def normalizer(mode, outer, inner, valid):
    return max(1, {"FULL": outer * inner, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[mode])


MODES = {
    "normalization: FULL": "FULL",
    "normalization: BATCH_SIZE": "BATCH_SIZE",
    "normalization: NONE": "NONE",
    "normalize: false": "BATCH_SIZE",
    "normalize: true": "VALID",
    "normalize: false normalization: VALID": "VALID",
}


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "InfogainLoss"])
@pytest.mark.parametrize("ignored", [None, 0])
@pytest.mark.parametrize("mode", ["", *MODES])
def test_softmax_losses(run, rng, kind, ignored, mode):
    x, labels = rng.normal(size=(3, 4, 2, 2)) * 3, rng.integers(0, 4, size=(3, 2, 2))
    gain = rng.normal(size=(4, 4)) if kind == "InfogainLoss" else np.eye(4)
    text = f"loss_param {{ {mode}" + (f" ignore_label: {ignored} }}" if ignored is not None else " }")
    feeds = {"x": x, "t": labels} | ({"g": gain} if kind == "InfogainLoss" else {})
    found = run(layer(kind, feeds, "lp", text), feeds)
    probabilities = softmax(x, 1)
    rows, flat = np.moveaxis(probabilities, 1, -1).reshape(-1, 4), labels.ravel()
    kept = [index for index, label in enumerate(flat) if label != ignored]
    loss = -sum(float(gain[flat[index]] @ np.log(rows[index])) for index in kept)
    wanted = loss / normalizer(MODES.get(mode, "VALID"), 3, 4, len(kept))
    np.testing.assert_allclose(found["l"], wanted, rtol=1e-4)
    np.testing.assert_allclose(found["p"], probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("mode", ["", *MODES])
def test_sigmoid_cross_entropy(run, rng, ignored, mode):
    x, targets = rng.normal(size=(3, 5)) * 4, rng.integers(0, 2, size=(3, 5))
    text = f"loss_param {{ {mode}" + (f" ignore_label: {ignored} }}" if ignored is not None else " }")
    probabilities = 1 / (1 + np.exp(-x))
    losses = -np.log(np.where(targets == 1, probabilities, 1 - probabilities))
    kept = targets != ignored if ignored is not None else np.ones_like(targets, bool)
    wanted = losses[kept].sum() / normalizer(MODES.get(mode, "BATCH_SIZE"), 3, 5, kept.sum())
    found = run(layer("SigmoidCrossEntropyLoss", "xt", "l", text), {"x": x, "t": targets})
    np.testing.assert_allclose(found["l"], wanted, rtol=1e-4)


def test_euclidean_loss(run, rng):
    x, t = rng.normal(size=(4, 3, 2)), rng.normal(size=(4, 3, 2))
    found = run(layer("EuclideanLoss", "xt", "l"), {"x": x, "t": t})
    np.testing.assert_allclose(found["l"], ((x - t) ** 2).sum() / 8, rtol=1e-5)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss(run, rng, norm):
    x, labels = rng.normal(size=(5, 4)), rng.integers(0, 4, size=5)
    signs = np.where(np.arange(4) == labels[:, None], -1, 1)
    margins = np.maximum(0, 1 + signs * x)
    wanted = (margins if norm == "L1" else margins**2).sum() / 5
    found = run(layer("HingeLoss", "xt", "l", f"hinge_loss_param {{ norm: {norm} }}"), {"x": x, "t": labels})
    np.testing.assert_allclose(found["l"], wanted, rtol=1e-5)


def test_multinomial_logistic_loss_bounds_its_logarithm(run, rng):
    x, labels = softmax(rng.normal(size=(3, 4)), 1), np.array([1, 3, 0])
    x[2, 0] = 0
    found = run(layer("MultinomialLogisticLoss", "xt", "l"), {"x": x, "t": labels})
    wanted = -(np.log(x[0, 1]) + np.log(x[1, 3]) + np.log(1e-20)) / 3
    np.testing.assert_allclose(found["l"], wanted, rtol=1e-5)


@pytest.mark.parametrize("legacy", [True, False])
def test_contrastive_loss(run, rng, legacy):
    a, b, together = rng.normal(size=(6, 3)), rng.normal(size=(6, 3)), np.array([1, 0, 0, 1, 0, 1])
    text = f"contrastive_loss_param {{ margin: 2.5 legacy_version: {str(legacy).lower()} }}"
    squares = ((a - b) ** 2).sum(axis=1)
    apart = np.maximum(2.5 - squares, 0) if legacy else np.maximum(2.5 - np.sqrt(squares), 0) ** 2
    found = run(layer("ContrastiveLoss", "abt", "l", text), {"a": a, "b": b, "t": together})
    np.testing.assert_allclose(found["l"], np.where(together, squares, apart).sum() / 12, rtol=1e-5)


def test_a_loss_may_have_no_top(run, rng):
    text = layer("EuclideanLoss", "xt", "") + '\nlayer { name: "r" type: "ReLU" bottom: "x" top: "y" }'
    assert set(run(text, {"x": rng.normal(size=(2, 3)), "t": rng.normal(size=(2, 3))})) == {"y"}
