"""autonuq: smaller Caffe networks by auto-tuned non-uniform quantization, without retraining.

The rooms, from the bottom up::

    errors     every exception
    records    what studies leave behind, as plain data, and every persisted word
    atomic     files that are written whole or not at all
    notebook   HTML for notebooks
    quant      numbers: uniform int8 weights, activation ranges, codebooks, codecs, curves; quant.atc: ATC's compressor
    graph      Caffe: files, layers, passes, lowering to ONNX
    runtime    execution: an onnxruntime session, a drop-in caffe.Net
    pycaffe    what a script gets as `caffe`
    compress   where quant meets graph: quantize, calibrate, build curves, apply a plan, write the results
    search     the mathematics of the search, and its Optuna sampler
    evaluate   the evaluator contract, verdicts, built-in evaluators, isolation
    storage    Optuna storages by URL; locks, retries, leases
    settings   AMCT's configurations and mapping files
    report     figures and one HTML page
    study      one study: preparation, trials, workers, confirmation, artifacts
    amct       AMCT's interface
    cli        the commands

Read `compress` first, then `study.run`.
"""

from autonuq import pycaffe
from autonuq.errors import (
    AutonuqError,
    EvaluatorError,
    ModelError,
    QuantizationError,
    RuntimeFailure,
    StudyError,
)
from autonuq.evaluate import Evaluator
from autonuq.graph.hosted import register_layer
from autonuq.report import write_report
from autonuq.runtime.net import Net
from autonuq.study import Study, load_study, resume, tune, tune_file

__all__ = [
    "AutonuqError",
    "Evaluator",
    "EvaluatorError",
    "ModelError",
    "Net",
    "QuantizationError",
    "RuntimeFailure",
    "Study",
    "StudyError",
    "load_study",
    "pycaffe",
    "register_layer",
    "resume",
    "tune",
    "tune_file",
    "write_report",
]
