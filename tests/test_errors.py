"""Messages are one line, say where, and map to the documented exit codes."""

import pytest

from autonuq import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [("Model", 3), ("Quantization", 4), ("Evaluator", 7), ("Study", 6)],
)
def test_exit_codes(kind, code):
    assert getattr(errors, f"{kind}Error").exit_code == code
    assert errors.RuntimeFailure.exit_code == 5


def test_where_comes_first():
    error = errors.ModelError("is wrong", path="a.prototxt", layer="conv1")
    assert str(error) == "a.prototxt, layer 'conv1': is wrong"
    assert str(errors.StudyError("gone", study="s")) == "study 's': gone"
    assert str(errors.AutonuqError("plain")) == "plain"


def test_names_from_damaged_files_stay_on_one_line():
    message = str(errors.ModelError("bad", layer="a\nb\x00\u202ec"))
    assert message == r"layer 'a\nb\x00\u202ec': bad"
