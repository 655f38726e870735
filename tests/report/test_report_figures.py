"""Every number of a figure is decided in its data object; these tests read values, not pictures."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from autonuq.records import LayerRecord, LossPart, StudyRecord, TrialRecord, Unit, decode_levels, encode_levels
from autonuq.report import FIGURES
from autonuq.report.data import (
    MOST_ROWS,
    REST,
    codebooks_data,
    curves_data,
    front_data,
    history_data,
    hurt_data,
    layers_data,
    predicted_data,
    timeline_data,
)
from autonuq.report.layer_figures import layers_figure
from autonuq.report.optimization import contour_data, importance_data, optuna_study
from autonuq.report.style import format_bytes


def trial(number, ratio, metric, satisfied, **more):
    return TrialRecord(number, "complete", ratio=ratio, metric=metric, satisfied=satisfied, **more)


def study(*trials, original_metric=0.9, layers=()):
    return StudyRecord("s", "fixed", original_metric, tuple(layers), trials, 10)


def texts_of(figure):
    """All that a reader can see or hover over, as one string."""
    return json.dumps(json.loads(figure.to_json()), ensure_ascii=False)


def test_kinds_are_sorted():
    assert list(FIGURES) == sorted(FIGURES)
    assert {"codebooks", "curves", "front", "history", "importance", "layers"} <= set(FIGURES)


def test_history_keeps_the_best_satisfied_ratio_so_far():
    data = history_data(
        study(
            trial(0, 9.0, 0.2, False),
            trial(1, 4.0, 0.9, True),
            TrialRecord(2, "failed", error="no number"),
            trial(3, 3.0, 0.9, True),
            trial(5, 6.0, 0.9, True, size_bytes=100),
            TrialRecord(6, "running"),
        )
    )
    assert data.numbers.tolist() == [0, 1, 3, 5]
    assert data.satisfied.tolist() == [False, True, True, True]
    np.testing.assert_array_equal(data.best_ratios, [np.nan, 4, 4, 6])
    np.testing.assert_array_equal(data.sizes_bytes, [np.nan, np.nan, np.nan, 100])


def test_history_sorts_by_trial_number():
    data = history_data(study(trial(4, 2.0, 0.9, True), trial(1, 5.0, 0.9, True)))
    assert data.numbers.tolist() == [1, 4]
    assert data.best_ratios.tolist() == [5, 5]


def test_front_holds_the_satisfied_trials_that_none_beats_in_both():
    data = front_data(
        study(
            trial(0, 2.0, 0.90, True),
            trial(1, 3.0, 0.88, True),
            trial(2, 2.5, 0.87, True),  # beaten by trial 1 in both
            trial(3, 3.0, 0.86, True),  # as small as trial 1, worse
            trial(4, 9.0, 0.10, False),
        )
    )
    assert data.larger_is_better
    assert data.history.numbers[data.front].tolist() == [1, 0]


def test_front_of_a_loss_improves_downwards():
    data = front_data(
        study(
            trial(0, 2.0, 0.31, True),
            trial(1, 3.0, 0.35, True),
            trial(2, 2.5, 0.36, True),
            trial(3, 8.0, 2.0, False),
            original_metric=0.3,
        )
    )
    assert not data.larger_is_better
    assert data.history.numbers[data.front].tolist() == [1, 0]
    assert "smaller is better" in texts_of(FIGURES["front"](study(trial(3, 8.0, 2.0, False), original_metric=0.3)))


def test_layers_set_bytes_and_levels_beside_float32(lenet):
    data = layers_data(lenet)
    best = lenet.best
    assert data.trial == best.number
    assert data.original_bytes.tolist() == [2000, 100_000, 1_600_000, 20_000]
    assert data.compressed_bytes.sum() == best.size_bytes
    assert data.original_shares.sum() == pytest.approx(1)
    assert data.compressed_shares.sum() == pytest.approx(1)
    assert data.levels.tolist() == list(lenet.layer_levels(best).values())


def test_layers_left_as_float_have_no_levels(deep):
    data = layers_data(deep)
    left_alone = np.array(data.treatments) == "float"
    assert left_alone.sum() == 3
    np.testing.assert_array_equal(np.isnan(data.levels), left_alone)
    np.testing.assert_array_equal(data.compressed_bytes[left_alone], data.original_bytes[left_alone])


def test_curves_are_in_bits_per_weight_and_mark_the_best_point(lenet):
    data = curves_data(lenet)
    assert [curve.name for curve in data.curves] == ["conv1", "conv2", "ip1", "ip2"]
    for curve, layer in zip(data.curves, lenet.layers, strict=True):
        assert curve.bits_per_weight.tolist() == [8 * rate / layer.weights for rate in layer.rates_bytes]
        assert curve.chosen == lenet.best.points[layer.name]


def test_curves_leave_out_layers_that_are_not_searched(deep):
    searched = [layer.name for layer in deep.layers if layer.treatment == "nuq"]
    assert [curve.name for curve in curves_data(deep).curves] == searched


@pytest.mark.parametrize("kind", FIGURES)
def test_an_empty_study_says_so(kind, empty):
    figure = FIGURES[kind](empty)
    assert len(figure.data) == 0
    (annotation,) = figure.layout.annotations
    assert annotation.text.startswith("no ")


@pytest.mark.parametrize("kind", ["front", "history"])
def test_only_failed_trials_are_no_points(kind):
    figure = FIGURES[kind](study(TrialRecord(0, "failed", error="x"), TrialRecord(1, "waiting")))
    assert figure.layout.annotations[0].text == "no finished trial yet"


@pytest.mark.parametrize("kind", FIGURES)
def test_150_layers_are_drawn_and_named(kind, deep):
    figure = FIGURES[kind](deep)
    assert len(figure.data) > 0
    if kind in {"codebooks", "curves", "importance", "layers"}:
        assert "inception_27f/3x3_reduce" in texts_of(figure)
        assert figure.layout.height > 150 * 15  # a row stays readable


def test_150_layers_do_not_fill_the_hover_box(deep):
    assert max(len(levels) for levels in history_data(deep).levels) < 80


def test_hover_tells_levels_and_bytes(lenet):
    best = lenet.best
    levels = ", ".join(f"{name} {count}" for name, count in lenet.layer_levels(best).items())
    (hover,) = [
        text
        for trace in FIGURES["history"](lenet).data
        for text in trace.customdata or ()
        if f"trial {best.number}<" in text and "it is exported" not in text
    ]
    assert levels in hover
    assert f"{best.size_bytes:,} bytes" in hover


def test_verdicts_differ_in_colour_and_in_symbol(lenet):
    traces = {trace.name: trace.marker for trace in FIGURES["history"](lenet).data}
    satisfied, unsatisfied = traces["satisfied"], traces["not satisfied"]
    assert satisfied.color != unsatisfied.color
    assert satisfied.symbol != unsatisfied.symbol


def test_all_trials_unsatisfied_has_no_best_line(lenet):
    record = replace(lenet, trials=tuple(replace(each, satisfied=False) for each in lenet.trials))
    assert [trace.name for trace in FIGURES["history"](record).data] == ["not satisfied"]
    assert FIGURES["layers"](record).layout.annotations[0].text == "no trial satisfied the constraint yet"
    assert len(FIGURES["curves"](record).data) == 4  # the curves, without a star


def test_the_limit_is_where_the_margins_say_it_is():
    record = study(
        trial(0, 2.0, 0.895, True, margin=math.log(0.5)),
        trial(1, 3.0, 0.88, False, margin=math.log(2)),
        trial(2, 9.0, 0.10, False, margin=7.0),
        trial(3, 9.0, 0.70, False, margin=1.0),
        trial(4, 5.0, 0.86, False, margin=0.1, margin_error=0.2),
    )
    assert record.limit == pytest.approx(0.89)
    assert "limit 0.89" in texts_of(FIGURES["front"](record))
    for told_nothing in (record.trials[2:], ()):
        assert replace(record, trials=told_nothing).limit is None


def test_the_limit_tells_which_way_the_metric_improves():
    assert not study(trial(0, 2.0, 0.95, True, margin=-0.5)).metric_rises
    assert study(trial(0, 2.0, 0.85, True, margin=-0.5)).metric_rises


def test_predictions_are_metrics():
    margins = {"margin": math.log(0.5), "predicted": math.log(2)}
    data = predicted_data(study(trial(0, 2.0, 0.895, True), trial(1, 2.0, 0.895, True, **margins)))
    assert data.numbers.tolist() == [1]
    assert data.predicted.tolist() == pytest.approx([0.88])
    assert data.measured.tolist() == [0.895]


def test_codebooks_show_the_levels_that_the_best_trial_keeps(lenet):
    data = codebooks_data(lenet)
    levels = lenet.layer_levels(lenet.best)
    assert {layer.name: len(layer.levels) for layer in data.layers} == levels
    assert [layer.counts.tolist() for layer in data.layers] == [list(layer.histogram) for layer in lenet.layers]
    assert not codebooks_data(study(layers=[replace(lenet.layers[0], histogram=(), codebooks=())])).layers


@pytest.mark.parametrize("levels", [(-128, 0, 127), tuple(range(-128, 128)), ()], ids=len)
def test_levels_survive_their_spelling(levels):
    assert decode_levels(encode_levels(levels)) == levels


def test_bits_per_weight_of_the_layers(lenet):
    data = layers_data(lenet)
    weights = np.array([layer.weights for layer in lenet.layers])
    np.testing.assert_allclose(data.bits_per_weight, 8 * data.compressed_bytes / weights)


def test_timeline_orders_the_trials_and_ends_running_ones_with_the_study(lenet):
    data = timeline_data(lenet)
    assert data.numbers.tolist() == list(range(40))
    assert data.outcomes[7] == "failed"
    assert data.outcomes[39] == "running"
    assert data.durations_s[0] == 52.5
    assert data.workers[:2] == ("box:4711", "box:4712")
    early = replace(lenet.trials[39], started=lenet.trials[0].started)
    assert timeline_data(replace(lenet, trials=(*lenet.trials[:39], early))).durations_s[1] == 38 * 60 + 52.5


def test_the_optuna_study_is_the_records(lenet):
    found = optuna_study(lenet)
    assert found.best_value == lenet.best.ratio
    trials = found.get_trials()
    finished = [each for each in lenet.trials if each.state == "complete"]
    assert [each.value for each in trials] == [each.ratio for each in finished]
    assert trials[0].params["ratio/ip1"] == 1_600_000 / next(
        row.size_bytes for row in lenet.layer_rows(finished[0]) if row.layer.name == "ip1"
    )


def test_importance_finds_the_layer_that_decides_the_drop(lenet):
    def drop(points):
        return 0.01 * points["conv2"]

    trials = [replace(each, metric=0.9124 - drop(each.points)) for each in lenet.trials if each.points]
    data = importance_data(replace(lenet, trials=tuple(trials)))
    assert data.names[0] == "conv2"
    assert data.importances.sum() == pytest.approx(1)
    assert contour_data(replace(lenet, trials=tuple(trials))).names == data.names[:2]


def test_few_trials_have_no_importance(lenet):
    assert not importance_data(replace(lenet, trials=lenet.trials[:5])).names


def test_names_are_escaped_and_long_ones_cut_only_on_the_axis():
    name = "<a href='http://x'>" + "very_long_layer_name" * 3
    layer = LayerRecord(name, "Convolution", 100, "nuq", "", (100, 50), (0.0, 2.0), (256, 4))
    record = study(trial(0, 8.0, 0.9, True, size_bytes=50, points={name: 1}), layers=[layer])
    for kind in FIGURES:
        assert "<a " not in texts_of(FIGURES[kind](record))
    figure = layers_figure(layers_data(record))
    (label,) = figure.layout.yaxis.ticktext
    assert "…" in label
    assert "very_long_layer_name" * 3 in figure.data[1].hovertext[0]


def test_zero_distortion_has_no_place_on_a_logarithmic_axis():
    layer = LayerRecord("fc", "InnerProduct", 100, "nuq", "", (100, 50), (0.0, 2.0), (256, 4))
    assert curves_data(study(layers=[layer])).curves[0].distortions.tolist() == [0.0, 2.0]
    assert FIGURES["curves"](study(layers=[layer])).data[0].y == (None, 2.0)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_723_000, "1.72 MB"), (2.5e9, "2.5 GB")]
)
def test_format_bytes(size, text):
    assert format_bytes(size) == text


def test_layers_that_hurt_come_by_their_loss_and_add_up(lenet):
    data = hurt_data(lenet)
    parts = {part.layer: part for part in lenet.loss_parts.layers}
    named = data.names[: data.layers]
    assert sorted(named, key=lambda name: -parts[name].share) == list(named)
    assert data.losses[: data.layers] == pytest.approx([0.006 * parts[name].share for name in named])
    assert data.losses.sum() == pytest.approx(0.006) == data.total
    assert data.size_bytes.sum() == lenet.best.size_bytes
    assert [data.loss_shares.sum(), data.byte_shares.sum()] == pytest.approx([1, 1])
    assert data.low[0] == pytest.approx(data.losses[0] / np.exp(0.4))
    assert data.high[-1] == pytest.approx(data.losses[-1] * np.exp(0.8))
    assert data.is_best and data.trial == lenet.best.number


def test_losses_of_layers_are_in_the_unit_of_losses_or_shares_where_the_limit_is_unknown(lenet):
    points = hurt_data(replace(lenet, unit=Unit("points", 100.0, "images")))
    assert (points.unit, points.total, points.total_error) == ("points", pytest.approx(0.6), pytest.approx(0.1))
    shares = hurt_data(replace(lenet, loss_parts=replace(lenet.loss_parts, loss=None, loss_error=None)))
    assert (shares.unit, shares.total) == ("%", None)
    assert shares.losses.sum() == pytest.approx(100)


def test_of_many_layers_those_that_hurt_most_have_a_row_each_and_the_others_one(deep):
    data = hurt_data(deep)
    searched = len(deep.loss_parts.layers)
    assert data.layers == MOST_ROWS and data.layers + data.others == searched
    assert data.names[MOST_ROWS] == f"{searched - MOST_ROWS} other layers"
    assert data.losses.sum() == pytest.approx(0.006)
    assert data.size_bytes.sum() == deep.best.size_bytes
    figure = FIGURES["hurt"](deep)
    assert deep.loss_parts.layers[0].layer in texts_of(figure)
    assert figure.layout.height < 800  # it is the first thing seen


def test_layers_that_do_not_hurt_share_a_row(lenet):
    shares = {"ip1": 0.899, "conv2": 0.001, "conv1": 0.0, "ip2": 0.0}
    parts = replace(lenet.loss_parts, layers=tuple(LossPart(name, share, 0.1) for name, share in shares.items()))
    data = hurt_data(replace(lenet, loss_parts=parts))
    assert data.names == ("ip1", "3 other layers", REST)
    assert data.loss_shares == pytest.approx([0.899, 0.001, 0.1])


def test_where_no_trial_is_satisfied_the_nearest_ones_layers_hurt(lenet):
    trials = tuple(replace(trial, satisfied=False) for trial in lenet.trials)
    other = replace(lenet, trials=trials)
    number = other.nearest().number
    data = hurt_data(replace(other, loss_parts=replace(lenet.loss_parts, trial=number)))
    assert data.trial == number and not data.is_best
    titled = FIGURES["hurt"](replace(other, loss_parts=replace(lenet.loss_parts, trial=number)))
    assert titled.layout.title.text == f"Which layers hurt under the plan nearest to the limit (trial {number})"


@pytest.mark.parametrize("kind", ["front", "history"])
def test_the_winner_has_a_marker_and_a_name(kind, lenet):
    best = lenet.best
    data = history_data(lenet)
    assert data.numbers[data.best] == best.number
    (trace,) = [trace for trace in FIGURES[kind](lenet).data if trace.name == f"best trial ({best.number})"]
    assert trace.text == (f"<b>trial {best.number}</b>",)
    place = (best.number, best.ratio) if kind == "history" else (best.ratio, best.metric)
    assert (trace.x[0], trace.y[0]) == pytest.approx(place)
    drawn = [trace.marker.symbol for trace in FIGURES[kind](lenet).data if trace.marker.symbol]
    assert drawn.count(trace.marker.symbol) == 1
    unsatisfied = replace(lenet, trials=tuple(replace(trial, satisfied=False) for trial in lenet.trials))
    assert "best trial" not in str([trace.name for trace in FIGURES[kind](unsatisfied).data])


def test_importance_says_of_which_value(lenet):
    figure = FIGURES["importance"](lenet)
    assert "for the metric" in figure.layout.title.text
    assert "for the metric" in figure.layout.xaxis.title.text


def test_a_ratio_far_beyond_all_others_does_not_press_them_together():
    near = study(trial(0, 9.6, 0.9, True), trial(1, 29.0, 0.5, False), trial(2, 13.0, 0.88, True))
    far = replace(near, trials=(*near.trials, trial(3, 1700.0, 0.0, False)))
    assert [FIGURES["history"](one).layout.yaxis.type for one in (near, far)] == [None, "log"]
    assert [FIGURES["front"](one).layout.xaxis.type for one in (near, far)] == [None, "log"]
