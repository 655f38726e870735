"""`import amct_caffe` and `import caffe` without the runner, and what AMCT has that autonuq does not do."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import autonuq.amct as amct
from autonuq.amct.__main__ import main
from autonuq.errors import RuntimeFailure

ROOT = Path(__file__).parents[2]


@pytest.fixture
def amct_module(tmp_path, monkeypatch, capsys):
    """Run `python -m autonuq.amct` here; return it as a finished process."""

    def call(*options):
        monkeypatch.setattr(sys, "argv", ["autonuq.amct", *options])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(options, code, *capsys.readouterr())

    return call


@pytest.fixture
def change(amct_module):
    return lambda *options: amct_module(*options, "--target", "packages")


EACH = """
import sys
sys.path.append("packages")
for statement in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("caffe", "amct_caffe")]:
        del sys.modules[name]
    try:
        exec(statement, {})
        print("done")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


def tried(*statements):
    """Run statements, each where nothing was imported yet, in a process that finds what was installed."""
    command = [sys.executable, "-c", EACH, *statements]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def installed(tmp_path, change):
    result = change("--install")
    written = ["packages/amct_caffe.py", "packages/caffe.py"]
    assert (result.returncode, result.stdout.splitlines()) == (0, [f"wrote {path}" for path in written])
    return tmp_path


def test_every_import_works_in_any_order(installed):
    statements = [
        "import amct_caffe.auto_nuq; amct_caffe.auto_nuq; amct_caffe.init; import caffe; caffe.Net",
        "from amct_caffe.common.auto_calibration import AutoCalibrationEvaluatorBase; from caffe.io import Transformer",
        "from caffe.proto import caffe_pb2; import caffe.io; from amct_caffe.auto_nuq import AutoNuqEvaluatorBase",
        "import caffe, amct_caffe as amct; amct.set_cpu_mode(); caffe.set_mode_cpu(); caffe.proto.caffe_pb2.Datum()",
        "import amct_caffe.common.cmd_line_utils.data_handler as data; data.load_data; import caffe.io",
    ]
    assert tried(*statements) == ["done"] * len(statements)


def test_it_is_taken_away_again_to_the_last_file(installed, change):
    (installed / "packages/own.txt").write_text("somebody's")
    assert tried("import amct_caffe, caffe") == ["done"]
    assert change("--install").returncode == 0  # over the own ones
    result = change("--uninstall")
    assert result.stdout.splitlines() == ["removed packages/amct_caffe.py", "removed packages/caffe.py"]
    assert [path.name for path in (installed / "packages").rglob("*") if path.is_file()] == ["own.txt"]
    result = change("--uninstall")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "there is nothing that 'python -m autonuq.amct --install' wrote" in result.stderr


@pytest.mark.parametrize("file", ["amct_caffe/__init__.py", "amct_caffe.py"])
def test_somebody_else_s_amct_stays(tmp_path, change, file):
    path = tmp_path / "packages" / file
    path.parent.mkdir(parents=True)
    path.write_text("theirs = True\n")
    result = change("--install")
    assert result.returncode == 2
    assert result.stderr == f"error: there is another amct_caffe, {path}; nothing was written\n"
    assert path.read_text() == "theirs = True\n"
    assert not (tmp_path / "packages/caffe.py").exists()
    assert change("--uninstall").returncode == 2
    assert path.is_file()


def test_a_real_caffe_stays_what_scripts_import(installed, change):
    path = installed / "packages/caffe/__init__.py"
    path.parent.mkdir()
    path.write_text("real = True\n")
    result = change("--install")
    assert result.stdout.splitlines() == [
        "wrote packages/amct_caffe.py",
        f"left caffe to {path}, which scripts go on using",
    ]
    assert not (installed / "packages/caffe.py").exists()
    assert tried("import caffe, amct_caffe; amct_caffe.auto_nuq; import caffe as again; again.real") == ["done"]


def test_a_checkout_of_caffe_is_no_package(tmp_path, change):
    (tmp_path / "packages/caffe/python").mkdir(parents=True)
    assert change("--install").stdout.splitlines()[1] == "wrote packages/caffe.py"


@pytest.mark.parametrize("options", [["--instal"], ["--install", "--uninstall"], ["--target", "x"], ["--install", "x"]])
def test_wrong_options_are_one_line(amct_module, options):
    result = amct_module(*options)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: ")


REFUSED = [
    "from amct_caffe.tensor_decompose import auto_decomposition",
    "from amct_caffe import tensor_decomposition",
    "import amct_caffe.tensor_decompose as t; t.auto_decomposition('a', 'b')",
    "import amct_caffe as amct; amct.create_quant_retrain_config('c.json', 'm', 'w')",
    "from amct_caffe import create_quant_retrain_model",
    "import amct_caffe; amct_caffe.save_quant_retrain_model()",
    "from amct_caffe import quantize_preprocess",
]


def test_what_autonuq_does_not_do_is_said_in_one_sentence(installed):
    for said in tried(*REFUSED):
        assert said.startswith("RuntimeFailure: autonuq does not do what AMCT calls ")


def test_the_runner_says_so_in_one_line(tmp_path):
    (tmp_path / "script.py").write_text(f"\n{REFUSED[0]}\n")
    command = [sys.executable, "-m", "autonuq.amct", "script.py"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (RuntimeFailure.exit_code, 1)
    assert result.stderr.startswith("error: autonuq does not do what AMCT calls auto_decomposition: ")
    assert "(script.py, line 2)" in result.stderr


def test_names_that_nobody_has_are_missing_as_ever():
    with pytest.raises(RuntimeFailure, match="does not do what AMCT calls create_quant_retrain_config: it quantizes"):
        amct.create_quant_retrain_config  # noqa: B018
    with pytest.raises(AttributeError, match="amct_caffe has no attribute 'quantise_model'"):
        amct.quantise_model  # noqa: B018
    assert not hasattr(amct, "tensor")


def test_the_console_script_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("amct_caffe = "))
    name, value = (part.strip(' "') for part in line.split("="))
    assert callable(EntryPoint(name, value, "console_scripts").load())
