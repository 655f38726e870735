"""One study: what it is told, its preparation, its trials and workers, its confirmation and artifacts. Read `run`."""

from autonuq.study.locate import load_study
from autonuq.study.run import resume, tune, tune_file
from autonuq.study.stored import Study

__all__ = ["Study", "load_study", "resume", "tune", "tune_file"]
