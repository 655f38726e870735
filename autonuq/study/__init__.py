"""One study: what it is told, its preparation, its trials and workers, its confirmation and artifacts. Read `run`."""

from typing import TYPE_CHECKING

from autonuq.lazy import lazy_names

_OWNERS = {
    "Study": "autonuq.study.run",
    "load_study": "autonuq.study.run",
    "resume": "autonuq.study.run",
    "tune": "autonuq.study.run",
}
__all__ = sorted(_OWNERS)

if TYPE_CHECKING:  # for type checkers and editors
    from autonuq.study.run import Study as Study
    from autonuq.study.run import load_study as load_study
    from autonuq.study.run import resume as resume
    from autonuq.study.run import tune as tune
else:
    __getattr__, __dir__ = lazy_names(__name__, _OWNERS)
