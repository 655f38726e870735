"""What the preparation of a study left in its folder, and whether it is what the study was told of.

Files outlive studies, and one folder may see several. So nothing there is used because it is there: the study holds
the digests of the calibration's files (`CALIBRATED`), of the index of the operating points (`POINTS`), which has those
of the points, and of all that was published (`ARTIFACTS`; all that studies of earlier versions hold). What differs is
made anew by whoever goes on with the study, to the same bit; whoever only exports takes it from the artifacts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import optuna

from autonuq.errors import StudyError
from autonuq.plain import plain_digest
from autonuq.records import ARTIFACTS, CALIBRATED, POINTS
from autonuq.runtime.inputs import input_files
from autonuq.runtime.moments import moments_folder
from autonuq.study.artifacts import Artifacts
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.points_cache import INDEX, StoredPoints, load_points
from autonuq.study.task import Task, file_digest


class KeptFiles:
    """The files of a study's preparation in the folder of its task.

    Parameters
    ----------
    task : Task
    study : optuna.Study
        What it holds is read once.

    Attributes
    ----------
    is_final : bool
        The study is prepared: trials may rest on the files, and others would be another study's.
    """

    def __init__(self, task: Task, study: optuna.Study) -> None:
        self._task, self._study, attributes = task, study, StudyAttributes(study)
        self._published: Mapping[str, str] = attributes.long(ARTIFACTS, Mapping[str, str], {})
        self._calibrated: Mapping[str, str] = attributes.long(CALIBRATED, Mapping[str, str], {})
        self._index: str = attributes.get(POINTS, str, "")
        self.is_final = attributes.is_sealed or bool(self._published)

    def is_calibrated(self) -> bool:
        """Say whether record and inputs are those of the study's calibration, no file more and none less."""
        known = self._known_calibration()
        return bool(known) and self._digests_of(self._calibration_files()) == known

    def has_moments(self) -> bool:
        """Say whether the moments are there that the study's calibration left; they are removed in the end."""
        moments = moments_folder(self._task.record_file)
        files = self._digests_of(sorted(moments.glob("*")))
        return moments.is_dir() and files == {
            name: digest for name, digest in self._calibrated.items() if self._is_of_moments(name)
        }

    def points(self, key: str) -> StoredPoints | None:
        """Return the operating points; None where they are not the study's. See `load_points`."""
        return load_points(self._task.points_folder, key, self.calibration_digest, self._known_points())

    def mend(self) -> None:
        """Take from the artifacts what is missing or damaged here, as far as it is intact there."""
        damaged = {name: digest for name, digest in self._published.items() if not self._is_intact(name, digest)}
        if damaged:
            with suppress(StudyError):
                Artifacts(self._task.artifacts_location).restore(self._task, damaged)

    def store_calibration(self) -> None:
        """Tell the study what its calibration left.

        Raises
        ------
        StudyError
            The study is prepared, and its calibration was another one.
        """
        found = self._digests_of([*self._calibration_files(), *moments_folder(self._task.record_file).glob("*")])
        before = self._known_calibration()
        changed = sorted(name for name, digest in before.items() if found.get(name) != digest)
        if self.is_final and changed:
            raise self._lost(f"its calibration ({', '.join(changed)})")
        if found != self._calibrated:
            store_long(self._study, CALIBRATED, found)
            self._calibrated = found

    def store_points(self, found: StoredPoints) -> None:
        """Tell the study of its operating points.

        Raises
        ------
        StudyError
            The study is prepared, and its points were others.
        """
        known, index = self._known_points(), found.digests[INDEX]
        if self.is_final and known.get(INDEX, index) != index:
            raise self._lost("its operating points")
        if self._index != index and INDEX not in known:
            self._study.set_user_attr(POINTS, index)
            self._index = index

    @property
    def index_digest(self) -> str:
        """Digest of the index of the operating points: of all of them."""
        return self._known_points().get(INDEX, "")

    @property
    def calibration_digest(self) -> str:
        """Digest of all that the calibration left."""
        return plain_digest(self._calibrated)

    def digests(self, found: StoredPoints) -> dict[str, str]:
        """Return the digests of all files that workers need, by name within the study's folder."""
        points = self._name(self._task.points_folder)
        return self._known_calibration() | {f"{points}/{name}": digest for name, digest in found.digests.items()}

    def damaged(self) -> StudyError:
        """Make the error that says that files of the study are not what they were."""
        return StudyError(
            f"its calibration or its operating points in {self._task.record_file.parent} are damaged, missing or "
            "another study's; 'autonuq resume' makes them again",
            study=self._study.study_name,
        )

    def _lost(self, what: str) -> StudyError:
        return StudyError(
            f"{what} in {self._task.record_file.parent} were lost and cannot be built again as they were; restore "
            "them, or start a study of another name",
            study=self._study.study_name,
        )

    def _calibration_files(self) -> list[Path]:
        return [self._task.record_file, *input_files(self._task.record_file)]

    def _known_calibration(self) -> dict[str, str]:
        """Return the digests of record and inputs."""
        folder, points = self._name(self._task.record_file.parent), self._name(self._task.points_folder)
        known = self._calibrated or self._published
        return {
            name: digest
            for name, digest in known.items()
            if name.startswith(f"{folder}/") and not name.startswith(f"{points}/") and not self._is_of_moments(name)
        }

    def _known_points(self) -> dict[str, str]:
        """Return the digests of the points, by name within their folder."""
        points = self._name(self._task.points_folder) + "/"
        known = {
            name.removeprefix(points): digest for name, digest in self._published.items() if name.startswith(points)
        }
        return known | ({INDEX: self._index} if self._index else {})

    def _is_of_moments(self, name: str) -> bool:
        return name.startswith(self._name(moments_folder(self._task.record_file)) + "/")

    def _is_intact(self, name: str, digest: str) -> bool:
        """Say whether a file of the preparation is what it was; others are none of our business here."""
        path = self._task.out / name
        if not name.startswith(self._name(self._task.record_file.parent) + "/"):
            return True
        return path.is_file() and file_digest(path) == digest

    def _digests_of(self, files: list[Path]) -> dict[str, str]:
        return {self._name(path): file_digest(path) for path in files if path.is_file()}

    def _name(self, path: Path) -> str:
        return path.relative_to(self._task.out).as_posix()
