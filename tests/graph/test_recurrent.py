"""RNN and LSTM against their recurrences, step by step."""

import numpy as np
import pytest


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, cont, weights, static, h, c):
    w_x, b, *w_static, w_h = weights
    outputs = []
    for step, mark in zip(x, cont, strict=True):
        mark = mark[:, None]
        gates = step @ w_x.T + b + (h * mark) @ w_h.T + (static @ w_static[0].T if w_static else 0)
        i, f, o, g = np.split(gates, 4, axis=1)
        c = mark * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.array(outputs), h[None], c[None]


def rnn(x, cont, weights, static, h, c):
    w_x, b, *w_static, w_h, w_o, b_o = weights
    outputs = []
    for step, mark in zip(x, cont, strict=True):
        drive = step @ w_x.T + b + (static @ w_static[0].T if w_static else 0)
        h = np.tanh((h * mark[:, None]) @ w_h.T + drive)
        outputs.append(np.tanh(h @ w_o.T + b_o))
    return np.array(outputs), h[None]


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
@pytest.mark.parametrize("exposed", [False, True], ids=["", "exposed"])
@pytest.mark.parametrize(("steps", "item"), [(1, (5,)), (6, (2, 3))], ids=str)
def test_recurrence(run, rng, kind, static, exposed, steps, item):
    streams, outputs = 3, 4
    gates = outputs * (4 if kind == "LSTM" else 1)
    values = int(np.prod(item))
    feeds = {"x": rng.normal(size=(steps, streams, *item)), "cont": rng.integers(0, 2, size=(steps, streams))}
    feeds["cont"][0] = 1  # starts from the first states
    shapes = [(gates, values), (gates,), *([(gates, 2)] if static else []), (gates, outputs)]
    if kind == "RNN":
        shapes += [(outputs, outputs), (outputs,)]
    weights = [rng.normal(size=shape) for shape in shapes]
    states = [np.zeros((streams, outputs))] * 2
    if static:
        feeds["st"] = rng.normal(size=(streams, 2))
    if exposed:
        states = [rng.normal(size=(streams, outputs)) for _ in range(2)]
        names = ["h0", "c0"] if kind == "LSTM" else ["h0"]
        feeds |= {name: state[None] for name, state in zip(names, states, strict=False)}
    bottoms = " ".join(f'bottom: "{name}"' for name in feeds)
    tops = ["y", "h", "c"][: 1 + (len(feeds) - 2 - static)]
    named = " ".join(f'top: "{name}"' for name in tops)
    layer = (
        f'layer {{ name: "r" type: "{kind}" {bottoms} {named} '
        f"recurrent_param {{ num_output: {outputs} expose_hidden: {str(exposed).lower()} }} }}"
    )
    found = run(layer, feeds, {"r": weights})
    reference = lstm if kind == "LSTM" else rnn
    wanted = reference(feeds["x"].reshape(steps, streams, values), feeds["cont"], weights, feeds.get("st"), *states)
    for name, values in zip(tops, wanted, strict=False):
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_two_recurrent_layers_do_not_mix_their_names(run, rng):
    weights = [rng.normal(size=shape) for shape in ((8, 3), (8,), (8, 2))]
    second = [rng.normal(size=shape) for shape in ((4, 2), (4,), (4, 1))]
    text = """
    layer { name: "a" type: "LSTM" bottom: "x" bottom: "cont" top: "a" recurrent_param { num_output: 2 } }
    layer { name: "b" type: "LSTM" bottom: "a" bottom: "cont" top: "b" recurrent_param { num_output: 1 } }
    """
    feeds = {"x": rng.normal(size=(4, 2, 3)), "cont": np.ones((4, 2))}
    found = run(text, feeds, {"a": weights, "b": second})
    first = lstm(feeds["x"], feeds["cont"], weights, None, np.zeros((2, 2)), np.zeros((2, 2)))[0]
    np.testing.assert_allclose(found["a"], first, rtol=1e-4, atol=1e-5)
    last = lstm(first, feeds["cont"], second, None, np.zeros((2, 1)), np.zeros((2, 1)))[0]
    np.testing.assert_allclose(found["b"], last, rtol=1e-4, atol=1e-5)


def test_lstm_unit_is_one_step(run, rng):
    c, gates, cont = rng.normal(size=(1, 3, 2)), rng.normal(size=(1, 3, 8)), np.array([[1, 0, 1]])
    layer = 'layer { name: "u" type: "LSTMUnit" bottom: "c" bottom: "g" bottom: "cont" top: "c1" top: "h1" }'
    found = run(layer, {"c": c, "g": gates, "cont": cont})
    i, f, o, g = np.split(gates, 4, axis=2)
    wanted = cont[..., None] * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    np.testing.assert_allclose(found["c1"], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["h1"], sigmoid(o) * np.tanh(wanted), rtol=1e-5, atol=1e-6)
