"""What notebooks show of studies, their best trial and curves; evaluators that are typed into one, and its errors."""

import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest

import autonuq as nuq
from autonuq.search import Curve


class Cells(HTMLParser):
    """Collects the rows of a table and the points of a line."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.points = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag == "polyline":
            self.points = [tuple(map(float, pair.split(","))) for pair in dict(attrs)["points"].split()]

    def handle_data(self, data):
        if self.rows:
            self.rows[-1].append(data)


def test_curve():
    shown = Cells(Curve("<conv>", np.array([300, 200, 100]), np.array([0.0, 1.0, 4.0]))._repr_html_())
    assert shown.rows == [["levels", "bytes", "distortion"], ["300", "0"], ["200", "1"], ["100", "4"]]
    assert shown.points == [(320, 120), (160, 90), (0, 0)]
    assert "<conv>" not in Curve("<conv>", np.array([3]), np.array([0.0]))._repr_html_()


def test_study_and_best(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    monkeypatch.syspath_prepend(tiny)
    from evaluate import Agreement

    study = nuq.tune("tiny.prototxt", "tiny.caffemodel", Agreement(), out="out", n_trials=3)
    page = study._repr_html_()
    assert "3 of 3 trials" in page
    assert f"best {study.best.ratio:.2f}x" in page
    assert [row[:2] for row in Cells(page).rows[1:]] == [[name, str(k)] for name, k in study.best.levels.items()]
    assert Cells(study.best._repr_html_()).rows[1:] == [[name, str(k)] for name, k in study.best.levels.items()]
    assert type(study.optuna) is optuna.Study  # so that trials_dataframe and all else stays Optuna's
    nuq.write_report(study, tiny / "report.html")
    assert f"{study.best.ratio:.2f}× smaller" in (tiny / "report.html").read_text()


SETUP = """
import time
import numpy as np
import autonuq as nuq

PAUSE_S, LIMIT = 0.0, 0.3
images = np.random.default_rng(5).standard_normal((32, 2, 8, 8), np.float32)

def decide(model_file, weights_file):
    return nuq.Net(model_file, weights_file).forward_all(data=images)["prob"].argmax(1)

labels = decide("tiny.prototxt", "tiny.caffemodel")

def tune(**options):
    return nuq.tune("tiny.prototxt", "tiny.caffemodel", Typed(), out="out/x", n_trials=6, **options)
"""
TYPED = """
class Typed(nuq.Evaluator):
    evaluate_batch_num = 1

    def eval_model(self, model_file, weights_file, batch_num):
        time.sleep(PAUSE_S)
        {}
        return float((decide(model_file, weights_file) == labels).mean())

    def is_satisfied(self, original_metric, new_metric):
        return original_metric - new_metric < LIMIT
"""
RIGHT, WRONG = TYPED.format("pass"), TYPED.format("no_such_name")
FAILS_THRICE = TYPED.format("self.calls = getattr(self, 'calls', 0) + 1; assert not 5 <= self.calls <= 7")
INTERRUPT = "import _thread, threading; threading.Timer(2.5, _thread.interrupt_main).start(); PAUSE_S = 0.5"


@pytest.fixture
def executed(tiny, monkeypatch):
    """Execute cells in a fresh kernel, in the folder of `tiny`; return the outputs of each."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    )

    def execute(*cells):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        resources = {"metadata": {"path": str(tiny)}}
        nbclient.NotebookClient(book, timeout=240, resources=resources, allow_errors=True).execute()
        return [cell.outputs for cell in book.cells]

    return execute


def error_of(outputs):
    """Return the error that a cell ended with, and check that nothing but the progress stands before it."""
    *lines, error = outputs
    assert [line.output_type for line in lines] in ([], ["display_data"])
    assert error.output_type == "error"
    return f"{error.ename}: {error.evalue}"


def line_of(outputs):
    """Return the one line of progress that a cell shows."""
    lines = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
    assert len(lines) == 1, "one output, replaced"
    assert not [output for output in outputs if output.output_type == "stream"], "and nothing else"
    return lines[0]


def text_of(outputs):
    return outputs[-1].data["text/plain"]


@pytest.mark.engines
@pytest.mark.slow
def test_an_evaluator_in_a_cell_its_errors_and_how_it_goes_on(executed):
    fingerprint = "from autonuq.evaluate.evaluator import evaluator_fingerprint; evaluator_fingerprint(Typed())"
    outputs = dict(
        enumerate(
            executed(
                SETUP,
                WRONG,
                "study = tune()",  # 2: fails in the first call
                RIGHT,
                "study = nuq.resume('out/x', evaluator=Typed())\nstudy",  # 4: corrected before anything was measured
                "study.best.number, study.best.ratio, len(study.front())",
                "tune()",  # 6: again
                RIGHT.replace("pass", "pass  # another text"),
                "tune(load_if_exists=True)",  # 8: another evaluator
                "nuq.resume('out/x', evaluator=Typed(), corrected=True, trials=7).best.ratio",  # 9
                INTERRUPT,
                "nuq.resume('out/x', evaluator=Typed(), trials=40)",  # 11
                "PAUSE_S = 0.0",
                "nuq.resume('out/x', evaluator=Typed(), trials=14, progress=False).record().counts.complete",  # 13
                "nuq.resume('out/x', evaluator=Typed(), trials=20, jobs=2).record().counts.complete",  # 14
                fingerprint,
            )
        )
    )
    assert "NameError: name 'no_such_name' is not defined" in error_of(outputs[2])
    assert "baseline 0/1" in line_of(outputs[2][:1])
    assert line_of(outputs[4]).startswith("x [####################] 6/6  best ")
    assert outputs[4][-1].data["text/plain"] == "Study('x')"
    assert "Study x: 6 of 6 trials" in outputs[4][-1].data["text/html"]
    assert "load_if_exists=True" in error_of(outputs[6]) and len(outputs[6]) == 1
    assert "corrected=True" in error_of(outputs[8]) and len(outputs[8]) == 1
    assert text_of(outputs[9])
    assert error_of(outputs[11]).startswith("KeyboardInterrupt")
    assert line_of(outputs[11][:1]).startswith("x [")
    assert [output.output_type for output in outputs[13]] == ["execute_result"]
    assert text_of(outputs[13]) == "14"
    assert text_of(outputs[14]) == "20"
    again = executed(SETUP, RIGHT.replace("pass", "pass  # another text"), fingerprint, RIGHT, fingerprint)
    assert text_of(again[2]) == text_of(outputs[15]), "a kernel that was started again"
    assert text_of(again[4]) != text_of(outputs[15])
    later = executed(SETUP, RIGHT.replace("pass", "pass  # another text"), "tune(load_if_exists=True).best.ratio")
    assert text_of(later[2])


@pytest.mark.engines
@pytest.mark.slow
def test_an_evaluator_that_fails_in_some_trials(executed):
    outputs = executed(
        SETUP,
        FAILS_THRICE,
        "tune()",
        RIGHT,
        "nuq.resume('out/x', evaluator=Typed(), corrected=True, trials=8).record().counts",
    )
    assert "AssertionError" in error_of(outputs[2])
    assert text_of(outputs[4]).startswith("Counts(complete=5, ") and "failed=3" in text_of(outputs[4])
