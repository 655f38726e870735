"""The example of many workers, on a PostgreSQL of our own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autonuq import load_study

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.postgres
@pytest.mark.slow
def test_many_workers(postgresql, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("out"))
    command = tmp_path / "bin" / "autonuq"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from autonuq.cli import main; main()" "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    script = tmp_path / "examples" / "many_workers" / "run.sh"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    call = [script, postgresql.url, "2", "8"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    record = load_study("many_workers", postgresql.url).record()
    assert [trial.state for trial in record.trials] == ["complete"] * 8
    assert (script.parent / "out" / "timeline.html").exists()
