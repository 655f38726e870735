"""What Windows lacks is not needed: every module is imported, and a study is run, where it is missing."""

import subprocess
import sys
import textwrap

# Third-party packages see the system as it is: the names are taken away once they are loaded.
WITHOUT_POSIX = """
import builtins, importlib, os, pkgutil, signal, sys
import filelock, joblib, joblib.externals.loky, numpy, onnxruntime, optuna, plotly.io, sqlalchemy

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for owner, names in {
    os: ("getuid", "geteuid", "getpgid", "killpg", "setsid", "sched_getaffinity", "mkfifo", "uname", "fchmod"),
    signal: ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGALRM", "alarm", "pthread_sigmask"),
}.items():
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)

def refuse(*_):
    raise AssertionError("forked")

os.fork = refuse
import autonuq

for module in pkgutil.walk_packages(autonuq.__path__, "autonuq."):
    if module.name != "autonuq.graph.hosted.autonuq_layers":  # another Caffe's, which is not here
        importlib.import_module(module.name)
from autonuq.cli import main

for command in (
    ("tune", "study.toml", "--trials", "3"),
    ("resume", "study.toml", "--trials", "5"),
    ("report", "study.toml", "-o", "report.html"),
    ("export", "study.toml", "-o", "exported"),
):
    sys.argv = ["autonuq", *command]
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (None, 0, 9), (command, ended.code)
assert "fcntl" in sys.modules and sys.modules["fcntl"] is None
"""


def test_a_study_needs_nothing_that_windows_lacks(tiny_study):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_POSIX)], cwd=tiny_study.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tiny_study.parent / "report.html").stat().st_size > 1e6
    assert list(tiny_study.parent.glob("exported*"))
