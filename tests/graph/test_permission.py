"""What a network brings along runs only where somebody has allowed it, and reading never does."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import halved
import numpy as np
import pytest

import autonuq as nuq
from autonuq.compress.calibration import calibrated, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import pack, unpack
from autonuq.compress.packed_file import load_packed
from autonuq.compress.quantized import default_config, quantize
from autonuq.errors import ModelError
from autonuq.evaluate.evaluator import load_evaluator, run_evaluator_call
from autonuq.evaluate.isolation import IsolatedEvaluator
from autonuq.graph.files import ModelPair, fill_weights, load_graph, write_caffemodel
from autonuq.graph.hosted.permission import python_layers, python_layers_allowed
from autonuq.graph.layers import infer_known_shapes, infer_shapes
from autonuq.graph.passes import capabilities
from autonuq.study.workers import make_runner

NETWORK = """
layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 dim: 8 dim: 8 }} }} }}
layer {{ name: "c1" type: "Convolution" bottom: "x" top: "c1" convolution_param {{ num_output: 4 kernel_size: 3
        weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "own" type: "Python" bottom: "c1" top: "p"
        python_param {{ module: "{module}" layer: "{cls}" param_str: "{{\\"factor\\": 4, \\"offset\\": 0}}" }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "p" top: "bn" }}
layer {{ name: "c2" type: "Convolution" bottom: "bn" top: "c2" convolution_param {{ num_output: 5 kernel_size: 3
        weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "fc" type: "InnerProduct" bottom: "c2" top: "fc" inner_product_param {{ num_output: 10
        weight_filler {{ type: "xavier" }} }} }}
"""
MODULE = f"""
import pathlib
pathlib.Path(__file__).with_name("RAN").touch()
{halved.MODULE}

Quant = Half = Halved
"""
# What is installed, what is beside the prototxt, a package whose own file runs first, and no name at all.
CALLED = [
    ("half_of_test", "Half"),
    ("builtins", "breakpoint"),
    ("os", "fork"),
    ("pack_of_test.inner", "Half"),
    ("", ""),
]


@pytest.fixture
def downloaded(tmp_path):
    """Make a network whose `Python` layer names a class, with modules beside it that tell when they are run."""

    def make(module="half_of_test", cls="Half"):
        for name in ("half_of_test.py", "autonuq_layers.py", "caffe.py", "pack_of_test/__init__.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(MODULE)
        (tmp_path / "pack_of_test" / "inner.py").write_text(MODULE)
        (tmp_path / "caffe.py").unlink()
        path = tmp_path / "net.prototxt"
        path.write_text(NETWORK.format(module="autonuq_layers", cls="Quant"))
        write_caffemodel(fill_weights(load_graph(path), np.random.default_rng(0)), tmp_path / "net.caffemodel")
        path.write_text(NETWORK.format(module=module, cls=cls))
        return path, tmp_path / "net.caffemodel"

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in ("half_of_test", "pack_of_test")]:
        del sys.modules[name]


def has_run(folder):
    return any(folder.rglob("RAN"))


@pytest.mark.parametrize(("module", "cls"), CALLED, ids=[module or "nothing" for module, _ in CALLED])
def test_reading_runs_nothing_and_says_what_it_can(downloaded, tmp_path, module, cls):
    pair = downloaded(module, cls)
    graph = load_graph(*pair)
    found = {one.name: (one.shape, one.nuq) for one in capabilities(graph)}
    assert found["c1"] == ((4, 3, 3, 3), True)
    assert found["c2"] == ((5, 4, 3, 3), True)
    assert found["fc"] == ((10, 80), True)
    assert set(infer_known_shapes(graph)) == {"x", "c1"}
    assert not has_run(tmp_path)


@pytest.mark.parametrize(("module", "cls"), CALLED, ids=[module or "nothing" for module, _ in CALLED])
def test_executing_is_refused_and_names_module_and_class(downloaded, tmp_path, module, cls):
    pair = downloaded(module, cls)
    for make in (
        lambda: nuq.Net(*pair, nuq.pycaffe.TEST),
        lambda: nuq.Net(pair[0]),
        lambda: infer_shapes(load_graph(*pair)),
    ):
        with pytest.raises(ModelError) as refused:
            make()
        said = str(refused.value)
        assert f"layer 'own': type 'Python' would run class '{cls}' of module '{module}'" in said
        assert "--allow-python-layers" in said and "allow_python_layers = true" in said
    assert not has_run(tmp_path)


def test_the_refusal_says_which_file_it_would_have_been(downloaded, tmp_path):
    for module, file in (("half_of_test", "half_of_test.py"), ("pack_of_test.inner", "pack_of_test/inner.py")):
        with pytest.raises(ModelError, match=str(tmp_path / file)):
            nuq.Net(*downloaded(module), nuq.pycaffe.TEST)
    with pytest.raises(ModelError, match="built into Python"):
        nuq.Net(*downloaded("builtins", "breakpoint"), nuq.pycaffe.TEST)
    with pytest.raises(ModelError, match=r"\(not found\)"):
        nuq.Net(*downloaded("no_such_module_of_test", "It"), nuq.pycaffe.TEST)
    assert not has_run(tmp_path)


def test_what_is_allowed_runs_for_the_time(downloaded, tmp_path):
    pair = downloaded()
    with python_layers(True):
        net = nuq.Net(*pair, nuq.pycaffe.TEST)
        net.forward(x=np.ones((2, 3, 8, 8), np.float32))
        assert (net.blobs["p"].data == net.blobs["c1"].data / 2).all()
        assert has_run(tmp_path)
        with python_layers(False):  # what is allowed is not taken back inside
            assert python_layers_allowed()
    assert not python_layers_allowed()
    with pytest.raises(ModelError, match="would run"):
        nuq.Net(*pair, nuq.pycaffe.TEST)


def test_our_own_layers_need_no_permission_and_are_ours(downloaded, tmp_path):
    net = nuq.Net(*downloaded("autonuq_layers", "Quant"), nuq.pycaffe.TEST)
    net.forward(x=np.ones((2, 3, 8, 8), np.float32))
    values = net.blobs["c1"].data
    assert np.abs(net.blobs["p"].data - values).max() <= 0.125 + 1e-6  # of steps of a quarter
    assert not has_run(tmp_path)
    with pytest.raises(ModelError, match="class 'os' of module 'autonuq_layers'"):
        nuq.Net(*downloaded("autonuq_layers", "os"), nuq.pycaffe.TEST)


def test_a_foreign_caffe_in_the_evaluator_gets_our_layers(downloaded, tmp_path):
    pair = downloaded("autonuq_layers", "Quant")

    class Importing(nuq.Evaluator):
        def eval_model(self, model_file, weights_file, batch_num):
            import autonuq_layers

            with pytest.raises(ImportError):
                import half_of_test  # noqa: F401
            return Path(autonuq_layers.__file__).parent.name

    nuq.pycaffe.install()
    try:
        assert run_evaluator_call(Importing(), "eval_model", *map(str, pair), 1) == "hosted"
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("caffe", "autonuq_layers")]:
            del sys.modules[name]
    assert not has_run(tmp_path)


RUNNING = """
import autonuq as nuq


class Running(nuq.Evaluator):
    evaluate_batch_num = 1

    def eval_model(self, model_file, weights_file, batch_num):
        return float(nuq.Net(model_file, weights_file, nuq.pycaffe.TEST).forward()["fc"].sum())

    def is_satisfied(self, original_metric, new_metric):
        return True
"""


def test_an_isolated_evaluator_has_the_permission_of_its_maker(downloaded, tmp_path):
    pair = list(map(str, downloaded()))
    (tmp_path / "running.py").write_text(RUNNING)
    make = partial(load_evaluator, "running.py:Running", tmp_path, 1)
    with pytest.raises(ModelError, match="would run class 'Half'"):
        IsolatedEvaluator(make(), make, 60.0).eval_model(*pair, 1)
    assert not has_run(tmp_path)
    with python_layers(True):
        assert np.isfinite(IsolatedEvaluator(make(), make, 60.0).eval_model(*pair, 1))
    assert has_run(tmp_path)


def command(*arguments, folder):
    code = "from autonuq.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )


def test_inspect_and_new_run_nothing(downloaded, tmp_path):
    model, weights = downloaded("builtins", "breakpoint")
    looked = command("inspect", model, weights, "--json", folder=tmp_path)
    document = json.loads(looked.stdout)
    assert document["python_layers"] == [{"name": "own", "module": "builtins", "class": "breakpoint"}]
    assert document["needs"] is None and document["weights"] == 108 + 180 + 800
    said = command("inspect", model, weights, "--chip", "ascend310", folder=tmp_path)
    assert said.returncode == 0 and "not run:" in said.stdout and "breakpoint" in said.stdout
    made = command("new", tmp_path / "study", "--model", model, "--weights", weights, folder=tmp_path)
    assert made.returncode == 0
    assert "# allow_python_layers = true" in (tmp_path / "study" / "study.toml").read_text()


@pytest.mark.slow
def test_check_asks_first(downloaded, tmp_path):
    model, weights = downloaded()
    command("new", tmp_path / "study", "--model", model, "--weights", weights, folder=tmp_path)
    study = tmp_path / "study" / "study.toml"
    refused = command("check", study, folder=tmp_path)
    assert refused.returncode == ModelError.exit_code and str(tmp_path / "half_of_test.py") in refused.stderr
    assert not has_run(tmp_path)
    assert command("check", study, "--allow-python-layers", folder=tmp_path).returncode == 0
    assert has_run(tmp_path)
    study.write_text(study.read_text().replace("# allow_python_layers", "allow_python_layers"))
    assert command("check", study, folder=tmp_path).returncode == 0


def test_a_packed_network_is_unpacked_without_being_run(downloaded, tmp_path, packed_of):
    model, weights = downloaded()
    with python_layers(True):
        file = packed_of(model, weights)
        expected = load_packed(file).graph
    sys.modules.pop("half_of_test", None)
    for ran in tmp_path.rglob("RAN"):
        ran.unlink()
    network = load_packed(file)
    assert "made by Python" not in network.origin + network.prototxt
    for one, other in zip(network.graph.layers, expected.layers, strict=True):
        assert [blob.tobytes() for blob in one.blobs] == [blob.tobytes() for blob in other.blobs]
    unpack(network, str(tmp_path / "again"))
    assert not has_run(tmp_path)


def test_no_trial_is_spent_on_what_may_not_run(downloaded, tmp_path):
    pair = downloaded()
    (tmp_path / "running.py").write_text(RUNNING)
    evaluator = load_evaluator("running.py:Running", tmp_path, 1)
    with pytest.raises(ModelError, match="would run class 'Half'"):
        nuq.tune(*pair, evaluator, out=tmp_path / "out", n_trials=1)
    assert not (tmp_path / "out").exists()
    candidate = SimpleNamespace(model=SimpleNamespace(graph=load_graph(*pair)))
    with pytest.raises(ModelError, match="would run class 'Half'"):
        make_runner(None, None, None, candidate, print, is_first=False)
    assert not has_run(tmp_path)


def test_a_script_of_amcts_is_allowed_by_its_command(downloaded, tmp_path):
    pair = downloaded()
    (tmp_path / "script.py").write_text(f"import caffe\ncaffe.Net({str(pair[0])!r}, {str(pair[1])!r}, caffe.TEST)\n")
    ran = [
        subprocess.run([sys.executable, "-m", "autonuq.amct", *options, "script.py"], cwd=tmp_path, capture_output=True)
        for options in ([], ["--allow-python-layers"])
    ]
    assert [one.returncode for one in ran] == [ModelError.exit_code, 0]
    assert b"half_of_test.py" in ran[0].stderr


@pytest.mark.parametrize("layer", ["IFMR", "Python"])
def test_a_calibrations_network_is_no_studys(tmp_path, layer):
    """It writes to the file that it names."""
    target = tmp_path / "target"
    settings = 'search_range_start: 0.7 search_range_end: 1.3 search_step: 0.01 object_layer: "r" batch_num: 1 '
    settings += "min_percentile: 0.99 max_percentile: 0.99"
    text = {
        "IFMR": f'type: "IFMR" ifmr_param {{ {settings} record_file_path: "{target}" }}',
        "Python": 'type: "Python" python_param { module: "autonuq_layers" layer: "IFMR" param_str: "{}" }',
    }[layer]
    (tmp_path / "n.prototxt").write_text(
        'input: "x" input_shape { dim: 1 dim: 2 }\nlayer { name: "r" type: "ReLU" bottom: "x" top: "r" }\n'
        f'layer {{ name: "w" bottom: "x" {text} }}'
    )
    graph = load_graph(tmp_path / "n.prototxt")
    with pytest.raises(ModelError, match="layer 'w': type 'IFMR' is a calibration's, and writes to the file"):
        quantize(graph, default_config(graph))


@pytest.fixture
def packed_of(tmp_path):
    def make(model, weights):
        graph = load_graph(model, weights)
        quantized = quantize(graph, default_config(graph))
        pair = ModelPair(tmp_path / "m.prototxt", tmp_path / "m.caffemodel")
        write_calibration_model(quantized, pair, tmp_path / "record.txt", quantized.weights)
        net = nuq.Net(pair.model, pair.weights, nuq.pycaffe.TEST)
        for _ in range(quantized.config.batch_num):
            net.forward(x=np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
        pack(Candidate(calibrated(quantized, tmp_path / "record.txt")), tmp_path / "net.nuq", "of a test")
        return tmp_path / "net.nuq"

    return make
