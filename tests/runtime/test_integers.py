"""Integers are the same on every processor and in every file of a network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from quantized_pair import quantized_candidate, with_random_weights

import autonuq as nuq
from autonuq.compress.outputs import write_deploy, write_fake_quant
from autonuq.errors import ModelError
from autonuq.graph.files import ModelPair, parse_graph
from autonuq.runtime import integers

NETWORK = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 4 dim: 8 dim: 12 dim: 12 } } }
layer { name: "one" type: "Convolution" bottom: "data" top: "one" convolution_param { num_output: 32 kernel_size: 3 } }
layer { name: "relu" type: "ReLU" bottom: "one" top: "one" }
layer { name: "two" type: "Convolution" bottom: "one" top: "two"
        convolution_param { num_output: 32 kernel_size: 3 pad: 1 } }
layer { name: "sum" type: "Eltwise" bottom: "one" bottom: "two" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
SCORE = """
import sys
import numpy as np
import autonuq as nuq
from autonuq.runtime.integers import has_exact_signed_products
model, weights, output = sys.argv[1:]
print(has_exact_signed_products())
net = nuq.Net(model, weights)
images = np.random.default_rng(0).standard_normal((4, 8, 12, 12), np.float32)
np.save(output, net.forward(data=images)["prob"])
"""


@pytest.fixture
def pairs(tmp_path):
    """Write a fake-quant and a deploy pair."""
    candidate = quantized_candidate(with_random_weights(parse_graph(NETWORK.encode(), Path("net.prototxt"))))
    fake, deploy = (
        ModelPair(tmp_path / f"{kind}.prototxt", tmp_path / f"{kind}.caffemodel") for kind in ("fake", "deploy")
    )
    write_fake_quant(candidate, fake)
    write_deploy(candidate, deploy)
    return fake, deploy


def images():
    return np.random.default_rng(0).standard_normal((4, 8, 12, 12), np.float32)


def test_a_deploy_pair_runs_as_the_fake_quant_pair(pairs, caplog):
    with caplog.at_level("INFO", "autonuq"):
        fake, deploy = (nuq.Net(pair.model, pair.weights) for pair in pairs)
    (told,) = caplog.messages
    assert "is a deploy pair" in told
    assert "at most half a unit" in told
    one, other = (net.forward(data=images())["prob"] for net in (fake, deploy))
    assert np.abs(one - other).max() < 5e-3
    for name in ("one", "two", "fc"):
        step = deploy.params[f"{name}_dequant_layer"][0].data
        weights, bias = ([net.params[name][index].data for net in (fake, deploy)] for index in (0, 1))
        np.testing.assert_allclose(*weights, rtol=1e-6)
        assert (np.abs(bias[0] - bias[1]) <= 0.5001 * step).all()
        np.testing.assert_allclose(bias[1] / step, np.rint(bias[1] / step), atol=1e-3)


def test_a_deploy_caffemodel_needs_its_own_prototxt(pairs, tmp_path):
    _, deploy = pairs
    (tmp_path / "plain.prototxt").write_text(NETWORK)
    with pytest.raises(ModelError, match=r"layer 'one'.*int8 weights.*take the prototxt that belongs"):
        nuq.Net(tmp_path / "plain.prototxt", deploy.weights)


def test_saving_a_deploy_net_leaves_one_that_runs(pairs, tmp_path):
    _, deploy = pairs
    net = nuq.Net(deploy.model, deploy.weights)
    net.save(tmp_path / "saved.caffemodel")
    again = nuq.Net(deploy.model, tmp_path / "saved.caffemodel")
    np.testing.assert_array_equal(net.forward(data=images())["prob"], again.forward(data=images())["prob"])


def test_written_parameters_count_in_integers(pairs):
    net = nuq.Net(pairs[0].model, pairs[0].weights)
    before = net.forward(data=images())["prob"].copy()
    net.params["one"][0].data[...] *= -1
    assert not np.array_equal(net.forward(data=images())["prob"], before)


def test_an_engine_that_saturates_gets_other_weights_and_the_same_results(pairs, monkeypatch):
    expected = nuq.Net(pairs[0].model, pairs[0].weights).forward(data=images())["prob"]
    monkeypatch.setattr(integers, "has_exact_signed_products", lambda: False)
    found = nuq.Net(pairs[0].model, pairs[0].weights).forward(data=images())["prob"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64 (Debian: qemu-user)")
def test_a_processor_without_vnni_gives_the_same_bits(pairs, tmp_path):
    """Haswell's products of uint8 and int8 saturate: the probe notices, and uint8 weights are exact."""
    found = []
    for command in ([], ["qemu-x86_64", "-cpu", "Haswell"]):
        output = tmp_path / f"{len(found)}.npy"
        run = [*command, sys.executable, "-c", SCORE, *map(str, (pairs[0].model, pairs[0].weights, output))]
        done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ})
        found.append((done.stdout.strip(), np.load(output)))
    assert found[1][0] == "False"
    np.testing.assert_array_equal(found[0][1], found[1][1])
