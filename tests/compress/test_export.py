"""What is exported runs elsewhere and says the same: in OpenCV, in plain onnxruntime, with Python layers."""

import json
import math
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from targets import counted_with

import autonuq as nuq
from autonuq.compress.candidate import Candidate
from autonuq.compress.formats import FORMATS, export, onnx_file, weights_only_pair
from autonuq.compress.operating_points import build_network_points
from autonuq.compress.quantized import default_config, quantize
from autonuq.errors import ModelError
from autonuq.graph.files import load_graph
from autonuq.graph.onnx_model import build_onnx, pack_indices
from autonuq.quant.uniform import UniformWeights, dequantize

IMAGES = np.random.default_rng(7).standard_normal((4, 2, 8, 8)).astype(np.float32)


@pytest.fixture
def exported(tiny):
    """Export a plan of a calibrated network in all formats; return (candidate, prefix)."""
    graph = load_graph(tiny / "tiny.prototxt", tiny / "tiny.caffemodel")
    model = quantize(graph, default_config(graph))
    scales = {"conv": (0.03, 3), "pool": (0.05, -128), "fc": (0.04, -128)}
    factors = {
        name: replace(model.factors[name], scale_d=float(np.float32(scale)), offset_d=offset)
        for name, (scale, offset) in scales.items()
    }
    model = counted_with(replace(model, factors=factors), "fixed")
    points = dict(build_network_points(model, tiny / "none.txt"))
    plan = {name: len(found.curve.codebooks) // 2 for name, found in points.items()}
    candidate = Candidate(model, points, plan)
    written = export(candidate, str(tiny / "out/net"), FORMATS, provenance={"study": "tiny"})
    assert all(path.exists() for path in written)
    assert len(written) == len(set(written)) == 15
    return candidate, str(tiny / "out/net")


def session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_weights_only_is_the_plan_in_opencv(exported):
    cv2 = pytest.importorskip("cv2")
    candidate, prefix = exported
    model = candidate.model
    pair = weights_only_pair(prefix)
    net = cv2.dnn.readNetFromCaffe(str(pair.model), str(pair.weights))
    net.setInput(IMAGES)
    ours = nuq.Net(pair.model, pair.weights).forward(data=IMAGES)["prob"]
    np.testing.assert_allclose(net.forward(), ours, atol=1e-5)
    written = load_graph(pair.model, pair.weights).by_name["fc"].blobs[0]
    uniform, codes = model.weights["fc"], candidate.codes("fc")
    np.testing.assert_array_equal(written, dequantize(codes, uniform.scale, uniform.channel_axis))


@pytest.mark.parametrize("codebooks", [False, True], ids=["int8", "codebook"])
def test_onnx_holds_the_very_weights_and_the_plan(exported, codebooks):
    candidate, prefix = exported
    path = onnx_file(prefix, codebooks=codebooks)
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    assert metadata["autonuq:study"] == "tiny"
    assert "IFMR" in metadata["autonuq:scales"]
    levels = json.loads(metadata["autonuq:levels"])
    inputs = {node.op_type: list(node.input) for node in loaded.graph.node if node.op_type in ("Conv", "Gemm")}
    loaded.graph.output.extend(onnx.helper.make_empty_tensor_value_info(names[1]) for names in inputs.values())
    wanted = {"Conv": "conv", "Gemm": "fc"}
    found = session(loaded.SerializeToString()).run([names[1] for names in inputs.values()], {"data": IMAGES})
    graph = candidate.weights_only_graph()
    for operator, weights in zip(inputs, found, strict=True):
        name = wanted[operator]
        np.testing.assert_array_equal(weights, graph.by_name[name].blobs[0])
        assert levels[name] == candidate.levels(name)


@pytest.mark.parametrize("codebooks", [False, True], ids=["int8", "codebook"])
def test_onnx_says_what_the_fake_quant_model_says(exported, codebooks):
    prefix = exported[1]
    ours = nuq.Net(f"{prefix}_fake_quant_model.prototxt", f"{prefix}_fake_quant_weights.caffemodel")
    (found,) = session(str(onnx_file(prefix, codebooks=codebooks))).run(["prob"], {"data": IMAGES})
    expected = ours.forward(data=IMAGES)["prob"]
    np.testing.assert_allclose(found, expected, atol=0.02)  # a tie may be rounded to the other side
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("codebooks", [False, True], ids=["int8", "codebook"])
def test_any_batch_size_with_the_sums_of_the_file(exported, codebooks):
    """By itself, onnxruntime rounds biases to int32 and sums in integers; an option makes it do what the file says."""
    prefix = exported[1]
    path = str(onnx_file(prefix, codebooks=codebooks))
    found = []
    for entry, level in (("1", "ORT_ENABLE_ALL"), ("0", "ORT_DISABLE_ALL")):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", entry)
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        found.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
    ours = nuq.Net(f"{prefix}_fake_quant_model.prototxt", f"{prefix}_fake_quant_weights.caffemodel")
    for size in (1, 3, 4, 9):
        images = np.resize(IMAGES, (size, 2, 8, 8))
        ours.blobs["data"].reshape(*images.shape)
        (one,), (other,) = (running.run(["prob"], {"data": images}) for running in found)
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one, ours.forward(data=images)["prob"], atol=0.02)  # ties, see above


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5, 16, 17, 100, 128, 129, 256])
def test_codes_of_any_number_of_levels_decode_exactly(tmp_path, levels):
    text = """name: "one"
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 31 } } }
    layer { name: "y" type: "InnerProduct" bottom: "x" top: "y"
            inner_product_param { num_output: 37 bias_term: false } }
    """
    (tmp_path / "one.prototxt").write_text(text)
    rng = np.random.default_rng(levels)
    steps = rng.choice(np.arange(-128, 128), levels, replace=False).astype(np.int8)
    codes = np.concatenate([steps, rng.choice(steps, 37 * 31 - levels)]).reshape(37, 31)
    uniform = UniformWeights(codes, np.array([0.0123], np.float32), None)
    graph = load_graph(tmp_path / "one.prototxt")
    graph = graph.with_layers(
        layer.with_(blobs=[uniform.dequantize()] if layer.name == "y" else []) for layer in graph.layers
    )
    int8, packed = (build_onnx(graph, {"y": uniform}, {}, codebooks=which, metadata={}) for which in (False, True))
    for model in (int8, packed):
        (found,) = session(model).run(None, {"x": np.eye(31, dtype=np.float32)[:1]})
        np.testing.assert_array_equal(found[0], uniform.dequantize()[:, 0])
    if levels <= 128:
        bits = max(1, math.ceil(math.log2(levels)))
        stored = {tensor.name.split(":")[1]: tensor for tensor in onnx.load_from_string(packed).graph.initializer}
        assert len(stored["indices"].raw_data) == bits * math.ceil(codes.size / 8)


def test_the_layout_of_indices():
    assert pack_indices(np.array([0, 1, 2, 3, 0, 0, 0, 0, 1]), 2).tolist() == [[0b1010, 1], [0b1100, 0]]


def test_a_large_layer_shrinks_by_the_fixed_length_ratio(tmp_path):
    text = """name: "large"
    layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1000 } } }
    layer { name: "y" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 400 } }
    """
    (tmp_path / "large.prototxt").write_text(text)
    graph = load_graph(tmp_path / "large.prototxt")
    uniform = UniformWeights(
        np.random.default_rng(0).integers(-4, 4, (400, 1000)).astype(np.int8), np.ones(1, np.float32), None
    )
    blobs = [uniform.dequantize(), np.zeros(400, np.float32)]
    graph = graph.with_layers(layer.with_(blobs=blobs if layer.name == "y" else []) for layer in graph.layers)
    int8, packed = (len(build_onnx(graph, {"y": uniform}, {}, codebooks=which, metadata={})) for which in (False, True))
    assert int8 / packed == pytest.approx(8 / 3, rel=0.03)


@pytest.mark.usefixtures("python_layers_run")
def test_a_layer_without_an_operator_is_named(tiny):
    text = (tiny / "tiny.prototxt").read_text()
    (tiny / "box.prototxt").write_text(
        text.replace('bottom: "pool" top: "fc"', 'bottom: "again" top: "fc"').replace(
            'layer { name: "fc"',
            'layer { name: "again" type: "Python" bottom: "pool" top: "again"\n'
            '  python_param { module: "again" layer: "Again" } }\nlayer { name: "fc"',
        )
    )
    (tiny / "again.py").write_text(
        "import caffe\n\n\nclass Again(caffe.Layer):\n    def setup(self, bottom, top):\n        pass\n\n"
        "    def reshape(self, bottom, top):\n        top[0].reshape(*bottom[0].data.shape)\n\n"
        "    def forward(self, bottom, top):\n        pass\n"
    )
    graph = load_graph(tiny / "box.prototxt", tiny / "tiny.caffemodel")
    with pytest.raises(ModelError, match="layer 'again': type 'Python' runs in Python; ONNX has no operator"):
        build_onnx(graph, {}, {}, metadata={})


def test_a_bad_format_is_an_error_of_the_caller(exported):
    with pytest.raises(ValueError, match="no format 'cafe', only caffe, .*Did you mean 'caffe'"):
        export(*exported, ["cafe"])
