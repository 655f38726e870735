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
from autonuq.quant.config import ActivationSettings, LayerSettings, QuantizationConfig, Target, WeightSettings
from autonuq.records import ARTIFACTS
from autonuq.runtime.inputs import input_files
from autonuq.study.points_cache import CODES_SUFFIX, INDEX
from autonuq.study.stored import load_long, store_long
from autonuq.study.task import Task, file_digest

S3 = "s3://"
_PROTOTXT, _WEIGHTS, _CONFIG = "model/model.prototxt", "model/weights.caffemodel", "model/quantization.json"
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
        self, task: Task, study: optuna.Study, config: QuantizationConfig, fingerprint: Mapping[str, str]
    ) -> None:
        """Store what a study's workers need, as far as it is not there yet, and tell the study.

        Parameters
        ----------
        fingerprint : mapping of str to str
            Of the study: it has the network's digests already.
        """
        files = {_PROTOTXT: task.source.model, _WEIGHTS: task.source.weights}
        calibration = task.record_file.parent
        points = sorted(path for path in task.points_folder.iterdir() if path.is_file())
        kept = [task.record_file, *points, *input_files(task.record_file)]
        files |= {path.relative_to(calibration.parent).as_posix(): path for path in kept}
        document = json.dumps(asdict(config)).encode()
        known = {
            _PROTOTXT: fingerprint["prototxt"],
            _WEIGHTS: fingerprint["weights"],
            _CONFIG: hashlib.sha256(document).hexdigest(),
        }
        digests = {name: known.get(name) or file_digest(path) for name, path in files.items()} | known
        with self._mapped():
            for name, digest in digests.items():
                if not self._holds(digest):
                    with io.BytesIO(document) if name == _CONFIG else files[name].open("rb") as content:
                        self._store.write(self._prefix + digest, content)
        if load_long(study.user_attrs, ARTIFACTS) != digests:
            store_long(study, ARTIFACTS, digests)

    def fetch(self, task: Task, study: optuna.Study) -> Task:
        """Bring what is missing into the task's folder, and return the task that runs on it.

        Raises
        ------
        StudyError
            The study has none yet, or a file is missing or damaged.
        """
        digests = load_long(study.user_attrs, ARTIFACTS)
        if not digests:
            raise StudyError("has no artifacts yet; let 'autonuq tune' finish its preparation", study=study.study_name)
        # The index of the points comes last, as when they were built.
        for name in sorted(digests, key=lambda name: name.endswith(INDEX)):
            path = task.out / name
            if not path.exists() or file_digest(path) != digests[name]:
                self._download(name, digests[name], path)
        config = _config(json.loads((task.out / _CONFIG).read_text("utf-8")))
        source = ModelPair(task.out / _PROTOTXT, task.out / _WEIGHTS)
        # The configuration lacks the layers that were named to stay float; the others stand in the study.
        return replace(task, source=source, config=config, cfg=None, float_layers=Task.float_layers)

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
        try:
            self._store.open_reader(self._prefix + digest).close()
        except ArtifactNotFound:
            return False
        return True

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


def _config(document: Mapping[str, Any]) -> QuantizationConfig:
    layers = {
        name: LayerSettings(ActivationSettings(**entry["activation"]), WeightSettings(**entry["weights"]))
        for name, entry in document["layers"].items()
    }
    aim = document.get("target", {})  # earlier versions had none
    marked = aim.get("marked")
    target = Target(**{**aim, "marked": None if marked is None else tuple(marked)})
    unfolded = tuple(document["skip_fusion_layers"])
    return QuantizationConfig(**{**document, "layers": layers, "skip_fusion_layers": unfolded, "target": target})
