"""A study that is asked to ends when little is left to gain; others run all of their trials."""

from dataclasses import replace

from autonuq.study.run import StudyRun


def test_a_study_ends_when_little_is_left_to_gain(task):
    told = []
    asked = replace(task, n_trials=30, stop_gain=5.0)  # six times as small as the best is out of reach
    study = StudyRun(asked, told.append).run(exists=False)
    trials = study.record().trials
    assert 10 <= len(trials) < 30
    assert told[-1].stage == "stop"
    assert "no plan is more than 500.0% above the best" in told[-1].message
    StudyRun(asked).run(exists=True)
    assert len(study.record().trials) == len(trials)


def test_by_default_all_trials_are_run(task):
    assert len(StudyRun(replace(task, n_trials=14)).run(exists=False).record().trials) == 14
