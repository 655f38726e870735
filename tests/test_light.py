"""What is not loaded until it is used: looked for in `sys.modules` of fresh processes."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"google", "joblib", "kaleido", "numpy", "onnx", "onnxruntime", "optuna", "plotly", "sklearn", "sqlalchemy"}
LAZY = ("autonuq", "autonuq.report")
LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"


def loaded_by(code, folder=None):
    """Run code in a fresh process and return the packages that it loads beside those of a bare interpreter."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def loaded_by_command(*arguments, folder=None):
    code = f"""
import sys
from autonuq.cli import main
sys.argv = ["autonuq", *{list(map(str, arguments))}]
try:
    main()
except SystemExit as ended:
    assert not ended.code
{LOADED}
"""
    return loaded_by(code, folder)


@pytest.fixture(scope="module")
def bare():
    """Return what an interpreter loads by itself: `.pth` files may import packages."""
    return loaded_by(LOADED)


@pytest.mark.parametrize("package", LAZY)
def test_importing_a_package_loads_nothing_heavy(package, bare):
    assert not (loaded_by(f"import {package}\n{LOADED}") - bare) & HEAVY


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_asking_for_help_loads_nothing_heavy(option, bare):
    assert not (loaded_by_command(option) - bare) & HEAVY


def test_looking_at_a_study_in_a_journal_loads_no_database_no_figures_and_no_engine(run, tiny_study, bare):
    assert run("tune", tiny_study, "--trials", "2").returncode == 0
    assert (tiny_study.parent / "out/tiny/study.journal").exists()
    loaded = loaded_by_command("status", tiny_study, folder=tiny_study.parent)
    assert "optuna" in loaded
    assert not (loaded - bare) & {"onnxruntime", "plotly", "sklearn", "sqlalchemy"}


def test_a_network_that_is_not_run_needs_no_engine(tiny, bare):
    loaded = loaded_by_command("inspect", "tiny.prototxt", "tiny.caffemodel", folder=tiny)
    assert "onnx" in loaded
    assert not (loaded - bare) & {"onnxruntime", "optuna", "plotly", "sklearn", "sqlalchemy"}


@pytest.mark.parametrize("package", LAZY)
def test_every_name_of_a_lazy_package_is_there(package):
    module = importlib.import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'none'"):
        module.none  # noqa: B018


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_and_the_interpreter_find_the_same(package):
    module = importlib.import_module(package)
    found = {}
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname: node.module for alias in node.names if alias.asname}
    assert sorted(found) == module.__all__
    for name, owner in found.items():
        assert getattr(importlib.import_module(owner), name) is getattr(module, name)


def test_rooms_are_attributes_of_the_package():
    code = "import autonuq; autonuq.search.RateDistortionSampler; autonuq.amct.auto_nuq; autonuq.pycaffe.Net"
    assert "onnx" in loaded_by(f"{code}; autonuq.quant.atc.compress; autonuq.graph.files.load_graph\n{LOADED}")
