"""What notebooks show of studies, their best trial and curves."""

from html.parser import HTMLParser

import numpy as np
import optuna

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
