"""What a worker on another machine needs beside the storage: the network, its calibration, the operating points.

The files lie in Optuna's artifact store, a folder or an S3 bucket, each under the SHA-256 of its content; the study
holds the list of names and digests. So nothing is stored twice, and what arrives is what was sent.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from autonuq.atomic import replace_file, say_system_error
from autonuq.errors import AutonuqError, StudyError
from autonuq.graph.files import ModelPair
from autonuq.plain import from_plain
from autonuq.quant.config import QuantizationConfig
from autonuq.records import ARTIFACTS
from autonuq.runtime.inputs import input_files
from autonuq.study.artifact_names import CONFIG, PROTOTXT, WEIGHTS, artifact_files
from autonuq.study.attributes import StudyAttributes, store_long
from autonuq.study.points_cache import CODES_SUFFIX, INDEX
from autonuq.study.task import Task, file_digest

S3 = "s3://"
_CHUNK_BYTES = 1 << 20


class Artifacts:
    """The artifacts of studies at one place.

    Parameters
    ----------
    location : str
        A folder, made if missing, or `s3://bucket/prefix`, for which the environment holds the credentials.

    Raises
    ------
    StudyError
        boto3 is missing, or the folder cannot be made.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._prefix = ""
        with self._mapped():
            if location.startswith(S3):
                bucket, _, prefix = location.removeprefix(S3).partition("/")
                self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
                self._store: Any = Boto3ArtifactStore(bucket)
            else:
                Path(location).mkdir(parents=True, exist_ok=True)
                self._store = _Folder(location)

    def publish(
        self,
        task: Task,
        study: optuna.Study,
        config: QuantizationConfig,
        fingerprint: Mapping[str, str],
        kept: Mapping[str, str],
    ) -> None:
        """Store what a study's workers need, as far as it is not there yet, and tell the study.

        Parameters
        ----------
        fingerprint : mapping of str to str
            Of the study: it has the network's digests already.
        kept : mapping of str to str
            Digests of the other files, by name within the task's folder.

        Raises
        ------
        StudyError
            A file is not what it was when it was read, or the place cannot be used.
        """
        files = {
            PROTOTXT: task.source.model,
            WEIGHTS: task.source.weights,
            **{name: task.out / name for name in kept},
        }
        document = json.dumps(asdict(config)).encode()
        digests = {PROTOTXT: fingerprint["prototxt"], WEIGHTS: fingerprint["weights"], **kept}
        with self._mapped():
            for name, digest in digests.items():
                if name in kept and file_digest(files[name]) != digest:
                    raise StudyError(f"{files[name]} was changed meanwhile; restore it, or run 'autonuq resume'")
                if not self._holds(digest):
                    with files[name].open("rb") as content:
                        self._store.write(self._prefix + digest, content)
            digests[CONFIG] = hashlib.sha256(document).hexdigest()
            if not self._holds(digests[CONFIG]):
                self._store.write(self._prefix + digests[CONFIG], io.BytesIO(document))
        if _published(study) != digests:
            store_long(study, ARTIFACTS, digests)

    def fetch(self, task: Task, study: optuna.Study) -> Task:
        """Bring what is missing into the task's folder, and return the task that runs on it.

        Raises
        ------
        StudyError
            The study has none yet, a file is missing or damaged, or the storage names one that no study has.
        """
        digests = _published(study)
        if not digests:
            raise StudyError("has no artifacts yet; let 'autonuq tune' finish its preparation", study=study.study_name)
        for path in input_files(task.record_file):
            if path.relative_to(task.out).as_posix() not in digests:
                path.unlink()  # another study's calibration left it
        self.restore(task, digests)
        config = load_config(task.out / CONFIG)
        source = ModelPair(task.out / PROTOTXT, task.out / WEIGHTS)
        # The configuration lacks the layers that were named to stay float; the others stand in the study.
        return replace(task, source=source, config=config, cfg=None, float_layers=Task.float_layers)

    def restore(self, task: Task, digests: Mapping[str, str]) -> None:
        """Bring what is missing in the task's folder, or differs there.

        Raises
        ------
        StudyError
            A file is missing or damaged here, too, or is none that a study has.
        """
        files = artifact_files(task, digests)
        # The index of the points comes last, as when they were built.
        for name in sorted(digests, key=lambda name: name.endswith(INDEX)):
            path = files[name]
            if not path.exists() or file_digest(path) != digests[name]:
                self._download(name, digests[name], path)

    def _download(self, name: str, digest: str, path: Path) -> None:
        hashed = hashlib.sha256()

        def chunks(content: BinaryIO) -> Iterator[bytes]:
            while chunk := content.read(_CHUNK_BYTES):
                hashed.update(chunk)
                yield chunk
            if hashed.hexdigest() != digest:
                raise StudyError(
                    f"{name} among the artifacts at {self.location} is damaged; remove it ({digest}) there, and run "
                    "'autonuq resume' where the study was started"
                )

        with self._mapped():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._store.open_reader(self._prefix + digest) as content:
                replace_file(path, chunks(content))

    def _holds(self, digest: str) -> bool:
        """Say whether a file is there; in a folder, whether it is what its name says, too."""
        try:
            with self._store.open_reader(self._prefix + digest) as content:
                path = getattr(content, "name", None)
                return not isinstance(path, str) or file_digest(Path(path)) == digest
        except ArtifactNotFound:
            return False

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except AutonuqError:
            raise
        except ImportError as error:
            raise StudyError("artifacts in S3 need boto3; pip install 'autonuq[s3]'") from error
        except ArtifactNotFound as error:
            raise StudyError(
                f"the artifacts at {self.location} are not this study's; name its place with --artifacts"
            ) from error
        except Exception as error:  # boto3 is not imported here
            said = say_system_error(error) if isinstance(error, OSError) and error.errno is not None else str(error)
            raise StudyError(f"the artifacts at {self.location} cannot be used: {said}") from error


class _Folder(FileSystemArtifactStore):
    """A folder whose files appear whole; operating points, which never change, are linked rather than copied."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        target = self._get_filepath(artifact_id)
        source = getattr(content_body, "name", "")
        if source.endswith(CODES_SUFFIX):
            try:
                return os.link(source, target)
            except OSError:
                pass  # another file system, or one without links
        replace_file(target, iter(lambda: content_body.read(_CHUNK_BYTES), b""))
        return None


def _published(study: optuna.Study) -> Mapping[str, str]:
    digests: Mapping[str, str] = StudyAttributes(study).long(ARTIFACTS, Mapping[str, str], {})
    return digests


def load_config(path: Path) -> QuantizationConfig:
    """Read the configuration among the artifacts.

    Raises
    ------
    StudyError
        It cannot be read, or it is none.
    """
    try:
        config: QuantizationConfig = from_plain(QuantizationConfig, json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(
            f"{path} is no quantization configuration: {error}; remove it among the artifacts, and run "
            "'autonuq resume' where the study was started"
        ) from error
    return config
