"""Storages by URL, and the mapping of what can go wrong with them to `StudyError`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage

from autonuq.errors import StudyError, StudyExists, StudyNotFound
from autonuq.masking import MASK, masked, without_secrets
from autonuq.storage.exclusion import Exclusion, bounded_redis, file_exclusion, no_exclusion, redis_exclusion
from autonuq.storage.journal_file import JournalFile
from autonuq.storage.journal_redis import JournalRedis
from autonuq.storage.retries import is_connection_lost, is_storage_failure, patient, reason, retry

optuna.logging.set_verbosity(optuna.logging.WARNING)

VARIABLE = "AUTONUQ_STORAGE"
"""Environment variable with a storage's URL, which overrides a study file's as `--storage` does."""
JOURNAL, SQLITE = "journal://", "sqlite:///"
_GRPC_PORT = 13000  # Optuna's default


@dataclass(frozen=True)
class Storage:
    """An open storage.

    Attributes
    ----------
    url : str
        Without password.
    backend : BaseStorage
    exclusive : callable
        Study name -> context within which no other worker of that study is in it.
    """

    url: str
    backend: BaseStorage
    exclusive: Exclusion

    @property
    def has_lock(self) -> bool:
        """Whether `exclusive` keeps others out; without it, trials take turns by their numbers."""
        return self.exclusive is not no_exclusion

    def create(self, name: str) -> optuna.Study:
        """Make a new study.

        Raises
        ------
        StudyError
            StudyExists if there is one of this name.
        """
        with _mapped(self.url, name):
            try:
                return optuna.create_study(
                    storage=self.backend, study_name=name, direction="maximize", pruner=optuna.pruners.NopPruner()
                )
            except DuplicatedStudyError as error:
                raise StudyExists(
                    f"exists already in {self.url}; go on with 'autonuq resume' (in Python: nuq.resume, or tune with "
                    "load_if_exists=True), or choose another name or storage",
                    study=name,
                ) from error

    def names(self) -> list[str]:
        """Return the names of all studies."""
        return [study.study_name for study in self.backend.get_all_studies()]

    def load(self, name: str) -> optuna.Study:
        """Open an existing study.

        Raises
        ------
        StudyError
            StudyNotFound if there is none of this name; the message says which there are.
        """
        with _mapped(self.url, name):
            try:
                return optuna.load_study(storage=self.backend, study_name=name, pruner=optuna.pruners.NopPruner())
            except KeyError as error:
                names = self.names()
                there = f"it holds {', '.join(names)}" if names else "it is empty"
                hint = f"not found in {self.url} ({there}); start it with 'autonuq tune'"
                raise StudyNotFound(hint, study=name) from error


def open_storage(url: str, patience_s: float = 0.0) -> Storage:
    """Open a storage.

    Parameters
    ----------
    url : str
        `journal://FILE`, `sqlite:///FILE`, `postgresql://...`, `mysql://...`, `redis://...` (a journal in Redis),
        `grpc://HOST:PORT` (Optuna's proxy), or any other URL of SQLAlchemy's.
    patience_s : float
        How long a server that is out of reach is tried again, in seconds.

    Raises
    ------
    StudyError
        Its driver is missing, or what is there is no storage of Optuna's; StudyNotFound if it cannot be reached.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:  # and it may be a password that was meant
        raise StudyError("a storage is a URL with '://', such as journal://FILE or postgresql://USER@SERVER/DATABASE")
    kind = scheme.partition("+")[0]
    if f":{MASK}@" in url:
        raise StudyError(
            f"storage {url} has no password, only its mask; give the URL in {VARIABLE} or with --storage, or leave the "
            "password out where the server's client has it (PGPASSWORD, ~/.pgpass)"
        )
    with _mapped(url, None, kind), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend, exclusive = retry(lambda: _OPEN.get(kind, _open_sql)(url), patience_s)
    file = storage_file(url)
    kept = file if file is not None and file.exists() else None
    return Storage(masked(url), patient(backend, masked(url), kept), _named(exclusive, url))


def _named(exclusive: Exclusion, url: str) -> Exclusion:
    """Return the exclusion with what can go wrong in it mapped, too."""

    @contextmanager
    def exclusion(name: str) -> Iterator[None]:
        with ExitStack() as stack:
            with _mapped(url, name):
                stack.enter_context(exclusive(name))
            yield

    return exclusive if exclusive is no_exclusion else exclusion


def _open_journal(url: str) -> tuple[BaseStorage, Exclusion]:
    path = Path(url.removeprefix(JOURNAL))
    return JournalStorage(JournalFile(path)), file_exclusion(path)


def _open_redis(url: str) -> tuple[BaseStorage, Exclusion]:
    bounded = bounded_redis(url)
    exclusive = redis_exclusion(bounded)
    return JournalStorage(JournalRedis(bounded)), exclusive


def _open_grpc(url: str) -> tuple[BaseStorage, Exclusion]:
    place = urlsplit(url)
    proxy = GrpcStorageProxy(host=place.hostname or "localhost", port=place.port or _GRPC_PORT)
    proxy.wait_server_ready(timeout=10)
    return proxy, no_exclusion


def _open_sql(url: str) -> tuple[BaseStorage, Exclusion]:
    from autonuq.storage import sql  # SQLAlchemy is loaded only by those who need it

    return sql.open_database(url)


_OPEN: Mapping[str, Callable[[str], tuple[BaseStorage, Exclusion]]] = {
    "journal": _open_journal,
    "redis": _open_redis,
    "rediss": _open_redis,
    "grpc": _open_grpc,
}

_EXTRAS = {
    "postgresql": "postgres",
    "postgres": "postgres",
    "mysql": "mysql",
    "mariadb": "mysql",
    "redis": "redis",
    "rediss": "redis",
    "grpc": "grpc",
}


@contextmanager
def _mapped(url: str, name: str | None, kind: str = "") -> Iterator[None]:
    """Map what is raised to errors that name the URL, as it may be shown."""
    try:
        yield
    except ImportError as error:
        remedy = f"pip install 'autonuq[{_EXTRAS[kind]}]'" if kind in _EXTRAS else "install the one that its URL names"
        raise StudyError(f"storage {masked(url)} needs a driver that is not installed; {remedy}", study=name) from error
    except Exception as error:  # also of packages that are not imported here
        is_lost = is_connection_lost(error)
        is_known = isinstance(error, (ValueError, RuntimeError)) or is_storage_failure(error)
        if not (is_lost or is_known):
            raise
        failed = StudyNotFound if is_lost else StudyError
        what = "used" if is_known else "reached"
        said = without_secrets(reason(error), url)
        raise failed(f"storage {masked(url)} cannot be {what}: {said}", study=name) from error


def absolute_url(url: str, folder: Path) -> str:
    """Make the file of a sqlite or journal URL relative to `folder`."""
    for scheme in (SQLITE, JOURNAL):
        if url.startswith(scheme):
            return scheme + str((folder / url.removeprefix(scheme)).resolve())
    return url


def storage_file(url: str) -> Path | None:
    """Return the file of a sqlite or journal URL, None where the storage is a server."""
    if url.startswith(SQLITE):
        return Path(url.removeprefix(SQLITE).partition("?")[0])  # options of the driver's may follow
    return Path(url.removeprefix(JOURNAL)) if url.startswith(JOURNAL) else None


def default_url(folder: Path) -> str:
    """Return the storage of a study that names none: a journal, or the database that earlier versions made.

    Notes
    -----
    A journal takes a fraction of SQLite's time per trial and nothing waits for locks (`studies/bench/storages.py`).
    """
    database, journal = folder / "study.db", folder / "study.journal"
    if database.exists() and not journal.exists():
        return SQLITE + str(database)
    return JOURNAL + str(journal)
