"""`python -m autonuq` is the command."""

import os
import subprocess
import sys


def test_the_module_is_the_command_and_names_itself_so():
    done = subprocess.run(
        [sys.executable, "-m", "autonuq", "tune", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: python -m autonuq tune" in " ".join(done.stdout.split())
