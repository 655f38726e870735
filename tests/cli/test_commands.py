"""The commands as a user types them: what they print, what bad input is answered with, and the exit codes."""

import importlib
import json
import logging
import re
from pathlib import Path

import jsonschema
import pytest

from autonuq.cli import COMMANDS
from autonuq.cli.documents import SCHEMAS
from autonuq.graph.caffemodel import load_caffemodel

PLOTS = ("curves", "front", "history", "layers")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_a_study_from_tune_to_report(run, tiny_study, monkeypatch):
    tuned = run("tune", tiny_study)
    assert tuned.returncode == 0, tuned.stderr
    assert "baseline 1/1 original metric 1" in tuned.stderr
    assert "trial 8/8" in tuned.stderr
    for word in ("retention", "conv", "fc", "ratio ", "metric ", "out/tiny/report.html"):
        assert word in tuned.stdout

    log = (tiny_study.parent / "out/tiny/tiny.log").read_text().splitlines()
    assert len(log) == 9
    assert " best trial " in log[-1]
    assert log[-1].partition(" lost ")[2] in " ".join(tuned.stdout.split())
    status = json.loads(run("status", tiny_study, "--json").stdout)
    jsonschema.validate(status, SCHEMAS["status"])
    assert status["trials"] == {"complete": 8, "satisfied": status["trials"]["satisfied"], "failed": 0, "running": 0}
    said = {"loss", "loss_error", "probability", "confirmed"}
    assert set(status["best"]) == {"trial", "ratio", "metric", "levels", "bytes", "original_bytes"} | said
    assert status["best"]["confirmed"] is None
    assert "that chose it" in tuned.stdout
    assert "not confirmed" in tuned.stdout
    assert "8 of 8" in run("status", tiny_study).stdout

    with monkeypatch.context() as without_the_extra:
        without_the_extra.setattr("autonuq.cli.drawing.can_draw_images", lambda: False)
        plots = run("plot", tiny_study)
    assert plots.returncode == 0, plots.stderr
    folder = tiny_study.parent / "out/tiny"
    assert all((folder / f"{kind}.html").exists() for kind in PLOTS)
    assert not list(folder.glob("*.png"))
    assert "pip install 'autonuq[images]'" in plots.stderr
    assert run("plot", tiny_study, "front", "-o", "f.html").returncode == 0
    assert "plotly" in (tiny_study.parent / "f.html").read_text().lower()

    assert run("report", tiny_study, "-o", "r.html").returncode == 0
    assert "</html>" in (tiny_study.parent / "r.html").read_text()

    exported = run("export", tiny_study, "--trial", "0", "-o", "nets/loose")
    assert exported.returncode == 0, exported.stderr
    assert (tiny_study.parent / "nets/loose_fake_quant_weights.caffemodel").exists()

    again = run("tune", tiny_study)
    assert again.returncode == 6
    assert "autonuq resume" in again.stderr
    more = run("resume", tiny_study, "--trials", "9")
    assert more.returncode == 0, more.stderr
    assert "trial 9/9" in more.stderr


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_export_formats_and_unpack(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    folder = tiny_study.parent
    prefix = folder / "out/tiny/tiny"
    deploy = run("export", tiny_study, "--trial", "0", "--format", "deploy", "-o", "nets/x")
    expected = {"x_deploy_model.prototxt", "x_deploy_weights.caffemodel", "x_record.txt", "x_nuq_layer_record.txt"}
    assert names(folder / "nets") == expected
    assert set(deploy.stdout.split()) == {f"nets/{name}" for name in expected}
    packed = run("export", tiny_study, "--format", "packed", "-o", "packed/x")
    assert packed.stdout.split() == ["packed/x.nuq"]
    assert names(folder / "packed") == {"x.nuq"}
    assert (folder / "packed/x.nuq").read_bytes() == prefix.with_suffix(".nuq").read_bytes()

    unpacked = run("unpack", "packed/x.nuq", "-o", "new/x")
    assert unpacked.returncode == 0, unpacked.stderr
    assert ": lost " in unpacked.stderr
    assert unpacked.stdout.split() == ["new/x_fake_quant_model.prototxt", "new/x_fake_quant_weights.caffemodel"]
    for name in ("fake_quant_model.prototxt", "fake_quant_weights.caffemodel"):
        assert (folder / f"new/x_{name}").read_bytes() == prefix.with_name(f"tiny_{name}").read_bytes()

    data = (folder / "packed/x.nuq").read_bytes()
    (folder / "packed/x.nuq").write_bytes(data[:-1])
    damaged = run("unpack", "packed/x.nuq", "-o", "newer/x")
    assert damaged.returncode == 4
    assert "packed/x.nuq, layer 'fc': the file ends here" in damaged.stderr
    assert not (folder / "newer").exists()
    assert run("unpack", "packed/x.nuq").returncode == 2

    everything = run("export", tiny_study, "--trial", "0", "--format", "all", "-o", "all/x")
    assert everything.returncode == 0, everything.stderr
    paths = everything.stdout.split()
    assert names(folder / "all") == {Path(path).name for path in paths}
    assert {"autonuq_layers.py", "x.nuq", "x.onnx", "x_codebook.onnx"} <= names(folder / "all")
    two = run("export", tiny_study, "--trial", "0", "--format", "onnx", "--format", "weights", "-o", "two/x")
    assert two.stdout.split() == [
        "two/x.onnx", "two/x_weights_only_model.prototxt", "two/x_weights_only_weights.caffemodel",
    ]  # fmt: skip

    for name, words in (("onx", "Did you mean 'onnx'?"), ("zip", "there is no format 'zip'")):
        refused = run("export", tiny_study, "--format", name, "-o", "other/x")
        assert refused.returncode == 2
        said = " ".join(refused.stderr.replace("│", " ").split())
        assert words in said
        assert "only caffe, pycaffe, weights, deploy, packed, onnx, onnx-codebook." in said
    assert not (folder / "other").exists()


@pytest.mark.slow
def test_out_is_the_folder_of_the_study_in_every_command(run, tiny_study):
    folder = tiny_study.parent
    assert run("tune", tiny_study, "--trials", "2", "--out", "mine").returncode == 0
    for command in (
        ("check",),
        ("status",),
        ("plot", "front"),
        ("report",),
        ("export", "--trial", "0", "--format", "packed", "-o", "nets/x"),
        ("resume", "--trials", "3"),
    ):
        done = run(command[0], tiny_study, *command[1:], "--out", "mine")
        assert done.returncode == 0, (command, done.stderr)
    assert names(folder / "nets") == {"x.nuq"}
    assert {"study.journal", "front.png", "report.html", "tiny.nuq"} <= names(folder / "mine")
    assert not (folder / "out").exists()


def test_a_prefix_where_export_expects_the_folder_of_the_study(run, tiny_study):
    """What is -o now was --out once."""
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    refused = run("export", tiny_study, "--trial", "0", "--out", "results/net")
    assert refused.returncode == 6
    assert "study 'tiny': not found: there is no folder results/net" in refused.stderr
    assert "-o PREFIX says where the files go" in refused.stderr
    assert not (tiny_study.parent / "results").exists()


def test_unpack_and_quantize_take_the_old_spelling_of_output(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    assert run("unpack", "out/tiny/tiny.nuq", "--out", "old/x").returncode == 0
    assert run("unpack", "out/tiny/tiny.nuq", "-o", "new/x").returncode == 0
    assert names(tiny_study.parent / "old") == names(tiny_study.parent / "new")
    assert run("config", "tiny.prototxt", "tiny.caffemodel", "-o", "c.json").returncode == 0
    command = ("quantize", "tiny.prototxt", "tiny.caffemodel", "--config", "c.json", "--evaluator")
    assert run(*command, "evaluate.py:Agreement", "--out", "int8/x").returncode == 0
    assert (tiny_study.parent / "int8/x_deploy_weights.caffemodel").exists()


def test_verbose_lets_optuna_speak_wherever_it_stands(run, tiny_study):
    for arguments in (("-v", "tune", tiny_study), ("resume", tiny_study, "-v")):
        run(*arguments, "--trials", "1")
        assert logging.getLogger("optuna").level == logging.INFO
        logging.getLogger("optuna").setLevel(logging.WARNING)


def test_version(run):
    said = run("--version")
    assert (said.returncode, said.stdout, said.stderr) == (0, "autonuq 0.1.0\n", "")


def test_help_lists_every_command_with_the_first_line_of_its_docstring(run):
    shown = " ".join(run("--help").stdout.replace("│", " ").split())
    for name, module in COMMANDS.items():
        function = getattr(importlib.import_module(f"autonuq.cli.{module}"), name)
        assert f"{name} {function.__doc__.splitlines()[0]}" in shown


def test_inspect(run, tiny):
    document = json.loads(run("inspect", "tiny.prototxt", "tiny.caffemodel", "--json").stdout)
    jsonschema.validate(document, SCHEMAS["inspect"])
    rows = {row["name"]: row for row in document["layers"]}
    assert document["weights"] == 8 * 2 * 9 + 10 * 128
    assert (rows["conv"]["quantizable"], rows["conv"]["nuq"], rows["conv"]["shape"]) == (True, True, [8, 2, 3, 3])
    assert (rows["pool"]["quantizable"], rows["pool"]["nuq"]) == (True, False)
    assert rows["bn"]["reason"] == "is folded into 'conv'"
    shown = run("inspect", "tiny.prototxt", "tiny.caffemodel").stdout
    assert re.search(r"can carry a codebook +2 layers +5,696 bytes +100.0%", shown)


def test_inspect_on_a_chip(run, tiny):
    result = run("inspect", "tiny.prototxt", "tiny.caffemodel", "--chip", "ascend310", "--json")
    jsonschema.validate(json.loads(result.stdout), SCHEMAS["inspect"])
    rows = {row["name"]: row for row in json.loads(result.stdout)["layers"]}
    assert (rows["fc"]["marked"], rows["conv"]["marked"]) == (False, False)
    assert rows["fc"]["mark_reason"] == "fully connected: only newer compilers mark it"
    assert "144 bytes of weights" in rows["conv"]["mark_reason"]
    assert rows["fc"]["device_bytes"] == 512 * 4
    assert "marked" not in rows["pool"]
    shown = run("inspect", "tiny.prototxt", "tiny.caffemodel", "--chip", "ascend910").stdout
    assert "ATC on ascend910 would mark 0: none" in shown
    assert run("inspect", "tiny.prototxt", "tiny.caffemodel", "--chip", "ascend31").returncode == 2


def test_a_study_for_the_device(run, tiny_study):
    edit(tiny_study, "[search]", '[quantization]\ncodec = "ascend"\n[search]')
    tuned = run("tune", tiny_study)
    assert tuned.returncode == 0, tuned.stderr
    assert run("unpack", "out/tiny/tiny.nuq", "-o", "back").returncode == 0
    folder = tiny_study.parent
    fake = (folder / "out/tiny/tiny_fake_quant_weights.caffemodel").read_bytes()
    assert (folder / "back_fake_quant_weights.caffemodel").read_bytes() == fake


def test_config(run, tiny):
    assert run("config", "tiny.prototxt", "tiny.caffemodel", "-o", "config.json").returncode == 0
    document = json.loads((tiny / "config.json").read_text())
    assert list(document)[-3:] == ["conv", "pool", "fc"]


@pytest.mark.parametrize("algorithm", ["uniform", "nuq"])
def test_quantize(run, tiny, algorithm):
    cfg = 'override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize { num_steps: 16 } } }'
    (tiny / "quant.cfg").write_text(cfg if algorithm == "nuq" else "batch_num: 2")
    assert run("config", "tiny.prototxt", "tiny.caffemodel", "-o", "c.json", "--cfg", "quant.cfg").returncode == 0
    arguments = ("quantize", "tiny.prototxt", "tiny.caffemodel", "--config", "c.json", "-o", "q/x", "--evaluator")
    done = run(*arguments, "evaluate.py:Agreement")
    assert done.returncode == 0, done.stderr
    written = {f"q/x_{name}" for name in ("fake_quant_model.prototxt", "deploy_weights.caffemodel")}
    assert written <= set(done.stdout.split())
    codes = load_caffemodel(tiny / "q/x_deploy_weights.caffemodel")["fc"][0].values
    assert (len(set(codes.tolist())) <= 16) == (algorithm == "nuq")
    assert run(*arguments, "evaluate.py:Agrement").returncode == 7
    assert run(*arguments[:4], "none.json", *arguments[5:], "evaluate.py:Agreement").returncode == 4


def test_a_study_with_a_simplified_configuration(run, tiny_study):
    (tiny_study.parent / "quant.cfg").write_text(
        "batch_num: 2\nactivation_offset: false\n"
        'override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize { num_steps: 16 } } }\n'
    )
    edit(tiny_study, "[search]", '[quantization]\ncfg = "quant.cfg"\n[search]')
    tuned = run("tune", tiny_study)
    assert tuned.returncode == 0, tuned.stderr
    assert "calibration 0/1 2 forward passes" in tuned.stderr
    best = json.loads(run("status", tiny_study, "--json").stdout)["best"]
    assert best["levels"]["conv"] == 256


def test_nothing_satisfies(run, tiny_study):
    evaluator = tiny_study.parent / "evaluate.py"
    fail = "if Path(model_file).name == 'model.prototxt':\n            return 0.5\n        if not hasattr"
    edit(evaluator, "if not hasattr", fail)
    result = run("tune", tiny_study)
    assert result.returncode == 8, result.stderr
    assert "no trial satisfied" in result.stderr
    assert json.loads(run("status", tiny_study, "--json").stdout)["best"] is None
    assert run("report", tiny_study).returncode == 0
    assert run("export", tiny_study).returncode == 6


# Each mistake: what is done to the study's folder, the exit code, and what the message names.
def missing_model(folder):
    (folder / "tiny.prototxt").unlink()


def missing_weights(folder):
    (folder / "tiny.caffemodel").unlink()


def truncated_weights(folder):
    path = folder / "tiny.caffemodel"
    path.write_bytes(path.read_bytes()[:3000])


def syntax_error(folder):
    edit(folder / "tiny.prototxt", 'type: "InnerProduct"', 'type "InnerProduct"')


def unknown_field(folder):
    edit(folder / "tiny.prototxt", "num_output: 10", "num_outputs: 10")


def other_shape(folder):
    edit(folder / "tiny.prototxt", "num_output: 10", "num_output: 11")


def unsupported_type(folder):
    edit(folder / "tiny.prototxt", 'name: "prob" type: "Softmax"', 'name: "prob" type: "Softmaks"')


def unknown_key(folder):
    edit(folder / "study.toml", "trials = 8", "trails = 8")


def missing_evaluator_file(folder):
    (folder / "evaluate.py").unlink()


def missing_evaluator_class(folder):
    edit(folder / "study.toml", "evaluate.py:Agreement", "evaluate.py:Agrement")


def evaluator_does_not_load(folder):
    edit(folder / "evaluate.py", "import autonuq as nuq", "import autonuq as nuq, there_is_no_such_module")


def output_is_a_file(folder):
    (folder / "out").write_text("in the way")


def storage_is_no_database(folder):
    edit(folder / "study.toml", "[search]", '[search]\nstorage = "sqlite:///evaluate.py"')


def storage_folder_missing(folder):
    edit(folder / "study.toml", "[search]", '[search]\nstorage = "sqlite:///no/such/folder/s.db"')


def cycle(folder):
    edit(folder / "tiny.prototxt", 'type: "InnerProduct" bottom: "pool"', 'type: "InnerProduct" bottom: "prob"')


MISTAKES = [
    (missing_model, 3, ["tiny.prototxt", "No such file"]),
    (missing_weights, 3, ["tiny.caffemodel", "No such file"]),
    (truncated_weights, 3, ["tiny.caffemodel", "damaged"]),
    (syntax_error, 3, ["tiny.prototxt", "line 10, column 25", 'Expected ":"']),
    (unknown_field, 3, ["tiny.prototxt", "line 10, column 88", "num_outputs"]),
    (other_shape, 3, ["layer 'fc'", "(10, 128)", "(11, 128)"]),
    (unsupported_type, 3, ["layer 'prob'", "'Softmaks' is not supported", "did you mean 'Softmax'"]),
    (cycle, 3, ["layer 'fc'", "'prob', which no layer before it makes"]),
    (unknown_key, 6, ["study.toml", "'trails'", "did you mean 'trials'"]),
    (missing_evaluator_file, 7, ["evaluate.py", "not found"]),
    (missing_evaluator_class, 7, ["no class 'Agrement'", "Agreement"]),
    (evaluator_does_not_load, 7, ["evaluate.py", "there_is_no_such_module"]),
    (output_is_a_file, 6, ["output folder", "cannot be written"]),
    (storage_is_no_database, 6, ["sqlite:///", "cannot be used"]),
    (storage_folder_missing, 6, ["sqlite:///", "cannot be used"]),
]


@pytest.mark.parametrize(("mistake", "code", "words"), MISTAKES, ids=[entry[0].__name__ for entry in MISTAKES])
def test_mistakes(run, tiny_study, mistake, code, words):
    mistake(tiny_study.parent)
    result = run("tune", tiny_study)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not list(tiny_study.parent.glob("out/tiny/tiny_*"))
    checked = run("check", tiny_study)
    assert checked.returncode == code
    for word in words:
        assert word in checked.stderr


def test_storage_of_another_study(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    edit(tiny_study, 'name = "tiny"', 'name = "other"\nout = "out/tiny"')
    result = run("resume", tiny_study)
    assert result.returncode == 6
    assert "study 'other': not found" in result.stderr
    assert "it holds tiny" in result.stderr


def test_unwritable_plot(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    assert run("plot", tiny_study, "front", "-o", "evaluate.py/front.html").returncode == 6
    nowhere = run("report", tiny_study, "-o", "/proc/nowhere.html")
    assert nowhere.returncode == 6
    assert nowhere.stderr == "error: /proc/nowhere.html: cannot be used: No such file or directory\n"
    wrong = run("plot", tiny_study, "front", "-o", "front.gif")
    assert wrong.returncode == 2
    assert ".png" in wrong.stderr


def test_quiet_and_verbose(run, tiny_study):
    quiet = run("tune", tiny_study, "-q", "--trials", "2")
    assert quiet.returncode == 0
    assert quiet.stderr == ""
    assert "ratio " in quiet.stdout
    assert "\x1b" not in quiet.stdout
    again = run("-q", "tune", tiny_study, "-v")
    assert "Traceback" in again.stderr
    assert again.stderr.splitlines()[-1].startswith("error: study 'tiny': exists already")
    assert "Traceback" not in run("tune", tiny_study).stderr


def test_nearest_names(run, tiny_study):
    assert "Did you mean 'status'?" in run("statsu", tiny_study).stderr
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    for arguments, near in (
        (("plot", tiny_study, "histroy"), "history"),
        (("export", tiny_study, "--format", "paked"), "packed"),
        (("inspect", "tiny.prototxt", "tiny.caffemodel", "--chip", "ascend31"), "ascend310"),
    ):
        refused = run(*arguments)
        assert refused.returncode == 2
        assert f"Did you mean '{near}'?" in " ".join(refused.stderr.replace("│", " ").split())


def test_every_command_has_an_example(run):
    for name in COMMANDS:
        assert f"Example: autonuq {name}" in " ".join(run(name, "--help").stdout.split()), name


@pytest.mark.parametrize(
    "arguments", [("tune",), ("tune", "study.toml", "--trials", "0"), ("plot", "study.toml", "pie"), ("fly",)]
)
def test_usage(run, tiny_study, arguments):
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("command", ["status", "plot", "report", "export", "resume", "work"])
def test_a_study_that_was_never_started(run, tiny_study, command):
    before = set(tiny_study.parent.rglob("*"))
    result = run(command, tiny_study)
    assert result.returncode == 6
    assert "study 'tiny': not found" in result.stderr
    assert "start it with 'autonuq tune'" in result.stderr
    assert set(tiny_study.parent.rglob("*")) == before


def test_missing_study_file(run):
    result = run("tune", "none.toml")
    assert result.returncode == 6
    assert "none.toml: study file cannot be read" in result.stderr


def test_static_quantization_in_one_command(run, tiny):
    (tiny / "quant.cfg").write_text(
        'batch_num: 2 nuq_config { chip: "ascend310" } '
        'override_layer_configs { layer_name: "fc" calibration_config { nuq_quantize { num_steps: 16 } } }'
    )
    made = run("config", "tiny.prototxt", "tiny.caffemodel", "-o", "config.json", "--cfg", "quant.cfg")
    assert made.returncode == 0
    assert "warning: quant.cfg: on ascend310 no convolution" in made.stderr
    command = ["quantize", "tiny.prototxt", "tiny.caffemodel", "--config", "config.json", "--out", "nets/tiny"]
    result = run(*command, "--evaluator", "evaluate.py:Agreement")
    assert result.returncode == 0, result.stderr
    assert "metric  1 -> " in result.stdout
    assert "(satisfied)" in result.stdout
    assert "layer   fc: 16 levels" in result.stdout
    for line in result.stdout[result.stdout.index("wrote") :].splitlines()[1:]:
        assert (tiny / line.strip()).stat().st_size
    assert (tiny / "nets/tiny_nuq_layer_record.txt").read_text() == "fc"
    edit(tiny / "evaluate.py", "limit = 0.1", "limit = 0")
    edit(tiny / "evaluate.py", "return original_metric - new_metric <", "return original_metric - new_metric + 0.1 <")
    strict = run(*command, "--evaluator", "evaluate.py:Agreement")
    assert strict.returncode == 8
    assert "(not satisfied)" in strict.stdout
    lost = run(*command, "--evaluator", "evaluate.py:Nobody")
    assert lost.returncode == 7
