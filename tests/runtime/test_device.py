"""One accelerator where onnxruntime has one, and never the CPU in its place without a word."""

import pickle

import numpy as np
import onnxruntime
import pytest

import autonuq as nuq
from autonuq import pycaffe
from autonuq.runtime import device

CPU = "CPUExecutionProvider"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(device, "_selected", device.Device())
    monkeypatch.setattr(device, "_card", 0)
    monkeypatch.setattr(device, "_ran_on", None)


@pytest.fixture
def build(monkeypatch):
    """Pretend that another build of onnxruntime is installed; return what its sessions were asked for."""
    real, asked = onnxruntime.InferenceSession, []

    def pretend(provider, *, loads=True):
        class Session:
            def __init__(self, model, options=None, providers=(), **settings):
                asked.append(list(providers))
                self._real = real(model, options, providers=[CPU], **settings)
                self.run = self._real.run

            def get_providers(self):
                return [provider, CPU] if loads and asked[-1] != [CPU] else [CPU]

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return asked

    return pretend


def asked_of(provider, card):
    """Return the settings: on NVIDIA's cards, float32 and convolutions whose algorithms no clock chooses."""
    settings = {"use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"} if provider.startswith("CUDA") else {}
    return {"device_id": card, **settings}


def scored(tiny):
    net = nuq.Net(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    return net, net.forward(data=np.ones((4, 2, 8, 8), np.float32))["prob"].copy()


@pytest.mark.parametrize("provider", sorted(device.PACKAGES))
def test_sessions_get_the_provider_and_the_card(tiny, build, provider):
    net, on_cpu = scored(tiny)
    asked = build(provider)
    pycaffe.set_device(2)
    net.forward()
    assert asked == []  # the mode decides; the session on the CPU is still there
    pycaffe.set_mode_gpu()
    found = net.forward()["prob"]
    assert asked == [[(provider, asked_of(provider, 2)), CPU]]
    np.testing.assert_allclose(found, on_cpu, rtol=1e-5)
    pycaffe.set_mode_cpu()
    scored(tiny)
    assert (provider, asked_of(provider, 2)) not in [first for first, *_ in asked[1:]]


@pytest.mark.usefixtures("python_layers_run")
def test_hosted_layers_run_between_parts_on_the_device(tiny, build):
    text = (tiny / "tiny.prototxt").read_text()
    (tiny / "twice.py").write_text(
        "import caffe\n\n\nclass Twice(caffe.Layer):\n    def setup(self, bottom, top):\n        pass\n\n"
        "    def reshape(self, bottom, top):\n        top[0].reshape(*bottom[0].data.shape)\n\n"
        "    def forward(self, bottom, top):\n        top[0].data[...] = 2 * bottom[0].data\n"
    )
    parameters = 'python_param { module: "twice" layer: "Twice" }'
    twice = f'layer {{ name: "twice" type: "Python" bottom: "pool" top: "pool" {parameters} }}\n'
    (tiny / "tiny.prototxt").write_text(text.replace('layer { name: "fc"', twice + 'layer { name: "fc"'))
    net, on_cpu = scored(tiny)
    asked = build("CUDAExecutionProvider")
    pycaffe.set_mode_gpu()
    np.testing.assert_allclose(net.forward()["prob"], on_cpu, rtol=1e-5)
    assert (
        asked == [[("CUDAExecutionProvider", asked_of("CUDAExecutionProvider", 0)), CPU]] * 2
    )  # before the layer, and behind it


@pytest.mark.parametrize("ask", [pycaffe.set_mode_gpu, lambda: pycaffe.set_device(1)], ids=["mode", "card"])
def test_a_missing_build_is_named(monkeypatch, ask):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(nuq.RuntimeFailure, match="onnxruntime-gpu.*onnxruntime-cann"):
        ask()
    assert device.selected_device() == device.Device()


def test_a_fall_back_of_onnxruntime_is_an_error(tiny, build):
    build("CUDAExecutionProvider", loads=False)
    pycaffe.set_mode_gpu()
    with pytest.raises(nuq.RuntimeFailure, match="does not run on CUDAExecutionProvider 0: .*onnxruntime-gpu"):
        scored(tiny)


def test_a_second_device_is_refused(tiny, build):
    build("CANNExecutionProvider")
    pycaffe.set_mode_gpu()
    scored(tiny)
    pycaffe.set_device(0)
    with pytest.raises(nuq.RuntimeFailure, match="device 1 is asked for, but this process ran on device 0 already"):
        pycaffe.set_device(1)
    pycaffe.set_mode_cpu()
    pycaffe.set_device(1)
    with pytest.raises(nuq.RuntimeFailure, match="one device only"):
        pycaffe.set_mode_gpu()


@pytest.mark.parametrize(
    ("card", "error"), [([0, 1], TypeError), ("0", TypeError), (True, TypeError), (-1, ValueError)]
)
def test_a_card_is_one_number(card, error):
    with pytest.raises(error, match="set_device takes"):
        pycaffe.set_device(card)


@pytest.mark.parametrize("select", [pycaffe.set_mode_cpu, pycaffe.set_mode_gpu])
def test_another_process_goes_on_where_this_one_is(build, monkeypatch, select):
    build("CUDAExecutionProvider")
    pycaffe.set_device(2)
    select()
    here, sent = device.selected_device(), pickle.dumps(device.selection())
    monkeypatch.setattr(device, "_selected", device.Device())
    monkeypatch.setattr(device, "_card", 0)
    pickle.loads(sent)()
    assert device.selected_device() == here
    pycaffe.set_mode_gpu()
    assert device.selected_device() == device.Device("CUDAExecutionProvider", 2)


def test_a_selection_that_another_process_lacks_is_an_error(build, monkeypatch):
    build("CUDAExecutionProvider")
    pycaffe.set_mode_gpu()
    select = device.selection()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(nuq.RuntimeFailure, match="onnxruntime-gpu"):
        select()
