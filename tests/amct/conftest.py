"""What AMCT's calls leave in the working directory goes to the test's own folder."""

import pytest


@pytest.fixture(autouse=True)
def in_own_folder(working_directory):
    return working_directory
