"""What `compare` sets side by side, decided in its data object."""

from dataclasses import replace

import pytest

from autonuq.records import MEANING, RANDOM_DATA, Confirmation, Unit
from autonuq.report.comparison import Compared, comparison_data, comparison_figure

POINTS = Unit("points", 100.0, "images")
NETWORK = {"sha256 weights": "aa", "evaluator": "evaluate.py:Top1"}


def column(record, number=None, label=""):
    trial = record.best if number is None else record.trials[number]
    return Compared(label or record.name, record, trial)


@pytest.fixture
def first(lenet):
    return replace(lenet, name="first", provenance=NETWORK, unit=POINTS)


@pytest.fixture
def second(first):
    """The same network and metric, the trials of which lose twice as much at the same ratios."""
    trials = tuple(
        one if one.metric is None else replace(one, metric=0.9124 - 2 * (0.9124 - one.metric)) for one in first.trials
    )
    return replace(first, name="second", trials=trials)


def test_fronts_are_losses_over_ratios_in_the_metrics_unit(first, second):
    data = comparison_data([column(first), column(second)])
    assert data.unit == "points"
    assert not data.reservations
    best = first.best
    assert data.chosen[0] == pytest.approx((best.ratio, 100 * (0.9124 - best.metric)))
    assert data.limits[0] == pytest.approx(1.0, rel=1e-3)
    for ratios, losses in zip(data.ratios, data.losses, strict=True):
        assert list(ratios) == sorted(ratios, reverse=True)
        assert list(losses) == sorted(losses, reverse=True)
    assert data.losses[1] == pytest.approx(2 * data.losses[0])


def test_layers_come_by_their_difference_in_bytes(first):
    one, other = column(first, 0), column(first, 30)
    data = comparison_data([one, other])
    sizes = [{row.layer.name: row.size_bytes for row in first.layer_rows(each.trial)} for each in (one, other)]
    assert {layer.layer for layer in data.layers} == {"conv1", "conv2", "ip1", "ip2"}
    assert [layer.spread_bytes for layer in data.layers] == sorted(
        (abs(sizes[0][name] - sizes[1][name]) for name in sizes[0]), reverse=True
    )
    ip1 = next(layer for layer in data.layers if layer.layer == "ip1")
    assert ip1.size_bytes == (sizes[0]["ip1"], sizes[1]["ip1"])
    assert ip1.levels == tuple(first.layer_levels(each.trial)["ip1"] for each in (one, other))


def test_of_different_networks_only_ratio_and_loss_are_compared(first, deep):
    other = replace(deep, provenance={**NETWORK, "sha256 weights": "bb"}, unit=POINTS)
    data = comparison_data([column(first), column(other)])
    assert data.layers == ()
    assert data.reservations == ("of different networks: ratios and losses can be compared, layers cannot",)
    assert data.unit == "points"


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {**NETWORK, "evaluator": "evaluate.py:Top5"}},
        {"provenance": {**NETWORK, MEANING: "mean average precision"}},
        {"unit": Unit("per mille", 1000.0, "images")},
        {"original_metric": 0.8},
    ],
    ids=["evaluator", "meaning", "unit", "original metric"],
)
def test_of_different_metrics_the_figure_has_shares_of_the_limit(first, change):
    data = comparison_data([column(first), column(replace(first, name="other", **change))])
    assert data.unit == "% of the limit"
    assert data.reservations[0].startswith("of different metrics or data")
    assert data.limits[0] == pytest.approx(100)
    assert data.layers  # the network is the same


def test_a_study_whose_limit_is_unknown_is_not_in_the_figure_of_shares(first):
    verdicts = tuple(replace(one, margin=None if one.margin is None else -1.0) for one in first.trials)
    other = replace(first, name="other", trials=verdicts, provenance={**NETWORK, "evaluator": "evaluate.py:Top5"})
    data = comparison_data([column(first), column(other)])
    assert "other: its limit is not known, so that the figure lacks it" in data.reservations
    assert (len(data.ratios[1]), data.chosen[1], data.limits[1]) == (0, None, None)


def test_random_data_are_said(first):
    other = replace(first, name="other", provenance={**NETWORK, RANDOM_DATA: "yes"})
    notes = comparison_data([column(first), column(other, 3, "other #3"), column(other, 4, "other #4")]).reservations
    assert notes == ("other: on random data: this says nothing about the network's task",)


def test_a_loss_that_gets_better_downwards_is_a_loss(first):
    trials = tuple(
        one if one.metric is None else replace(one, metric=0.9124 + (0.9124 - one.metric)) for one in first.trials
    )
    falling = replace(first, trials=trials)
    same = comparison_data([column(first), column(falling)])
    assert same.losses[1] == pytest.approx(same.losses[0])


def test_the_figure_names_each_study_once_and_every_trial(first, second):
    figure = comparison_figure(comparison_data([column(first), column(second)]))
    assert [trace.name for trace in figure.data if "lines" in trace.mode] == ["first", "second"]
    assert len({(trace.line.color, trace.line.dash) for trace in figure.data if "lines" in trace.mode}) == 2
    trials = comparison_figure(comparison_data([column(first, 3, "first #3"), column(first)]))
    assert [trace.name for trace in trials.data if "lines" in trace.mode] == ["first"]
    assert [trace.text[0] for trace in trials.data if trace.text] == ["trial 3", f"trial {first.best.number}"]


def test_studies_without_a_trial_say_so(empty):
    data = comparison_data([column(empty), column(replace(empty, name="other"))])
    assert data.chosen == (None, None)
    assert comparison_figure(data).layout.annotations[0].text.startswith("no ")


def test_only_the_best_trial_is_confirmed(first):
    found = Confirmation(
        "Top1", first.best.number, 0.9, 0.9, True, loss=0.002, loss_error=0.001, limit=0.01, holds=True
    )
    confirmed = replace(first, confirmation=replace(found, finished=first.counts.finished))
    assert column(confirmed).confirmed == "yes, on data that the search never saw"
    assert column(confirmed).elsewhere.loss == 0.002
    assert column(confirmed, 0).confirmed == "no: only the best trial is"
    assert column(confirmed, 0).elsewhere is None
