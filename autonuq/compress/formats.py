"""Write a candidate in the formats in which people run it.

==============  =====================================================================================================
caffe           what AMCT's auto_nuq writes: fake-quant pair with AMCT's layer types (our runtime, a patched Caffe),
                deploy pair, record, list of NUQ layers, quant.json
deploy          of these the part that ATC needs: deploy pair, record, list of NUQ layers
pycaffe         fake-quant pair with `Python` layers, and their file: for a Caffe that nobody patched
weights         pair with the plan's weights and float activations: for whatever reads caffemodels, OpenCV for one
packed          one file with the bytes that the ratio counts (`packed_file`)
onnx            QuantizeLinear and DequantizeLinear, int8 weights; any batch size where the network allows it
onnx-codebook   the same, but weights as indices of ceil(log2 levels) bits into their levels
==============  =====================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autonuq.atomic import replace_file
from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import (
    deploy_pair,
    fake_quant_pair,
    pack,
    packed_path,
    record_path,
    write_deploy,
    write_fake_quant,
    write_nuq_layers,
    write_quant_info,
)
from autonuq.errors import suggest_name
from autonuq.graph.files import ModelPair, write_model
from autonuq.graph.hosted.permission import OWN_MODULE
from autonuq.graph.onnx_model import build_onnx
from autonuq.graph.record import write_record


def pycaffe_pair(prefix: str) -> ModelPair:
    """Name the pair with Python layers behind a prefix."""
    return ModelPair(Path(f"{prefix}_pycaffe_model.prototxt"), Path(f"{prefix}_pycaffe_weights.caffemodel"))


def weights_only_pair(prefix: str) -> ModelPair:
    """Name the pair with float activations behind a prefix."""
    return ModelPair(Path(f"{prefix}_weights_only_model.prototxt"), Path(f"{prefix}_weights_only_weights.caffemodel"))


def onnx_file(prefix: str, *, codebooks: bool = False) -> Path:
    """Name the ONNX file behind a prefix."""
    return Path(f"{prefix}{'_codebook' if codebooks else ''}.onnx")


def export(
    candidate: Candidate,
    prefix: str,
    formats: Iterable[str] = ("caffe",),
    *,
    record_file: Path | None = None,
    provenance: Mapping[str, str] | None = None,
) -> tuple[Path, ...]:
    """Write a candidate's files and return their paths.

    Parameters
    ----------
    prefix : str
        Folder and beginning of the file names; the folder is made if need be.
    formats : iterable of str
        Out of `FORMATS`.
    record_file : Path, optional
        Where the record goes; `<prefix>_record.txt` by default.
    provenance : mapping of str to str, optional
        Where the plan comes from: metadata of ONNX files; a packed file has study, trial and loss.

    Raises
    ------
    QuantizationError
        The factors are incomplete or a bias does not fit.
    ModelError
        ONNX has no operator for a layer.
    OSError
        The folder cannot be written.
    ValueError
        There is no such format.
    """
    wanted = check_formats(formats)
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    job = _Job(candidate, prefix, record_file or record_path(prefix), provenance or {})
    return tuple(dict.fromkeys(path for name in wanted for path in _WRITERS[name](job)))


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return formats without repetitions.

    Raises
    ------
    ValueError
        There is no such format; the nearest one is named.
    """
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise ValueError(f"there is no format '{name}', only {', '.join(FORMATS)}.{suggest_name(name, FORMATS)}")
    return wanted


@dataclass(frozen=True)
class _Job:
    """What is to be written: the arguments of `export`."""

    candidate: Candidate
    prefix: str
    record_file: Path
    provenance: Mapping[str, str]


def _write_caffe(job: _Job) -> Iterator[Path]:
    pair = fake_quant_pair(job.prefix)
    write_fake_quant(job.candidate, pair)
    yield from (pair.model, pair.weights)
    yield from _write_deploy(job)
    yield write_quant_info(job.candidate, job.prefix)


def _write_deploy(job: _Job) -> Iterator[Path]:
    pair = deploy_pair(job.prefix)
    write_deploy(job.candidate, pair)
    yield from (pair.model, pair.weights, write_record(job.record_file, job.candidate.factors))
    yield write_nuq_layers(job.candidate, job.prefix)


def _write_pycaffe(job: _Job) -> Iterator[Path]:
    pair = pycaffe_pair(job.prefix)
    write_fake_quant(job.candidate, pair, python_layers=True)
    yield from (pair.model, pair.weights, pair.model.with_name(f"{OWN_MODULE}.py"))


def _write_weights_only(job: _Job) -> Iterator[Path]:
    pair = weights_only_pair(job.prefix)
    write_model(job.candidate.weights_only_graph(), pair.model, pair.weights)
    yield from (pair.model, pair.weights)


def _write_packed(job: _Job) -> Iterator[Path]:
    path = packed_path(job.prefix)
    pack(job.candidate, path, _origin(job.provenance))
    yield path


def _origin(provenance: Mapping[str, str]) -> str:
    where = ", ".join(f"{key} {provenance[key]}" for key in ("study", "trial") if key in provenance)
    return ": ".join(filter(None, (where, provenance.get("loss"))))


def _write_onnx(job: _Job, *, codebooks: bool = False) -> Iterator[Path]:
    candidate, model = job.candidate, job.candidate.model
    levels = {name: candidate.levels(name) for name in candidate.nuq_layers}
    metadata = {
        "scales": "weights: ARQ; activations: the ranges of the calibration, by "
        + " and ".join(sorted({settings.activation.algorithm.upper() for settings in model.config.layers.values()})),
        "levels": json.dumps(levels),
        **job.provenance,
    }
    content = build_onnx(
        candidate.fake_quant_graph(),
        {name: candidate.weights(name) for name in model.weights},
        candidate.factors,
        codebooks=codebooks,
        metadata=metadata,
    )
    yield replace_file(onnx_file(job.prefix, codebooks=codebooks), [content])


_WRITERS: Mapping[str, Callable[[_Job], Iterator[Path]]] = {
    "caffe": _write_caffe,
    "pycaffe": _write_pycaffe,
    "weights": _write_weights_only,
    "deploy": _write_deploy,
    "packed": _write_packed,
    "onnx": _write_onnx,
    "onnx-codebook": partial(_write_onnx, codebooks=True),
}
FORMATS = tuple(_WRITERS)
"""What `export` can write."""
