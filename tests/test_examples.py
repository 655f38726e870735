"""The examples do what their READMEs say; the LeNet study is run by `test_readme`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(*command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("folder", [path for path in EXAMPLES.iterdir() if path.is_dir()], ids=lambda path: path.name)
def test_readme_says_what_it_shows_how_long_it_takes_and_what_to_expect(folder):
    text = (folder / "README.md").read_text()
    assert all(f"**{part}**" in text for part in ("What it shows", "How long", "What to expect"))


def test_plain_optuna(tmp_path):
    lines = run(EXAMPLES / "plain_optuna" / "search.py", folder=tmp_path)
    (own, lost), (tpe, _) = (map(float, found) for found in re.findall(r"([\d.]+) times smaller, (-?[\d.]+)", lines))
    assert own > max(8, 1.03 * tpe)
    assert lost <= 0.01
    imported = re.findall(r"^(?:import|from) (\w+)", (EXAMPLES / "plain_optuna" / "search.py").read_text(), re.M)
    assert set(imported) - set(sys.stdlib_module_names) == {"numpy", "optuna", "autonuq"}


@pytest.mark.slow
def test_amct_script(tmp_path):
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("out"))
    run("-m", "autonuq.amct", tmp_path / "examples/amct_script/auto_nuq.py", "results", folder=tmp_path)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names >= {
        "config.json",
        "record.txt",
        "lenet_deploy_model.prototxt",
        "lenet_deploy_weights.caffemodel",
        "lenet_fake_quant_model.prototxt",
        "lenet_fake_quant_weights.caffemodel",
        "lenet_nuq_layer_record.txt",
    }


@pytest.mark.slow
def test_face_detector(shared, tmp_path):
    network = shared / "models" / "ultraface-rfb-320"
    options = ("--count", 10, "--trials", 2, "--loss", 0.5, "--out", tmp_path / "out")
    paths = (network / "deploy.prototxt", network / "weights.caffemodel", shared / "data" / "imagenet200")
    lines = run(EXAMPLES / "face_detector" / "tune.py", *paths, *options, folder=tmp_path)
    boxes = int(re.search(r"(\d+) boxes in 10 pictures", lines)[1])
    ratio, f1 = map(float, re.search(r"ratio ([\d.]+)x, F1 against the float network ([\d.]+)", lines).groups())
    assert boxes > 0
    assert ratio > 3
    assert f1 > 0.5
    assert (tmp_path / "out" / "report.html").exists()
