"""Rules of AMCT's calls and of its tables of supported layers: a wrong value each, and the message it gives.

Values inside config.json, .cfg and record files have tables of their own: test_config, test_config_simplified,
test_static.
"""

import json
import math

import numpy as np
import pytest

import autonuq.amct as amct
from autonuq.errors import EvaluatorError, ModelError, QuantizationError, RuntimeFailure
from autonuq.graph.files import load_graph, write_model
from autonuq.graph.layers import blob_shapes, infer_shapes

FILES = ("tiny.prototxt", "tiny.caffemodel")

CALLS = {
    "model-missing": (("c.json", "none.prototxt", FILES[1]), ModelError, "none.prototxt: cannot be read"),
    "weights-missing": (("c.json", FILES[0], "none.caffemodel"), ModelError, "none.caffemodel: cannot be read"),
    "model-broken": (("c.json", "broken", FILES[1]), ModelError, "broken"),
    "weights-broken": (("c.json", FILES[0], "broken"), ModelError, "broken"),
    "skip-unknown": (("c.json", *FILES, ["cnov"]), QuantizationError, "Did you mean 'conv'?"),
    "skip-text": (("c.json", *FILES, "conv"), TypeError, "'skip_layers' parameter"),
    "skip-type": (("c.json", *FILES, ["relu"]), QuantizationError, "layer 'relu': The 'skip_layers' key must be made"),
    "batch_num-0": (("c.json", *FILES, None, 0), ValueError, "'batch_num' parameter of create_quant_config must"),
    "batch_num-float": (("c.json", *FILES, None, 2.0), ValueError, "Got 2.0 instead"),
    "offset": (("c.json", *FILES, None, 1, "yes"), TypeError, "'activation_offset' parameter"),
    "cfg-missing": (("c.json", *FILES, None, 1, True, "none.cfg"), QuantizationError, "none.cfg: cannot be read"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), CALLS.values(), ids=CALLS)
def test_create_quant_config(tiny, arguments, error, message):
    (tiny / "broken").write_bytes(b"\xffnonsense{")
    with pytest.raises(error) as caught:
        amct.create_quant_config(*arguments)
    assert message in str(caught.value)
    assert not (tiny / "c.json").exists()


def test_a_cfg_replaces_the_other_parameters(tiny):
    (tiny / "q.cfg").write_text('batch_num: 3 activation_offset: false skip_layers: "fc"')
    amct.create_quant_config("c.json", *FILES, ["conv"], 7, True, "q.cfg")
    document = json.loads((tiny / "c.json").read_text())
    assert (document["batch_num"], document["activation_offset"]) == (3, False)
    assert list(document)[-2:] == ["conv", "pool"]


def test_init_refuses_the_configuration_of_another_network(tiny):
    amct.create_quant_config("c.json", *FILES)
    document = json.loads((tiny / "c.json").read_text())
    document["conv2"] = document.pop("conv")
    (tiny / "c.json").write_text(json.dumps(document))
    with pytest.raises(QuantizationError, match="c.json, layer 'conv2': The network has no layer of this name"):
        amct.init("c.json", *FILES, "r.txt")
    with pytest.raises(QuantizationError, match="none.json: cannot be read"):
        amct.init("none.json", *FILES, "r.txt")


class Good:
    evaluate_batch_num = 2

    def eval_model(self, model_file, weights_file, batch_num):
        return 1.0

    def is_satisfied(self, original_metric, new_metric):
        return True


def evaluator(**changes):
    return type("Own", (Good,), {"__init__": lambda self: None, **changes})()


def raises(self, *arguments):
    raise IndexError("no images")


EVALUATORS = {
    "no-count": (evaluator(evaluate_batch_num=None), "Own.evaluate_batch_num must be a positive int"),
    "count-0": (evaluator(evaluate_batch_num=0), "Own.evaluate_batch_num must be a positive int"),
    "no-eval_model": (evaluator(eval_model=None), "Own has no method 'eval_model'"),
    "no-is_satisfied": (evaluator(is_satisfied=None), "Own has no method 'is_satisfied'"),
    "two-numbers": (evaluator(eval_model=lambda *_: (0.9, 0.99)), "must return one finite number. Got (0.9, 0.99)"),
    "none": (evaluator(eval_model=lambda *_: None), "must return one finite number. Got None"),
    "nan": (evaluator(eval_model=lambda *_: math.nan), "must return one finite number. Got nan"),
    "raises": (evaluator(eval_model=raises), "eval_model raised IndexError: no images"),
    "verdict-raises": (evaluator(is_satisfied=raises), "is_satisfied raised IndexError: no images"),
    "never": (evaluator(is_satisfied=lambda *_: False), "not even the original network satisfies it"),
}


@pytest.mark.parametrize(("own", "message"), EVALUATORS.values(), ids=EVALUATORS)
def test_evaluators_of_auto_nuq(tiny, own, message):
    (tiny / "q.cfg").write_text('override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize {} } }')
    amct.create_quant_config("c.json", *FILES, None, 1, True, "q.cfg")
    with pytest.raises(EvaluatorError) as caught:
        amct.auto_nuq(*FILES, own, "c.json", "r.txt", "out/Tiny")
    assert message in str(caught.value)


def test_an_evaluator_that_calibrates_too_little_is_told_so(tiny):
    (tiny / "q.cfg").write_text('override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize {} } }')
    amct.create_quant_config("c.json", *FILES, None, 1, True, "q.cfg")
    with pytest.raises(QuantizationError, match="layer 'conv': has no activation factors .* needs 1 forward passes"):
        amct.auto_nuq(*FILES, evaluator(), "c.json", "r.txt", "out/Tiny")


CONVOLUTION = 'bottom: "data" convolution_param {{ num_output: 4 kernel_size: 3 {} }}'
INNER_PRODUCT = 'bottom: "data" inner_product_param {{ num_output: 4 {} }}'
POOLING = 'bottom: "data" pooling_param {{ kernel_size: 2 {} }}'

# (type, parameters, why it cannot be quantized or "", why it cannot have a codebook or "")
SUPPORTED = {
    "conv": ("Convolution", CONVOLUTION.format(""), "", ""),
    "conv-1x1": ("Convolution", CONVOLUTION.format("").replace("3", "1"), "", ""),
    "conv-dilated": ("Convolution", CONVOLUTION.format("dilation: 2"), "", "a codebook needs dilation 1, not 2x2"),
    "conv-grouped": ("Convolution", CONVOLUTION.format("group: 2"), "", "a codebook needs group 1, not 2"),
    "deconv": ("Deconvolution", CONVOLUTION.format(""), "", "a codebook needs a Convolution or InnerProduct"),
    "deconv-dilated": ("Deconvolution", CONVOLUTION.format("dilation: 2"), "a Deconvolution needs dilation 1", ""),
    "deconv-grouped": ("Deconvolution", CONVOLUTION.format("group: 2"), "a Deconvolution needs dilation 1", ""),
    "fc": ("InnerProduct", INNER_PRODUCT.format(""), "", ""),
    "fc-transposed": ("InnerProduct", INNER_PRODUCT.format("transpose: true"), "needs transpose false and axis 1", ""),
    "fc-axis-2": ("InnerProduct", INNER_PRODUCT.format("axis: 2"), "needs transpose false and axis 1", ""),
    "pool-ave": ("Pooling", POOLING.format("pool: AVE"), "", "has no weights"),
    "pool-max": ("Pooling", POOLING.format("pool: MAX"), "only AVE pooling is quantized", ""),
    "pool-global": (
        "Pooling",
        'bottom: "data" pooling_param { pool: AVE global_pooling: true }',
        "global pooling is not quantized",
        "",
    ),
    "relu": ("ReLU", 'bottom: "data"', "type 'ReLU' is not quantized", ""),
}


@pytest.fixture
def network(tmp_path):
    """Write a network of one layer 'x' with random weights."""

    def write(layer_type, parameters):
        (tmp_path / "x.prototxt").write_text(
            'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 8 dim: 8 } } }\n'
            f'layer {{ name: "x" type: "{layer_type}" top: "x" {parameters} }}'
        )
        graph = load_graph(tmp_path / "x.prototxt")
        shapes, rng = infer_shapes(graph), np.random.default_rng(0)
        layers = [
            layer.with_(blobs=[rng.standard_normal(shape, np.float32) for shape in blob_shapes(graph, layer, shapes)])
            for layer in graph.layers
        ]
        write_model(graph.with_layers(layers), tmp_path / "x.prototxt", tmp_path / "x.caffemodel")
        return "x.prototxt", "x.caffemodel"

    return write


@pytest.mark.parametrize(("layer_type", "parameters", "no_int8", "no_nuq"), SUPPORTED.values(), ids=SUPPORTED)
@pytest.mark.filterwarnings("ignore")
def test_supported_layers(tmp_path, network, recwarn, layer_type, parameters, no_int8, no_nuq):
    files = network(layer_type, parameters)
    (tmp_path / "q.cfg").write_text('override_layer_configs { layer_name: "x" calibration_config { nuq_quantize {} } }')
    if no_int8:
        with pytest.raises(QuantizationError) as caught:
            amct.create_quant_config("c.json", *files, None, 1, True, "q.cfg")
        assert "layer 'x'" in str(caught.value)
        assert no_int8 in str(caught.value)
        return
    amct.create_quant_config("c.json", *files, None, 1, True, "q.cfg")
    settings = json.loads((tmp_path / "c.json").read_text())["x"]["weight_quant_params"]
    assert settings["wts_algo"] == ("arq_quantize" if no_nuq else "nuq_quantize")
    log = (tmp_path / "amct_log/amct_caffe.log").read_text()
    assert (no_nuq in log) if no_nuq else "WARNING" not in log


def test_a_gpu_is_never_missing_silently(monkeypatch):
    amct.set_cpu_mode()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeFailure, match="a GPU is asked for, but .* install onnxruntime-gpu"):
        amct.set_gpu_mode()
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="weights are quantized on the CPU; CUDAExecutionProvider runs the networks"):
        amct.set_gpu_mode()
