"""autonuq: smaller Caffe networks by auto-tuned non-uniform quantization, without retraining.

The rooms, from the bottom up::

    errors     every exception
    records    what studies leave behind, as plain data
    notebook   HTML for notebooks
    quant      numbers: uniform int8 weights, activation ranges, codebooks, codecs, curves
    graph      Caffe: files, layers, passes, lowering to ONNX
    runtime    execution: an onnxruntime session, a drop-in caffe.Net
    packed     the file format of a compressed network
    compress   quantize, calibrate, build curves, apply a plan, write the results
    export     the formats in which people run the result: Caffe of three kinds, ONNX, packed
    search     studies: evaluators, space, samplers, storage
    report     figures and one HTML page
    amct       AMCT's interface
    cli        the commands

Read `compress` first, then `search.study`.
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
from autonuq.graph.hosted import register_layer
from autonuq.report import write_report
from autonuq.runtime.net import Net
from autonuq.search import Evaluator, Study, load_study, resume, tune

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
    "write_report",
]
