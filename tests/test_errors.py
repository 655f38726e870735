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


LONG = "x" * 4000


def test_long_names_lose_their_middle_and_the_remedy_stays():
    error = errors.StudyError(
        f"The '{LONG}' key must be a number. Got '{LONG}' instead. Remove it.", path="/a/b.toml", layer=LONG, study=LONG
    )
    message = str(error)
    assert message.startswith("/a/b.toml, layer 'xxx")
    assert "' key must be a number. Got 'xxx" in message
    assert message.endswith("xxx' instead. Remove it.")
    assert len(message) < 600
    assert error.layer == LONG


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(errors.ModelError(f"wrong from the start: {'many words ' * 500} do this", path="p" * 900))
    assert message.startswith("p" * 900 + ": wrong from the start: many")
    assert message.endswith("words  do this")
    assert len(message) < 900 + 500


@pytest.mark.parametrize("message", ["\n" * 3000, "\U0010fe80" * 3000, f"it's {LONG} isn't", "a '" + "b" * 700])
def test_no_message_is_long(message):
    found = str(errors.EvaluatorError(message, path="a"))
    assert len(found) < 500
    assert found.isprintable()


def test_a_message_that_fits_is_left_alone():
    message = f"has layers '{'a' * 200}' and '{'b' * 200}'"
    assert str(errors.ModelError(message)) == message
