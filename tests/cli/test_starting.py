"""The commands before a study: `new` makes one that runs, `check` finds what is wrong with one."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial

import jsonschema
import numpy as np
import pytest
from picture_network import write_picture_network
from square_detectors import draw, write_ssd

import autonuq as nuq
from autonuq.cli.documents import SCHEMAS


def test_new_runs_as_it_is(run, tiny):
    made = run("new", "mine", "--model", "tiny.prototxt", "--weights", "tiny.caffemodel")
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["mine/study.toml", "mine/evaluate.py"]
    evaluator = (tiny / "mine/evaluate.py").read_text()
    assert "INPUTS = {'data': (4, 2, 8, 8)}" in evaluator
    assert 'OUTPUT = "prob"' in evaluator
    assert len(re.findall("TODO [1234]", evaluator)) == 4
    tuned = run("tune", "mine/study.toml")
    assert tuned.returncode == 0, tuned.stderr
    assert "metric  1 -> 0." in tuned.stdout
    for shown in (tuned.stdout, run("status", "mine/study.toml").stdout):
        assert "on random data: this says nothing about the network's task" in re.sub(r"\s+", " ", shown)

    again = run("new", "mine", "--model", "tiny.prototxt", "--weights", "tiny.caffemodel")
    assert again.returncode == 6
    assert "mine/study.toml: exists already" in again.stderr
    assert run("new", "other", "--model", "tiny.prototxt", "--weights", "none").returncode == 3
    assert not (tiny / "other").exists()
    assert run("new", "evaluate.py/x", "--model", "tiny.prototxt", "--weights", "tiny.caffemodel").returncode == 6


@pytest.fixture
def pictures(tmp_path, run_in):
    """Run commands beside a classifier of pictures."""
    write_picture_network(tmp_path)
    return partial(run_in, tmp_path)


OWN = ("--model", "net.prototxt", "--weights", "net.caffemodel")


def test_new_with_pictures_is_complete(pictures, tmp_path):
    made = pictures("new", "mine", *OWN, "--images", "pictures")
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == ["mine/study.toml"]
    study = tomllib.loads((tmp_path / "mine/study.toml").read_text())
    assert study["evaluator"]["kind"] == "agreement"
    assert study["evaluator"]["data"] == {"folder": "../pictures", "start": 16}
    assert study["evaluator"]["calibration"] == {"folder": "../pictures", "count": 16}
    assert study["evaluator"]["transform"] == {
        "resize": [16, 16],
        "channels": "RGB",
        "mean": 127.5,
        "scale": 0.007843,
    }
    assert "# Mean, scale, channels: a GUESS, please check" in (tmp_path / "mine/study.toml").read_text()
    tuned = pictures("tune", "mine/study.toml", "--trials", "3")
    assert tuned.returncode == 0, tuned.stderr


def test_new_takes_labels_and_what_is_said_of_the_preparation(pictures, tmp_path):
    said = ("--mean", "104,117,123", "--scale", "0.5")
    assert pictures("new", "mine", *OWN, "--images", "val", *said, "--channels", "BGR").returncode == 0
    text = (tmp_path / "mine/study.toml").read_text()
    study = tomllib.loads(text)
    assert study["evaluator"]["kind"] == "top1"
    assert study["evaluator"]["data"]["labels"] == "../val/labels.txt"
    assert study["evaluator"]["transform"]["mean"] == [104.0, 117.0, 123.0]
    assert study["evaluator"]["transform"]["scale"] == 0.5
    assert "GUESS" not in text
    np.save(tmp_path / "mean.npy", np.full(3, 127.5, np.float32))
    own = ("--mean", "mean.npy", "--scale", "0.0078", "--channels", "RGB")
    assert pictures("new", "filed", *OWN, "--images", "val", *own).returncode == 0
    transform = tomllib.loads((tmp_path / "filed/study.toml").read_text())["evaluator"]["transform"]
    assert (transform["mean_file"], "mean" in transform) == ("../mean.npy", False)
    assert pictures("check", "filed/study.toml").returncode == 0
    np.save(tmp_path / "image.npy", np.full((3, 20, 24), 127.5, np.float32))
    assert pictures("new", "cut", *OWN, "--images", "val", "--mean", "image.npy", *own[2:]).returncode == 0
    transform = tomllib.loads((tmp_path / "cut/study.toml").read_text())["evaluator"]["transform"]
    assert (transform["resize"], transform["crop"]) == ([20, 24], [16, 16])
    assert pictures("new", "other", *OWN, "--images", "val", *said).returncode == 0
    assert "# Channels: a GUESS" in (tmp_path / "other/study.toml").read_text()


def test_new_takes_the_array_of_an_npz_that_is_named(pictures, tmp_path):
    arrays = dict(np.load(tmp_path / "images.npz"))
    np.savez(tmp_path / "named.npz", test=(arrays["images"] * 127.5 + 127.5).astype(np.uint8), labels=arrays["labels"])
    assert "it has: test, labels" in pictures("new", "mine", *OWN, "--images", "named.npz").stderr
    assert pictures("new", "mine", *OWN, "--images", "named.npz:test").returncode == 0
    study = tomllib.loads((tmp_path / "mine/study.toml").read_text())
    assert study["evaluator"]["kind"] == "top1"
    assert study["evaluator"]["data"] == {"npz": "../named.npz", "images": "test", "start": 16}
    assert study["evaluator"]["transform"]["channels"] == "RGB"
    assert pictures("check", "mine/study.toml").returncode == 0
    assert pictures("new", "floats", *OWN, "--images", "images.npz").returncode == 0  # prepared already
    assert tomllib.loads((tmp_path / "floats/study.toml").read_text())["evaluator"]["transform"]["scale"] == 1.0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--images", "nothing"), 7, "nothing"),
        (("--images", "pictures", "--mean", "a"), 2, "must be a number or one for each channel"),
        (("--images", "pictures", "--channels", "GRB"), 2, "BGR, RGB"),
        (("--mean", "1"), 2, "give --images"),
    ],
)
def test_new_refuses(pictures, tmp_path, options, code, words):
    refused = pictures("new", "mine", *OWN, *options)
    assert refused.returncode == code, refused.stderr
    assert words in re.sub(r"[\s│]+", " ", refused.stderr)
    assert not (tmp_path / "mine").exists()


def test_new_refuses_pictures_for_a_network_that_takes_none(run, tiny):
    refused = run("new", "mine", "--model", "tiny.prototxt", "--weights", "tiny.caffemodel", "--images", ".")
    assert refused.returncode == 7
    assert "no input of the network takes pictures, which have 1 or 3 channels" in refused.stderr


def test_new_for_a_detector(run_in, tmp_path):
    write_ssd(tmp_path)
    draw(tmp_path / "pictures", 24)  # of no square up to three: rows of its output differ in number
    made = run_in(tmp_path, "new", "mine", *OWN, "--images", "pictures", "--mean", "0", "--scale", "0.00392157")
    assert made.returncode == 0, made.stderr
    study = tomllib.loads((tmp_path / "mine/study.toml").read_text())
    assert study["evaluator"]["kind"] == "detections"
    checked = run_in(tmp_path, "check", "mine/study.toml")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
@pytest.mark.parametrize("network", ["wechat-detect", "mtcnn-det3"])
def test_new_for_real_networks(run, shared, tmp_path, network):
    model, weights = (shared / "models" / network / name for name in ("deploy.prototxt", "weights.caffemodel"))
    made = run("new", tmp_path / "mine", "--model", model, "--weights", weights)
    assert made.returncode == 0, made.stderr
    checked = run("check", tmp_path / "mine/study.toml", "--json")
    assert checked.returncode == 0, checked.stdout
    batch = next(row for row in json.loads(checked.stdout)["checks"] if row["name"] == "one batch")
    assert batch["detail"] == "metric 1 of the original network"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_check_passes_estimates_and_leaves_nothing(run, tiny_study):
    before = files(tiny_study.parent)
    result = run("check", tiny_study)
    assert result.returncode == 0, result.stdout
    assert files(tiny_study.parent) == before
    assert "'tiny' is new, 8 trials" in result.stdout
    assert "trials (7)" in result.stdout  # the first is what int8 scores
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    before = files(tiny_study.parent)
    document = json.loads(run("check", tiny_study, "--json").stdout)
    jsonschema.validate(document, SCHEMAS["check"])
    assert document["estimate"]["trials"] == 6
    assert document["estimate"]["baseline_s"] == 0
    assert {path for path, data in files(tiny_study.parent).items() if before.get(path) != data} <= {
        tiny_study.parent / "out/tiny/study.journal"
    }
    assert json.loads(run("status", tiny_study, "--json").stdout)["trials"]["complete"] == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("def eval_model(self, model_file, weights_file, batch_num)", "def eval_model(self, model_file)", "too many"),
        ("def is_satisfied(self, original_metric, new_metric)", "def is_satisfied(self)", "too many"),
        ("return original_metric - new_metric < self.limit", "return new_metric > 2", "not even the original network"),
        ("return float(np.mean(", "return str(np.mean(", "must return one finite number"),
    ],
)
def test_check_of_the_evaluator(run, tiny_study, old, new, words):
    path = tiny_study.parent / "evaluate.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    result = run("check", tiny_study)
    assert result.returncode == 7, result.stdout
    assert words in result.stderr
    assert "skipped" in result.stdout


def test_check_says_time_memory_and_disk_in_a_narrow_terminal(run, tiny_study):
    lines = run("check", tiny_study).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert re.search(r"about .* with one worker *\n *part +time +share", text)
    for part in ("baseline", "calibration", "curves", "all layers at int8", "trials (7)", "export and report"):
        assert re.search(rf"{re.escape(part)} +[\d.]+ \w+ .*%", text), part
    assert re.search(r"one trial costs about .*; of it the evaluator takes", text)
    assert re.search(r"if int8 does not keep the limit: up to .* more", text)
    assert re.search(r"at most .* of memory with one worker, .* of disk", text)


def test_check_of_a_finished_study_foretells_its_end_only(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    tiny_study.write_text(tiny_study.read_text().replace("trials = 8", "trials = 2"))
    found = json.loads(run("check", tiny_study, "--json").stdout)["estimate"]
    assert found["trials"] == 0
    parts = (
        "baseline_s",
        "calibration_s",
        "ways_s",
        "curves_s",
        "int8_s",
        "foretelling_s",
        "trials_s",
        "float_search_s",
    )
    assert [found[part] for part in parts] == [0] * len(parts)
    assert found["total_s"] == found["export_s"] > 0


def test_what_warns_comes_after_the_table_and_what_fails_last(run, tiny_study):
    prototxt, evaluator = (tiny_study.parent / name for name in ("tiny.prototxt", "evaluate.py"))
    prototxt.write_text(prototxt.read_text().replace("kernel_size: 3 pad: 1", "kernel_size: 3 pad: 2 dilation: 2"))
    tiny_study.write_text(tiny_study.read_text() + 'float_layers = ["fc"]\n')
    warned = run("check", tiny_study)
    assert warned.returncode == 0
    assert warned.stderr.startswith("warning: no layer can carry a codebook")
    document = json.loads(run("check", tiny_study, "--json").stdout)
    jsonschema.validate(document, SCHEMAS["check"])
    (curves,) = (row for row in document["checks"] if row["name"] == "curves")
    assert "no layer can carry a codebook" in curves["warnings"][0]

    evaluator.write_text(
        evaluator.read_text().replace("return original_metric - new_metric <", "return 0 * new_metric >")
    )
    broken = run("check", tiny_study)
    assert broken.returncode == 7
    assert "see below" in broken.stdout
    assert "with one worker" not in broken.stdout
    lines = broken.stderr.strip().splitlines()
    assert lines[0] == "a step failed; nothing was started"
    assert lines[1].startswith("error: one batch: is_satisfied(")
    assert lines[-1] == "mend it, and check again"


def test_check_refuses_another_model(run, tiny_study):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    prototxt = tiny_study.parent / "tiny.prototxt"
    prototxt.write_text(prototxt.read_text() + "# another")
    result = run("check", tiny_study)
    assert result.returncode == 6
    assert "was started with another prototxt" in result.stderr
    shutil.rmtree(tiny_study.parent / "out")
    assert run("check", tiny_study).returncode == 0


STAGED = """
layer { name: "in" type: "Input" top: "x" include { stage: "deploy" }
        input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
layer { name: "data" type: "Data" top: "x" top: "label" exclude { stage: "deploy" } data_param { source: "a" } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "c"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" include { min_level: 2 } }
layer { name: "prob" type: "Softmax" bottom: "c" top: "prob" include { stage: "deploy" } }
"""


def test_level_and_stage_choose_the_network_of_a_command(run_in, tmp_path):
    (tmp_path / "net.prototxt").write_text(STAGED)
    nuq.Net(tmp_path / "net.prototxt", nuq.pycaffe.TEST, 2, ["deploy"]).save(tmp_path / "net.caffemodel")
    pair, chosen = ("net.prototxt", "net.caffemodel"), ("--stage", "deploy", "--level", "2")
    refused = run_in(tmp_path, "inspect", *pair)
    assert refused.returncode == 3
    assert "layer 'in' is left out by its include and exclude rules: set level or stage" in refused.stderr
    for options, names in ((chosen, ["in", "conv", "relu", "prob"]), (chosen[:2], ["in", "conv", "prob"])):
        shown = json.loads(run_in(tmp_path, "inspect", *pair, *options, "--json").stdout)
        assert [row["name"] for row in shown["layers"]] == names
    made = run_in(tmp_path, "new", "mine", "--model", pair[0], "--weights", pair[1], *chosen)
    assert made.stdout.split() == ["mine/study.toml", "mine/evaluate.py", "mine/net.prototxt"]
    assert run_in(tmp_path, "check", "mine/study.toml").returncode == 0
    assert run_in(tmp_path, "config", *pair, "-o", "c.json", *chosen).returncode == 0
    assert "conv" in json.loads((tmp_path / "c.json").read_text())
    evaluator = ("--evaluator", "mine/evaluate.py:Closeness")
    done = run_in(tmp_path, "quantize", *pair, "--config", "c.json", *evaluator, "-o", "out/q", *chosen)
    assert done.returncode in (0, 8), done.stderr
    fake = nuq.Net(tmp_path / "out/q_fake_quant_model.prototxt", tmp_path / "out/q_fake_quant_weights.caffemodel")
    assert fake._layer_names[-2:] == ["relu", "prob"]


def test_names_that_the_terminal_cannot_show_are_escaped(tiny):
    model = (tiny / "tiny.prototxt").read_text().replace('name: "relu"', 'name: "卷积"')
    (tiny / "tiny.prototxt").write_text(model, encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from autonuq.cli import main; main()",
        "inspect",
        "tiny.prototxt",
        "tiny.caffemodel",
        "--all",
    ]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, cwd=tiny, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert r"\u5377\u79ef" in shown.stdout
