"""How a study's progress is put into words, and where they are shown."""

import io
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from autonuq.records import LayerRecord, StudyRecord, TrialRecord
from autonuq.study.display import Line, describe, progress_line, standing
from autonuq.study.task import Progress, tell_nobody
from autonuq.terminal import duration

LAYER = LayerRecord("conv", "Convolution", 1000, "nuq", "", (1000, 100), (0.0, 1.0), (256, 4))


def study(*trials, target=10):
    return StudyRecord("s", "entropy", 0.9, (LAYER,), trials, target)


def scored(number, satisfied, ratio, seconds=2.0, origin="sampler"):
    return TrialRecord(number, "complete", ratio, 0.89, satisfied, size_bytes=200, origin=origin, duration_s=seconds)


def test_before_the_first_trial():
    now = standing(study())
    assert (now.done, now.target, now.best, now.feasible, now.left_s, now.running) == (0, 10, None, None, None, ())
    assert describe(now, 4000, datetime.now(UTC)) == "0/10  none satisfied yet"


def test_two_workers():
    at = datetime(2026, 1, 1, 12, 0, 7, tzinfo=UTC)
    running = [
        TrialRecord(4, "running", size_bytes=80, started="2026-01-01T12:00:02+00:00", worker="a:1"),
        TrialRecord(5, "running"),
    ]
    copy = scored(3, True, 20, 0.01, "copy of 0")
    now = standing(study(scored(0, True, 20), scored(1, False, 40), TrialRecord(2, "failed"), copy, *running))
    assert now.done == 4
    assert now.left_s == 6 / 2 * 2.0
    assert describe(now, 4000, at) == ("4/10  best 20.00x at 0.89  67% feasible  6.0 s left  now #4 50.0x 5 s, #5")


def test_many_workers_are_counted():
    running = [TrialRecord(number, "running") for number in range(8)]
    assert describe(standing(study(*running)), 4000, datetime.now(UTC)).endswith("now #0, #1, #2 and 5 more")


def test_durations():
    assert [duration(seconds) for seconds in (0.04, 9.9, 59, 61, 7384)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min 01 s",
        "2 h 03 min",
    ]


STEP = Progress("curves", "<conv>", 3, 4)


class Tty(io.StringIO):
    def isatty(self):
        return True


def shown(stream, monkeypatch, wanted=None, error=None):
    """Return what is written for one step of a study that has no storage yet."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with suppress(ValueError, KeyboardInterrupt), progress_line("mine", "journal:///nowhere/x", wanted) as show:
        show(STEP)
        if error is not None:
            raise error
    assert not [thread for thread in threading.enumerate() if thread.name == "autonuq display"]
    return stream.getvalue()


def test_nothing_in_a_pipe_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in the logs of some CI
    assert shown(io.StringIO(), monkeypatch) == ""
    monkeypatch.delenv("FORCE_COLOR")
    assert shown(io.StringIO(), monkeypatch, wanted=True) == "curves 3/4 <conv>\n"


def test_silence(monkeypatch):
    assert shown(Tty(), monkeypatch, wanted=False) == ""
    with progress_line("mine", "journal:///nowhere/study.journal", False) as show:
        assert show is tell_nobody


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ValueError()], ids=["end", "Ctrl-C", "error"])
def test_a_terminal_has_its_cursor_again(monkeypatch, error):
    text = shown(Tty(), monkeypatch, error=error)
    assert "curves 3/4  <conv>" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is shown again"
    assert text.endswith("\n") or text.rindex("\n") > text.rindex("<conv>")


def test_a_dumb_terminal_gets_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Tty())
    monkeypatch.setenv("TERM", "dumb")
    with progress_line("mine", "journal:///nowhere/study.journal", None) as show:
        assert show is tell_nobody


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["end", "Ctrl-C"])
def test_a_notebook_has_one_output_that_is_replaced(monkeypatch, error):
    outputs = []

    class Handle:
        def display(self, line):
            outputs.append([line])

        def update(self, line):
            outputs[-1].append(line)

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(DisplayHandle=Handle))
    assert shown(Tty(), monkeypatch, error=error) == ""
    assert len(outputs) == 1
    assert set(outputs[0]) == {Line("mine", 3, 4, "curves 3/4  <conv>")}
    assert "&lt;conv&gt;" in outputs[0][0]._repr_html_() and "<conv>" not in outputs[0][0]._repr_html_()
    assert str(outputs[0][0]) == "mine [###############     ] curves 3/4  <conv>"
    outputs.clear()
    with pytest.raises(ValueError, match="refused"), progress_line("mine", "journal:///nowhere/x.journal", None):
        raise ValueError("refused")
    assert not outputs, "what is refused before the first step leaves its error alone"
