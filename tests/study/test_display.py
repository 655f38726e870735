"""How a study's progress is put into words."""

from datetime import UTC, datetime

from autonuq.records import LayerRecord, StudyRecord, TrialRecord
from autonuq.study.display import describe, standing
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
