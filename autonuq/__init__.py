"""autonuq: smaller Caffe networks by auto-tuned non-uniform quantization, without retraining.

The rooms, from the bottom up::

    file_names the one rule for names that become files
    masking    passwords, taken out of URLs and texts
    visible    names of others as text
    errors     every exception
    records    what studies leave behind, as plain data, and every persisted word
    headline   what a study says first, and what to do next
    atomic     files that are written whole or not at all
    notebook   HTML for notebooks
    terminal   text for terminals
    lazy       packages that load what they offer when it is first used, as this one does
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

from typing import TYPE_CHECKING

from autonuq.lazy import lazy_names

_OWNERS = {
    "AutonuqError": "autonuq.errors",
    "Evaluator": "autonuq.evaluate.evaluator",
    "EvaluatorError": "autonuq.errors",
    "ModelError": "autonuq.errors",
    "Net": "autonuq.runtime.net",
    "QuantizationError": "autonuq.errors",
    "RuntimeFailure": "autonuq.errors",
    "Score": "autonuq.evaluate.samples",
    "Study": "autonuq.study.stored",
    "StudyError": "autonuq.errors",
    "allow_python_layers": "autonuq.graph.hosted.permission",
    "load_study": "autonuq.study.locate",
    "pycaffe": "autonuq.pycaffe",
    "register_layer": "autonuq.graph.hosted",
    "resume": "autonuq.study.run",
    "tune": "autonuq.study.run",
    "tune_file": "autonuq.study.run",
    "write_report": "autonuq.report.page",
}
__all__ = sorted(_OWNERS)

if TYPE_CHECKING:  # for type checkers and editors
    from autonuq import pycaffe as pycaffe
    from autonuq.errors import AutonuqError as AutonuqError
    from autonuq.errors import EvaluatorError as EvaluatorError
    from autonuq.errors import ModelError as ModelError
    from autonuq.errors import QuantizationError as QuantizationError
    from autonuq.errors import RuntimeFailure as RuntimeFailure
    from autonuq.errors import StudyError as StudyError
    from autonuq.evaluate.evaluator import Evaluator as Evaluator
    from autonuq.evaluate.samples import Score as Score
    from autonuq.graph.hosted import register_layer as register_layer
    from autonuq.graph.hosted.permission import allow_python_layers as allow_python_layers
    from autonuq.report.page import write_report as write_report
    from autonuq.runtime.net import Net as Net
    from autonuq.study.locate import load_study as load_study
    from autonuq.study.run import resume as resume
    from autonuq.study.run import tune as tune
    from autonuq.study.run import tune_file as tune_file
    from autonuq.study.stored import Study as Study
else:
    __getattr__, __dir__ = lazy_names(__name__, _OWNERS)
