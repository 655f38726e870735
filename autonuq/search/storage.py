"""Storages by URL, and the mapping of what can go wrong with them to `StudyError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from autonuq.errors import StudyError

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Storage:
    """An open storage.

    Attributes
    ----------
    url : str
    backend : BaseStorage
    """

    url: str
    backend: BaseStorage

    def create(self, name: str) -> optuna.Study:
        """Make a new study.

        Raises
        ------
        StudyError
            A study of this name exists.
        """
        with _mapped(self.url, name):
            try:
                return optuna.create_study(
                    storage=self.backend, study_name=name, direction="maximize", pruner=optuna.pruners.NopPruner()
                )
            except DuplicatedStudyError as error:
                raise StudyError(
                    f"exists already in {self.url}; go on with 'autonuq resume', or choose another name or storage",
                    study=name,
                ) from error

    def load(self, name: str) -> optuna.Study:
        """Open an existing study.

        Raises
        ------
        StudyError
            There is none of this name; the message says which there are.
        """
        with _mapped(self.url, name):
            try:
                return optuna.load_study(storage=self.backend, study_name=name, pruner=optuna.pruners.NopPruner())
            except KeyError as error:
                names = [study.study_name for study in self.backend.get_all_studies()]
                there = f"it holds {', '.join(names)}" if names else "it is empty"
                hint = f"not found in {self.url} ({there}); start it with 'autonuq tune'"
                raise StudyError(hint, study=name) from error


def open_storage(url: str) -> Storage:
    """Open a storage.

    Parameters
    ----------
    url : str
        `sqlite:///FILE`, `journal://FILE`, or any URL that Optuna takes.

    Raises
    ------
    StudyError
        It cannot be reached, or what is there is no storage of Optuna's.
    """
    with _mapped(url, None):
        if url.startswith("journal://"):
            return Storage(url, JournalStorage(JournalFileBackend(url.removeprefix("journal://"))))
        return Storage(url, get_storage(url))


@contextmanager
def _mapped(url: str, name: str | None) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StudyError(f"storage {url} cannot be used: {reason}", study=name) from error


def absolute_url(url: str, folder: Path) -> str:
    """Make the file of a sqlite or journal URL relative to `folder`."""
    for scheme in ("sqlite:///", "journal://"):
        if url.startswith(scheme):
            return scheme + str((folder / url.removeprefix(scheme)).resolve())
    return url


def storage_file(url: str) -> Path | None:
    """Return the file of a storage that is one, None for a server."""
    schemes = [scheme for scheme in ("sqlite:///", "journal://") if url.startswith(scheme)]
    return Path(url.removeprefix(schemes[0])) if schemes else None
