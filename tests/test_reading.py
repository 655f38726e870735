"""Whatever a file's content raises becomes one error that names the file; what is ours goes through."""

import re
import struct
import zlib

import pytest

from autonuq.errors import AutonuqError, EvaluatorError, StudyError
from autonuq.reading import reading


def raised_for(error):
    with pytest.raises(AutonuqError) as caught, reading("a.bin", StudyError, "is no list", what="order", layer="conv"):
        raise error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        zlib.error("odd"),
        struct.error("odd"),
        SyntaxError("odd"),
        OverflowError("odd"),
        OSError("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_library_raises_is_said_behind_what_is_wrong(error):
    found = raised_for(error)
    assert type(found) is StudyError
    assert str(found) == "a.bin, layer 'conv': order is no list: odd"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (EOFError(), "order is no list: EOFError"),
        (MemoryError(), "order is no list: it asks for more memory than there is"),
        (RecursionError("maximum depth"), "order is no list: it is nested too deeply"),
        (FileNotFoundError(2, "No such file or directory"), "order cannot be read: No such file or directory"),
        (ValueError("two\n lines"), "order is no list: two lines"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_says_little_is_said_in_words(error, said):
    assert str(raised_for(error)).endswith(said)


def test_errors_of_ours_and_interruptions_go_through():
    own = EvaluatorError("own", path="b")
    with pytest.raises(EvaluatorError, match="^b: own$"), reading("a", StudyError, "is no list"):
        raise own
    with pytest.raises(KeyboardInterrupt), reading("a", StudyError, "is no list"):
        raise KeyboardInterrupt


def test_what_a_file_makes_a_library_say_is_short():
    with pytest.raises(StudyError) as caught, reading("a", StudyError, "is no list"):
        raise ValueError("key " + "x" * 5000 + " is unknown")
    assert len(str(caught.value)) < 500
    assert re.search(r"is no list: key x+ \.\.\. x+ is unknown$", str(caught.value))
