"""One study: what it is told, its preparation, its trials and workers, its confirmation and artifacts. Read `run`."""

from autonuq.study.run import Study, load_study, resume, tune

__all__ = ["Study", "load_study", "resume", "tune"]
