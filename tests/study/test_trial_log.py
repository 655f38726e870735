"""The log: one line a trial, appended."""

from datetime import UTC, datetime

from autonuq.records import TrialRecord
from autonuq.study.trial_log import append_trial, trial_line

GOOD = TrialRecord(
    3, "complete", 12.5, 0.91, True, -0.4, size_bytes=400, origin="seed", duration_s=1.25, worker="host:7"
)
BAD = TrialRecord(4, "failed", error="eval_model raised ValueError: no", duration_s=0.5, worker="host:7")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_lines(tmp_path):
    assert trial_line(GOOD, AT) == (
        "2026-01-02T03:04:05Z trial 3 ratio 12.5000 metric 0.91 satisfied bytes 400 [seed; 1.250 s; host:7]"
    )
    assert trial_line(BAD, AT) == (
        "2026-01-02T03:04:05Z trial 4 failed: eval_model raised ValueError: no [sampler; 0.500 s; host:7]"
    )
    for record in (GOOD, BAD):
        append_trial(tmp_path / "s.log", record)
    assert [line.split()[2] for line in (tmp_path / "s.log").read_text().splitlines()] == ["3", "4"]
