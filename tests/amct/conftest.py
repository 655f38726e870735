"""What AMCT's calls leave in the working directory goes to the test's own folder."""

import pytest


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Work in the test's folder, with a quiet screen, and return it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMCT_LOG_LEVEL", "ERROR")
    return tmp_path
