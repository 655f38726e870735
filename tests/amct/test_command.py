"""`amct_caffe calibration`, by files of data and by an evaluator's file."""

import subprocess
import sys

import numpy as np
import pytest

import autonuq.amct as amct
from autonuq.amct import arguments_handler, data_handler
from autonuq.amct.command import run_command
from autonuq.errors import QuantizationError
from autonuq.runtime.net import Net

FILES = "tiny.prototxt", "tiny.caffemodel"
NETWORK = ["--model", FILES[0], "--weights", FILES[1]]
DATA = ["--input_shape", "data:4,2,8,8", "--data_dir", "data", "--data_types", "float32"]
SUFFIXES = {
    *("fake_quant_model.prototxt", "fake_quant_weights.caffemodel", "deploy_model.prototxt"),
    *("deploy_weights.caffemodel", "quant.json", "nuq_layer_record.txt"),
}
EVALUATOR = """
import caffe
import numpy as np
from amct_caffe.common.auto_calibration import AutoCalibrationEvaluatorBase
import amct_caffe.common.cmd_line_utils.arguments_handler as args_handler
import amct_caffe.common.cmd_line_utils.data_handler as data_handler


class ResNetEvaluator(AutoCalibrationEvaluatorBase):
    def calibration(self, modified_model, modified_weights):
        net = caffe.Net(modified_model, modified_weights, caffe.TEST)
        shapes = args_handler.process_data_shape("data:4,2,8,8")
        for data_map in data_handler.load_data(shapes, ["./data"], ["float32"], 2):
            net.forward(**data_map)
        np.float(1)


customize_evaluator = ResNetEvaluator()
"""


@pytest.fixture
def data(tiny):
    folder = tiny / "data"
    folder.mkdir()
    batches = np.random.default_rng(1).standard_normal((3, 4, 2, 8, 8), np.float32)
    for index, batch in enumerate(batches):
        batch.tofile(folder / f"{index}.bin")
    (folder / ".hidden").write_text("not a batch")
    return batches


@pytest.fixture
def command(tiny, monkeypatch, capsys):
    """Run the command here and return its exit code and what it wrote to stderr; this process stays what it was."""
    monkeypatch.setattr("autonuq.amct.command.prepare", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["amct_caffe", *arguments])
        capsys.readouterr()
        try:
            run_command()
        except SystemExit as ended:
            return ended.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def written(folder, prefix):
    return {path.name.removeprefix(prefix): path.read_bytes() for path in folder.iterdir()}


def statically(prefix, batches, cfg=None):
    """Do what the command does, call by call."""
    amct.create_quant_config("config.json", *FILES, None, len(batches), True, cfg)
    graph = amct.init("config.json", *FILES, "record.txt")
    amct.quantize_model(graph, "modified.prototxt", "modified.caffemodel")
    net = Net("modified.prototxt", "modified.caffemodel", 1)
    for batch in batches:
        net.forward(data=batch)
    amct.save_model(graph, "Both", prefix)


def test_data_give_what_the_calls_give(tiny, command, data):
    assert command("calibration", *NETWORK, *DATA, "--save_path", "out/net_", "--batch_num", "3") == (0, "")
    statically("calls/net_", data)
    assert written(tiny / "out", "net__") == written(tiny / "calls", "net__")
    assert set(written(tiny / "out", "net__")) == SUFFIXES


def test_a_simplified_configuration(tiny, command, data):
    (tiny / "q.cfg").write_text(
        "batch_num: 2\n"
        'override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize { num_steps: 16 } } }'
    )
    more = ["--save_path", "out/net", "--calibration_config", "q.cfg"]
    assert command("calibration", *NETWORK, *DATA, *more)[0] == 0
    statically("calls/net", data[:2], "q.cfg")
    assert written(tiny / "out", "net_") == written(tiny / "calls", "net_")
    assert written(tiny / "out", "net_")["nuq_layer_record.txt"] == b"fc"


def test_an_evaluator_as_amct_s_sample_has_it(tiny, data):
    (tiny / "src").mkdir()
    (tiny / "src/evaluator.py").write_text(EVALUATOR)
    more = ["--save_path", "out/net", "--batch_num", "2", "--evaluator", "./src/evaluator.py"]
    module = [sys.executable, "-m", "autonuq.amct", "calibration"]
    result = subprocess.run([*module, *NETWORK, *more], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    statically("calls/net", data[:2])
    assert written(tiny / "out", "net_") == written(tiny / "calls", "net_")


PLAIN = """
import numpy as np
import autonuq as nuq

class Feeds:
    def calibration(self, model_file, weights_file):
        net = nuq.Net(model_file, weights_file, 1)
        net.forward(data=np.fromfile("data/0.bin", np.float32).reshape(4, 2, 8, 8))
"""


@pytest.mark.parametrize("last", ["customize_evaluator = Feeds()\nother = Feeds()", "own = Feeds()", ""])
def test_where_the_evaluator_is_in_its_file(tiny, command, data, last):
    (tiny / "evaluator.py").write_text(f"{PLAIN}\n{last}\n")
    assert command("calibration", *NETWORK, "--save_path", "out/net", "--evaluator", "evaluator.py") == (0, "")
    statically("calls/net", data[:1])
    assert written(tiny / "out", "net_") == written(tiny / "calls", "net_")


@pytest.mark.parametrize(
    ("replaced", "code", "message"),
    [
        ({"--input_shape": None}, 2, "without --evaluator, the calibration needs --input_shape"),
        ({"--input_shape": "4,2,8,8"}, 2, "--input_shape: the shape of an input must read name:n,c,h,w"),
        ({"--input_shape": "data:4,2,8,0"}, 2, "Got 'data:4,2,8,0' instead"),
        ({"--input_shape": "image:4,2,8,8"}, 2, "--input_shape names image, but the network's inputs are: data"),
        ({"--input_shape": "data:4,2,8,9"}, 4, "0.bin: a batch of float32 (4, 2, 8, 9) has 2304 bytes. Got 2048"),
        ({"--data_types": "flaot32"}, 2, "--data_types/--data_type: must be of float16, float32"),
        ({"--data_types": "float32;float32"}, 2, "each input needs a shape, a folder and a type. Got --input_shape 1"),
        ({"--data_dir": "nowhere"}, 4, "nowhere: there is no such folder of calibration data"),
        ({"--batch_num": "4"}, 4, "data: 4 batches are asked for, but it holds 3 files"),
        ({"--batch_num": "0"}, 2, "--batch_num: must be a positive number. Got '0' instead."),
        ({"--batch_num": "2", "--calibration_config": "q.cfg"}, 2, "has a batch_num of its own: give one of them"),
        ({"--evaluator": "evaluator.py"}, 2, "--evaluator brings its own data"),
        ({"--model": "none.prototxt"}, 3, "none.prototxt: cannot be read"),
        ({"--calibration_config": "none.cfg"}, 4, "none.cfg: cannot be read"),
        ({"--save_path": None}, 2, "the following arguments are required: --save_path"),
        ({"--save_path": "tiny.prototxt/net"}, 6, "tiny.prototxt: cannot be used"),
        ({"--nothing": "x"}, 2, "unrecognized arguments: --nothing x"),
    ],
    ids=lambda value: " ".join(f"{key}={entry}" for key, entry in value.items()) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_one_line(tiny, command, data, replaced, code, message):
    options = dict(zip(DATA[::2], DATA[1::2], strict=True)) | dict(zip(NETWORK[::2], NETWORK[1::2], strict=True))
    options |= {"--save_path": "out/net", **replaced}
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    ended, said = command("calibration", *given)
    assert (ended, said.count("\n")) == (code, 1)
    assert message in said
    assert not list(tiny.glob("out/*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "must hold one evaluator with a method 'calibration', best called customize_evaluator; it has 0"),
        (PLAIN + "a, b = Feeds(), Feeds()\n", "customize_evaluator; it has 2"),
        (PLAIN + "customize_evaluator = 1\n", "must hold one evaluator with a method 'calibration'"),
        ("class A:\n    calibration = print\n    def __init__(self, x): pass\n", "A cannot be constructed"),
        ("1 / 0\n", "evaluator.py: cannot be loaded: "),
        ("class A:\n    def calibration(self, *_):\n        raise KeyError('x')\n", "calibration raised KeyError: 'x'"),
    ],
    ids=["none", "two", "no-object", "constructor", "broken", "raises"],
)
def test_evaluators_that_cannot_be_used(tiny, command, text, message):
    (tiny / "evaluator.py").write_text(text)
    code, said = command("calibration", *NETWORK, "--save_path", "out/net", "--evaluator", "evaluator.py")
    assert (code, said.count("\n")) == (7, 1)
    assert message in said


def test_a_gpu_is_never_missing_silently(command, data, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    code, said = command("calibration", *NETWORK, *DATA, "--save_path", "out/net", "--gpu_id", "0")
    assert code == 5
    assert "a GPU is asked for" in said


def test_several_inputs(tmp_path):
    shapes = arguments_handler.process_data_shape("a:0:2,3;b:2")
    assert shapes == {"a:0": [2, 3], "b": [2]}
    folders = arguments_handler.process_multi_data_path(f"{tmp_path}/a/;{tmp_path}/b")
    for folder, kind, size in zip(folders, ("uint8", "float64"), (6, 2), strict=True):
        assert folder in (f"{tmp_path}/a", f"{tmp_path}/b")
        (tmp_path / folder).mkdir()
        for name in ("10", "9"):
            np.full(size, int(name), kind).tofile(tmp_path / folder / name)
    batches = list(data_handler.load_data(shapes, folders, ["uint8", "float64"]))
    assert [
        {name: (batch.dtype.name, batch.shape, batch.flat[0]) for name, batch in found.items()} for found in batches
    ] == [{"a:0": ("uint8", (2, 3), number), "b": ("float64", (2,), number)} for number in (10, 9)]
    with pytest.raises(ValueError, match="a shape, a folder of data and a data type. Got 2 shapes, 1 folders, 1 types"):
        next(data_handler.load_data(shapes, folders[:1], ["uint8"]))
    with pytest.raises(ValueError, match="Got 'uint9' instead. Did you mean 'uint"):
        next(data_handler.load_data(shapes, folders, ["uint9", "float64"]))
    with pytest.raises(QuantizationError, match="3 batches are asked for, but it holds 2 files"):
        next(data_handler.load_data(shapes, folders, ["uint8", "float64"], 3))
