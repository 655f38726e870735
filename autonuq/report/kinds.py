"""The kinds of figures: what ``autonuq plot``, the report page and the dashboard offer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import plotly.graph_objects as go

from autonuq.records import StudyRecord
from autonuq.report.data import (
    codebooks_data,
    curves_data,
    front_data,
    history_data,
    hurt_data,
    layers_data,
    predicted_data,
    timeline_data,
)
from autonuq.report.layer_figures import (
    codebooks_figure,
    contour_figure,
    curves_figure,
    hurt_figure,
    importance_figure,
    layers_figure,
)
from autonuq.report.optimization import contour_data, importance_data
from autonuq.report.trial_figures import front_figure, history_figure, predicted_figure, timeline_figure

FIGURES: Mapping[str, Callable[[StudyRecord], go.Figure]] = MappingProxyType(
    {
        "codebooks": lambda record: codebooks_figure(codebooks_data(record)),
        "contour": lambda record: contour_figure(contour_data(record)),
        "curves": lambda record: curves_figure(curves_data(record)),
        "front": lambda record: front_figure(front_data(record)),
        "history": lambda record: history_figure(history_data(record)),
        "hurt": lambda record: hurt_figure(hurt_data(record)),
        "importance": lambda record: importance_figure(importance_data(record)),
        "layers": lambda record: layers_figure(layers_data(record)),
        "predicted": lambda record: predicted_figure(predicted_data(record)),
        "timeline": lambda record: timeline_figure(timeline_data(record)),
    }
)
"""Every kind of figure, sorted by name."""
