"""What Windows lacks or refuses is not needed: every module is imported, and studies are run, as if on it."""

import subprocess
import sys

# Third-party packages see the system as it is: the names are taken away once they are loaded.
WITHOUT_POSIX = """
import builtins, importlib, os, pkgutil, signal, sys
import filelock, joblib, joblib.externals.loky, numpy, onnxruntime, optuna, plotly.io, sqlalchemy

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for owner, names in {
    os: (
        *("fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "setsid", "sched_getaffinity", "mkfifo"),
        *("uname", "fchmod", "getppid", "wait", "waitid", "WNOHANG", "O_DIRECTORY"),
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
assert "fcntl" not in sys.modules or sys.modules["fcntl"] is None
"""

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
        [sys.executable, *options, "-c", "\n".join(parts)], cwd=folder, capture_output=True, text=True, **environment
    )


def test_a_study_needs_nothing_that_windows_lacks(tiny_study):
    done = run(tiny_study.parent, WITHOUT_POSIX, EVERY_MODULE, COMMANDS.format(commands=STUDY))
    assert done.returncode == 0, done.stderr
    assert (tiny_study.parent / "report.html").stat().st_size > 1e6
    assert list(tiny_study.parent.glob("exported*"))
