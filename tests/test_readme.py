"""Everything that the README and CONTRIBUTING show is run: files are written, commands and code executed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from picture_network import write_picture_network

from autonuq.study.study_file import load_task

ROOT = Path(__file__).parent.parent


def blocks(document):
    """Return (language, text) of every code block."""
    return re.findall(r"```(\w+)\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


BLOCKS = blocks("README.md")


def run(command, folder):
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result


def autonuq(line, folder):
    if line.startswith("python "):
        return run([sys.executable, *line.split()[1:]], folder)
    return run([sys.executable, "-c", "from autonuq.cli import main; main()", *line.split()[1:]], folder)


@pytest.fixture
def own_network(tmp_path):
    """Return a folder with a network and the data that the README names."""
    write_picture_network(tmp_path)
    return tmp_path


def test_first_command_is_the_main_job_and_the_second_the_tests():
    bash = [body.strip() for kind, body in BLOCKS if kind == "bash"]
    assert bash[0] == "pip install . && autonuq tune studies/fashion_lenet.toml"
    assert bash[1] == "pip install '.[test]' && pytest"
    assert bash[1] in (ROOT / ".ci/run").read_text()


def test_fast_subset_is_there():
    command = next(body for kind, body in blocks(".github/CONTRIBUTING.md") if kind == "bash")
    paths = re.findall(r"tests/\S+", command)
    assert paths
    assert all((ROOT / path).exists() for path in paths)


def test_examples_of_contributing(tiny):
    bodies = [body for kind, body in blocks(".github/CONTRIBUTING.md") if kind == "python"]
    assert len(bodies) == 4  # layer type, codec, storage, evaluator
    run([sys.executable, "-c", "\n".join(bodies)], tiny)


BASE = """name = "x"
[model]
prototxt = "net.prototxt"
weights = "net.caffemodel"
[evaluator]
class = "evaluate.py:Top1"
evaluate_batch_num = 8
"""


@pytest.mark.parametrize(
    "document", ["README.md", "examples/many_workers/README.md", "examples/face_detector/README.md"]
)
def test_every_piece_of_a_study_file_is_one(document, tmp_path):
    for kind, body in blocks(document):
        if kind == "toml":
            path = tmp_path / "study.toml"
            path.write_text(body if body.startswith("# ") else BASE + body)
            load_task(path)


@pytest.mark.slow
def test_main_job(tmp_path):
    """The example reaches 40x with less than 1 point lost, from a copy of the repository."""
    for folder in ("examples", "studies"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("out"))
    result = autonuq("autonuq tune studies/fashion_lenet.toml", tmp_path)
    ratio = float(re.search(r"ratio +([\d.]+)x", result.stdout)[1])
    before, after = map(float, re.search(r"metric +([\d.]+) -> ([\d.]+)", result.stdout).groups())
    assert ratio >= 40
    assert (before - after) * 100 < 1
    for path in re.findall(r"^  (\S+)$", result.stdout, re.MULTILINE):
        assert (tmp_path / path).stat().st_size


@pytest.mark.slow
def test_own_network(own_network):
    for _, body in BLOCKS:
        title = re.match(r"# (\S+\.\w+)\n", body)
        if title:
            (own_network / title[1]).write_text(body)
    for kind, body in BLOCKS:
        if kind == "bash" and "pip" not in body:
            for line in body.strip().splitlines():
                autonuq(line, own_network)
        elif kind == "python" and not body.startswith("# "):
            run([sys.executable, "-c", body], own_network)
    for written in ("report.html", "results/net_deploy_model.prototxt", "results/amct_nuq_layer_record.txt"):
        assert (own_network / written).exists()
