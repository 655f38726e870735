"""The examples do what their READMEs say; the LeNet study is run by `test_readme`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from square_detectors import draw, write_face_detector

from autonuq.evaluate.recipe import make_evaluator
from autonuq.study.study_file import load_task

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


def write_face_study(folder, pictures):
    """Write the example's study with 2 trials on 20 pictures, and return its path."""
    text = (EXAMPLES / "face_detector" / "study.toml").read_text().replace("trials = 20", "trials = 2")
    (folder / "study.toml").write_text(text.replace('folder = "pictures"', f'folder = "{pictures}"\ncount = 20'))
    return folder / "study.toml"


def tune_faces(folder, pictures):
    """Run that study in a folder that has the network, and check what it says."""
    write_face_study(folder, pictures)
    said = run("-c", "from autonuq.cli import main; main()", "tune", "study.toml", folder=folder)
    assert (folder / "out" / "report.html").exists()
    assert float(re.search(r"ratio +([\d.]+)x", said)[1]) > 3
    assert re.search(r"metric +1 -> (0\.9\d*|1)", said)


@pytest.fixture
def faces(tmp_path):
    """Return a folder with a made-up network of the example's kind, and pictures."""
    write_face_detector(tmp_path)
    draw(tmp_path / "pictures", 20, (240, 320))
    return tmp_path


def test_face_detector_scores(faces):
    task = load_task(write_face_study(faces, "pictures"))
    evaluator = make_evaluator(task.evaluator, task.source)
    assert evaluator.eval_model(str(task.source.model), str(task.source.weights), 20) == 1
    assert evaluator.count_objects(20) > 20


@pytest.mark.slow
def test_face_detector(faces):
    tune_faces(faces, "pictures")


@pytest.mark.slow
def test_face_detector_of_faces(shared, tmp_path):
    network = shared / "models" / "ultraface-rfb-320"
    for file in ("deploy.prototxt", "weights.caffemodel"):
        shutil.copy(network / file, tmp_path)
    tune_faces(tmp_path, shared / "data" / "imagenet200")
