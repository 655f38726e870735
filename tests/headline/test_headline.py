"""What to do next, decided by rules from the record; each rule has a record that calls for it and one that does not."""

from dataclasses import replace
from math import log

import pytest

from autonuq.headline import headline, hurting, next_steps, say_confirmed
from autonuq.records import (
    INT8,
    OUTPUT_ERROR,
    RANDOM_DATA,
    Confirmation,
    FloatLayers,
    LayerCost,
    LayerRecord,
    LossPart,
    LossParts,
    StudyRecord,
    TrialRecord,
    Unit,
)

POINTS = Unit("points", 100.0, "images")


def layer(name, weights):
    return LayerRecord(name, "Convolution", weights, "nuq", "", (weights, weights // 4), (0.0, 1.0), (256, 4))


LAYERS = (layer("conv1", 100), layer("conv2", 50_000), layer("fc", 200_000))


def trial(number, ratio, loss=0.005, *, allowed=0.01, error=0.001, **more):
    """A trial of which a margin tells that it lost so much of a metric of 0.9, of which so much was allowed."""
    more = {"satisfied": loss < allowed, "probability": 0.95, **more}
    points = {one.name: 1 for one in LAYERS}
    return TrialRecord(
        number,
        "complete",
        ratio=ratio,
        metric=0.9 - loss,
        margin=log(loss / allowed),
        size_bytes=62_525,
        points=points,
        loss_error=error,
        **more,
    )


CONFIRMED = Confirmation(
    "Top1, 5 batches",
    0,
    0.9,
    0.895,
    True,
    loss=0.005,
    loss_error=0.001,
    limit=0.01,
    samples=1500,
    holds=True,
    finished=4,
)


@pytest.fixture
def done():
    """A study that leaves nothing to do."""
    trials = (trial(0, 16.0), *(trial(number, 15.0) for number in (1, 2, 3)))
    return StudyRecord(
        "s", "entropy", 0.9, LAYERS, trials, 4, confirmation=CONFIRMED, confidence=0.8, unit=POINTS, samples=4500
    )


def kinds(record):
    return [step.kind for step in next_steps(record)]


def only(record, kind):
    (step,) = [step for step in next_steps(record) if step.kind == kind]
    return step


def test_a_study_that_lacks_nothing_is_done(done):
    assert kinds(done) == ["done"]
    first = headline(done)
    assert first.ratio == "16.00x smaller: 1,000,400 -> 62,525 bytes of weights"
    assert first.loss.startswith("lost 0.50 ± 0.10 points on 1,500 images that the search never saw (limit 1)")
    assert first.confirmed == "yes, on data that the search never saw"


def test_random_data_come_first_and_make_what_is_measured_worthless(done):
    unsure = replace(done, confirmation=None, trials=tuple(replace(one, loss_error=0.009) for one in done.trials))
    assert kinds(unsure) == ["samples", "confirm"]
    assert kinds(replace(unsure, provenance={RANDOM_DATA: "yes"})) == ["data"]
    assert kinds(replace(unsure, target_trials=9, provenance={RANDOM_DATA: "yes"})) == ["data", "resume"]


def test_trials_that_are_left_are_run_before_anything_else(done):
    step = only(replace(done, target_trials=40, confirmation=None), "resume")
    assert step.text == "autonuq resume STUDY: 36 trials of 40 are left"
    assert kinds(replace(done, target_trials=40, confirmation=None)) == ["resume"]
    assert say_confirmed(replace(done, target_trials=40, confirmation=None)) == "not yet: trials are left"
    assert kinds(replace(done, target_trials=40, stopped="with 90 % probability no plan is better")) == ["done"]


def test_running_trials_are_waited_for(done):
    running = replace(done, target_trials=6, trials=(*done.trials, TrialRecord(4, "running")))
    assert only(running, "wait").text == "wait for 2 trials, 1 running now"


def test_trials_that_fail_are_mended(done):
    failed = tuple(TrialRecord(number, "failed", error="eval_model returned nan") for number in range(4))
    record = replace(done, trials=failed, confirmation=None)
    assert "eval_model returned nan" in only(record, "mend").text
    assert kinds(record)[0] == "mend"
    few = replace(done, trials=(*done.trials, failed[0]), target_trials=5)
    assert "mend" not in kinds(few)


def test_a_confirmation_that_failed_is_mended(done):
    failed = Confirmation("Top1, 5 batches", 0, error="no such file: held.npz", finished=4)
    record = replace(done, confirmation=failed)
    assert "no such file: held.npz" in only(record, "mend").text
    assert say_confirmed(record) == "no: no such file: held.npz"


def test_a_front_that_still_rises_asks_for_more_trials(done):
    rising = replace(done, trials=(*done.trials[:3], trial(3, 18.0)), confirmation=replace(CONFIRMED, trial=3))
    step = only(rising, "trials")
    assert step.trials == 8
    assert step.text == "autonuq resume STUDY --trials 8: the last 1 trial raised the ratio by 12%"
    flat = replace(rising, trials=(*done.trials[:3], trial(3, 16.1)))
    assert kinds(flat) == ["done"]
    by_luck = replace(rising, trials=(*done.trials[:3], trial(3, 18.0, probability=0.1)))
    assert "raised" not in str(next_steps(replace(by_luck, confirmation=CONFIRMED)))


def test_a_large_error_asks_for_as_many_samples_as_make_it_small(done):
    wide = replace(done, trials=tuple(replace(one, loss_error=0.005) for one in done.trials))
    step = only(wide, "samples")
    assert step.samples == 18_000  # half the limit to a quarter of it: four times as many
    assert step.text == (
        "score about 18,000 images in place of 4,500: an error of ± 0.5 points is large beside the limit of 1 points"
    )
    unknown = only(replace(wide, samples=None), "samples")
    assert "about 4.0 times as many images" in unknown.text and unknown.samples is None
    assert kinds(replace(done, trials=tuple(replace(one, loss_error=0.003) for one in done.trials))) == ["done"]


def test_no_data_held_back_are_asked_for(done):
    record = replace(done, confirmation=None)
    assert kinds(record) == ["confirm"]
    assert say_confirmed(record) == "no: no data were held back from the search"


def test_a_winner_that_keeps_the_limit_too_narrowly_needs_more_held_back_samples(done):
    narrow = replace(CONFIRMED, loss=0.008, loss_error=0.004, holds=False, probability=0.69)
    step = only(replace(done, confirmation=narrow), "samples")
    assert step.samples == 4300  # (0.8416 * 0.4 / 0.2)^2 = 2.83 times 1,500
    assert "too narrowly" in say_confirmed(replace(done, confirmation=narrow))


def test_a_winner_that_loses_too_much_elsewhere_needs_other_plans(done):
    lost = replace(CONFIRMED, loss=0.02, satisfied=False, holds=False)
    record = replace(done, confirmation=lost)
    assert only(record, "trials").trials == 8
    assert say_confirmed(record) == "no: on data that the search never saw the limit is not kept"


def test_a_winner_by_luck_needs_more_trials(done):
    lucky = replace(done, trials=tuple(replace(one, probability=0.3) for one in done.trials), confirmation=None)
    assert "no plan yet keeps the limit with probability 0.8" in only(lucky, "trials").text


def test_where_nothing_is_satisfied_the_layers_that_cost_most_are_named(done):
    trials = tuple(trial(number, 15.0, 0.02 + number / 100) for number in range(4))
    record = replace(done, trials=trials, confirmation=None)
    step = only(record, "limit")
    assert step.text.endswith("trial 0 lost least, 2 points where 1 points may be lost")
    parts = LossParts(
        0,
        (LossPart("conv1", 0.7, 0.2), LossPart("fc", 0.2, 0.2), LossPart("conv2", 0.001, 0.2)),
        LossPart("", 0.099, 1.0),
    )
    assert only(replace(record, loss_parts=parts), "relax").layers == ("conv1", "fc")
    costs = (LayerCost("conv2", 200_000, 0.3), LayerCost("fc", 800_000, 0.1))
    measured = replace(
        record, float_layers=FloatLayers(("conv2",), "int8 breaks it", OUTPUT_ERROR, costs), loss_parts=parts
    )
    step = only(measured, "relax")
    assert step.layers == ("fc",)
    assert 'float_layers = ["conv2", "fc"]' in step.text
    many = replace(measured.float_layers, layers=tuple(f"layer{number}" for number in range(95)))
    assert many.say().startswith(
        "95 layers stay float: layer0, layer1, layer2, layer3, layer4 and 90 more, because int8"
    )
    step = only(replace(measured, float_layers=many), "relax")
    assert 'float_layers = the 95 that stay float now and "conv2", "fc" in [search]' in step.text
    hopeless = replace(measured, float_layers=FloatLayers((), "int8 breaks it", OUTPUT_ERROR, costs, hopeless=True))
    assert kinds(hopeless) == ["limit"]
    assert headline(record).ratio == "no trial satisfied the constraint"


@pytest.mark.parametrize(("share", "deviation", "named"), [(0.3, 0.2, True), (0.05, 0.2, False), (0.3, 1.0, False)])
def test_a_layer_that_costs_much_loss_for_few_bytes_may_stay_float(done, share, deviation, named):
    parts = LossParts(0, (LossPart("fc", 0.6, 0.1), LossPart("conv1", share, deviation)), LossPart("", 0.1, 1.0), 0.005)
    record = replace(done, loss_parts=parts)
    assert (kinds(record) == ["relax"]) == named
    if named:
        assert only(record, "relax").text == (
            'try a study with float_layers = ["conv1"] in [search]: 30% of the loss for 0.6% more bytes'
        )


def test_layers_that_hurt_are_the_worst_three_with_loss_and_bytes(done):
    shares = {"fc": 0.5, "conv1": 0.3, "conv2": 0.001}
    parts = LossParts(0, tuple(LossPart(*part, 0.1) for part in shares.items()), LossPart("", 0.199, 1.0), 0.005)
    found = hurting(replace(done, loss_parts=parts))
    assert [one.part.layer for one in found] == ["fc", "conv1"]  # the third does not hurt
    assert (found[0].loss, found[0].share) == ("0.25 points", "50% (45% to 55%)")
    assert (found[0].size_bytes, found[0].byte_share) == (50_000, 50_000 / 62_525)
    assert found[1].say() == "conv1: 0.15 points, 30% (27% to 33%) of the loss, 25 bytes"
    unknown = hurting(replace(done, loss_parts=replace(parts, loss=None)))
    assert unknown[0].say() == "fc: 50% (45% to 55%) of the loss, 50,000 bytes"
    assert hurting(done) == ()


def test_int8_alone_is_not_the_plan_nearest_to_the_limit(done):
    every = (trial(0, 4.0, 0.011, origin=INT8), trial(1, 15.0, 0.02), trial(2, 16.0, 0.03))
    assert replace(done, trials=every, confirmation=None).nearest().number == 1


def test_before_the_first_trial_the_study_is_begun():
    record = StudyRecord("s", "entropy", None, (), (), 40)
    assert kinds(record) == ["resume"]
    assert headline(record).ratio == "no finished trial yet"
