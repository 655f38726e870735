"""What Windows lacks or refuses is not needed: every module is imported, and studies are run, as if on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_network import write_tiny

# Third-party packages see the system as it is: the names are taken away once they are loaded.
WITHOUT_POSIX = """
import builtins, importlib, os, pkgutil, signal, sys
import filelock, joblib, joblib.externals.loky, numpy, onnxruntime, optuna, plotly.io, sqlalchemy

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for owner, names in {
    os: (
        *("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "setsid", "sched_getaffinity", "mkfifo"),
        *("fchmod", "getppid", "wait", "waitid", "WNOHANG", "O_DIRECTORY"),
    ),
    signal: ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "SIGCHLD", "alarm", "pthread_sigmask", "setitimer"),
}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)
"""

EVERY_MODULE = """
import autonuq

for module in pkgutil.walk_packages(autonuq.__path__, "autonuq."):
    if module.name != "autonuq.graph.hosted.autonuq_layers":  # another Caffe's, which is not here
        importlib.import_module(module.name)
"""

COMMANDS = """
from autonuq.cli import main

for command in {commands}:
    sys.argv = ["autonuq", *command]
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (None, 0, 9), (command, ended.code)
"""
STILL_ABSENT = 'assert sys.modules["fcntl"] is None'


STUDY = (
    ("tune", "study.toml", "--trials", "3"),
    ("resume", "study.toml", "--trials", "5"),
    ("work", "study.toml"),
    ("report", "study.toml", "-o", "report.html"),
    ("export", "study.toml", "-o", "exported"),
    ("status", "study.toml", "--json"),
)


def run(folder, *parts, options=(), **environment):
    """Run parts of a program one after the other in a new Python."""
    return subprocess.run(
        [sys.executable, *options, "-c", "\n".join(parts)],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        **environment,
    )


@pytest.mark.slow
def test_a_study_needs_nothing_that_windows_lacks(tiny_study):
    done = run(tiny_study.parent, WITHOUT_POSIX, EVERY_MODULE, COMMANDS.format(commands=STUDY), STILL_ABSENT)
    assert done.returncode == 0, done.stderr
    assert (tiny_study.parent / "report.html").stat().st_size > 1e6
    assert list(tiny_study.parent.glob("exported*"))


AS_WINDOWS = f"""
import sys, warnings

sys.path.insert(0, {str(Path(__file__).parent)!r})
import as_windows

warnings.filterwarnings("error", category=EncodingWarning, module=r"autonuq\\.")
"""

NOTHING_REFUSED = "assert not as_windows.refused, as_windows.refused"

AMCT = """
import autonuq.amct as amct
from evaluate import Agreement

files = "tiny.prototxt", "tiny.caffemodel"
amct.create_quant_config("config.json", *files, [], 1, True, "quant.cfg")
for limit in (0.1, 0.1, 0.5):  # the second call goes on with the study, the third moves it out of its way
    evaluator = Agreement()
    evaluator.limit = limit
    amct.auto_nuq(*files, evaluator, "config.json", "record.txt", "T", n_trials=3)
assert os.path.isdir("T_study_1")
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has open is told by /proc")


def run_as_windows(folder, *parts):
    """Run parts of a program where files in use stay, and text is not UTF-8 by itself."""
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    options = ("-X", "warn_default_encoding")
    done = run(folder, AS_WINDOWS, *parts, NOTHING_REFUSED, options=options, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@linux
@pytest.mark.parametrize("storage", ["journal://study.journal", "sqlite:///study.db"], ids=["journal", "sqlite"])
def test_no_file_in_use_is_replaced(tiny_study, storage):
    with tiny_study.open("a") as file:
        file.write(f'storage = "{storage}"\n')  # of [search]
    run_as_windows(tiny_study.parent, COMMANDS.format(commands=STUDY + STUDY[1:]))


@pytest.mark.slow
@linux
def test_layers_may_be_called_what_no_file_can_be(tiny_study):
    write_tiny(tiny_study.parent, {"conv": "a:b/c*?|<d>. ", "fc": "aux", "bn": "AUX", "tiny": "con"})
    run_as_windows(tiny_study.parent, COMMANDS.format(commands=STUDY))


@pytest.mark.slow
@linux
def test_amct_needs_nothing_of_that(tiny):
    (tiny / "quant.cfg").write_text("common_config { nuq_quantize { num_steps: 32 num_of_iteration: 0 } }\n")
    run_as_windows(tiny, WITHOUT_POSIX, EVERY_MODULE, AMCT, STILL_ABSENT)


@pytest.mark.slow
@linux
def test_two_workers_need_nothing_of_that(tiny_study):
    commands = (("tune", "study.toml", "--trials", "4", "--jobs", "2"),)
    run_as_windows(tiny_study.parent, COMMANDS.format(commands=commands))
