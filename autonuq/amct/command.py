"""AMCT's command line: `amct_caffe calibration` takes the static way, fed by files of data or by an evaluator.

Like a script of the runner, an evaluator's file gets `caffe`, `amct_caffe` and the names of AMCT's time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from autonuq import pycaffe
from autonuq.amct.arguments_handler import process_data_shape, process_multi_data_path
from autonuq.amct.auto_calibration import call_evaluator
from autonuq.amct.data_handler import DATA_TYPES, load_data
from autonuq.amct.quant_config import create_quant_config
from autonuq.amct.runner import prepare
from autonuq.amct.static import init, quantize_model, save_model
from autonuq.atomic import say_system_error, temporary_folder
from autonuq.errors import AutonuqError, EvaluatorError, StudyError
from autonuq.evaluate.evaluator import load_module
from autonuq.graph.files import ModelPair
from autonuq.graph.hosted.permission import python_layers
from autonuq.runtime.net import Net

COMMANDS = ("calibration",)
ALLOW = "--allow-python-layers"
CUSTOM_EVALUATOR = "customize_evaluator"
"""What AMCT's samples call the object in an evaluator's file."""

_USAGE = """amct_caffe calibration --model MODEL --weights WEIGHTS --save_path PREFIX
    (--input_shape SHAPES --data_dir FOLDERS --data_types TYPES | --evaluator FILE)
    [--batch_num N | --calibration_config FILE] [--gpu_id N] [--allow-python-layers]"""

Feed = Callable[[ModelPair, int], None]
"""Runs the modified model for a number of forward passes."""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Say it and end with exit code 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def run_command() -> None:
    """Do what the command line says; an error of ours is one line."""
    parser = _parser()
    given = parser.parse_args()
    _check_together(parser, given)
    try:
        _calibrate(given)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    except AutonuqError as error:
        _fail(str(error), error.exit_code, error)
    except OSError as error:
        _fail(say_system_error(error), StudyError.exit_code, error)


def _fail(message: str, exit_code: int, error: Exception) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(exit_code) from error


def _parser() -> OneLineParser:
    parser = OneLineParser("amct_caffe", usage=_USAGE)
    parser.add_argument("command", choices=COMMANDS, help="quantize a network after a calibration")
    parser.add_argument("--model", required=True, help="prototxt")
    parser.add_argument("--weights", required=True, help="caffemodel")
    parser.add_argument("--save_path", required=True, help="folder and beginning of the names of the outputs")
    parser.add_argument("--evaluator", help="Python file with an object or a class that has 'calibration'")
    parser.add_argument("--input_shape", type=_checked(process_data_shape), help="name:n,c,h,w of each input, with ;")
    parser.add_argument("--data_dir", type=process_multi_data_path, help="each input's folder of raw files, with ;")
    parser.add_argument(
        "--data_types", "--data_type", type=_checked(_data_types), help="what each input's files hold, with ;"
    )
    parser.add_argument("--batch_num", type=_checked(_positive), help="forward passes of the calibration, 1 by default")
    parser.add_argument("--calibration_config", help="simplified configuration, in place of --batch_num")
    parser.add_argument("--gpu_id", type=int, help="the card that the calibration runs on; the CPU by default")
    parser.add_argument(ALLOW, action="store_true", help="run the network's own Python layers, code that it names")
    return parser


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a reader's own message that of the command line."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _data_types(text: str) -> list[str]:
    types = [name.strip() for name in text.strip(";").split(";")]
    if wrong := set(types).difference(DATA_TYPES):
        raise ValueError(f"must be of {', '.join(DATA_TYPES)}. Got {', '.join(sorted(wrong))} instead.")
    return types


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be a positive number. Got '{text}' instead.")
    return int(text)


def _check_together(parser: OneLineParser, given: argparse.Namespace) -> None:
    """End the process where options are given that do not go together."""
    data = {f"--{name}": getattr(given, name) for name in ("input_shape", "data_dir", "data_types")}
    missing = [name for name, value in data.items() if value is None]
    if given.evaluator is None and missing:
        parser.error(f"without --evaluator, the calibration needs {', '.join(missing)}")
    if given.evaluator is not None and len(missing) < len(data):
        parser.error("--evaluator brings its own data: give it, or --input_shape, --data_dir and --data_types")
    if len({len(values) for values in data.values() if values is not None}) > 1:
        counts = ", ".join(f"{name} {len(values or ())}" for name, values in data.items())
        parser.error(f"each input needs a shape, a folder and a type. Got {counts} instead.")
    if given.batch_num is not None and given.calibration_config is not None:
        parser.error("--calibration_config has a batch_num of its own: give one of them")


def _calibrate(given: argparse.Namespace) -> None:
    if given.gpu_id is not None:
        pycaffe.set_device(given.gpu_id)
        pycaffe.set_mode_gpu()
    source, batch_num = ModelPair(Path(given.model), Path(given.weights)), given.batch_num or 1
    with python_layers(given.allow_python_layers):
        quantize_fed(source, given.save_path, _feed_of(given), batch_num=batch_num, cfg=given.calibration_config)


def _feed_of(given: argparse.Namespace) -> Feed:
    if given.evaluator is None:
        return partial(_run_data, given.input_shape, given.data_dir, given.data_types)
    prepare()
    evaluator = load_calibrating(given.evaluator)
    return lambda modified, _: call_evaluator(evaluator, "calibration", str(modified.model), str(modified.weights))


def quantize_fed(source: ModelPair, save_path: str, feed: Feed, *, batch_num: int = 1, cfg: str | None = None) -> None:
    """Take the static way from the float network to the files of `save_model`.

    Parameters
    ----------
    source : ModelPair
        The float network.
    save_path : str
        Folder and beginning of the file names.
    feed : callable
        Runs the modified model for the configuration's batch_num forward passes.
    batch_num : int
        Of the configuration, where there is no `cfg`.
    cfg : str, optional
        Simplified configuration.

    Raises
    ------
    AutonuqError
        See `create_quant_config`, `init` and `save_model`.
    """
    folder = Path(save_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    files = (str(source.model), str(source.weights))
    with temporary_folder(folder) as scratch:
        config_file, record_file = f"{scratch}/config.json", f"{scratch}/record.txt"
        create_quant_config(config_file, *files, None, batch_num, True, cfg)
        graph = init(config_file, *files, record_file)
        modified = ModelPair(scratch / "modified_model.prototxt", scratch / "modified_model.caffemodel")
        quantize_model(graph, modified.model, modified.weights)
        feed(modified, graph.model.config.batch_num)
        save_model(graph, "Both", save_path)


def _run_data(
    shapes: Mapping[str, list[int]], folders: list[str], types: list[str], modified: ModelPair, batch_num: int
) -> None:
    net = Net(str(modified.model), str(modified.weights), pycaffe.TEST)
    if set(shapes) != set(net.inputs):
        named, there = ", ".join(shapes), ", ".join(net.inputs) or "none, so give --evaluator"
        raise argparse.ArgumentError(None, f"--input_shape names {named}, but the network's inputs are: {there}")
    for name, shape in shapes.items():
        net.blobs[name].reshape(*shape)
    for batch in load_data(shapes, folders, types, batch_num):
        net.forward(None, None, None, **batch)


def load_calibrating(file: str) -> Any:
    """Return the object of an evaluator's file that does the calibration.

    The object `customize_evaluator`, as AMCT's samples have it; elsewhere the one object of the file that has a method
    `calibration`, or an object of its one class that has.

    Raises
    ------
    EvaluatorError
        There is none, or more than one; or the file cannot be loaded.
    """
    module = load_module(file, Path.cwd())
    objects = [value for value in vars(module).values() if _calibrates(value)]
    if hasattr(module, CUSTOM_EVALUATOR):
        found = [getattr(module, CUSTOM_EVALUATOR)]
    else:
        found = [value for value in objects if not isinstance(value, type)]
        found = found or [value for value in objects if value.__module__ == module.__name__]
    if len(found) != 1 or not _calibrates(found[0]):
        raise EvaluatorError(
            f"must hold one evaluator with a method 'calibration', best called {CUSTOM_EVALUATOR}; it has {len(found)}",
            path=file,
        )
    try:
        return found[0]() if isinstance(found[0], type) else found[0]
    except Exception as error:
        raise EvaluatorError(f"{found[0].__name__} cannot be constructed: {error}", path=file) from error


def _calibrates(value: Any) -> bool:
    return not isinstance(value, ModuleType) and callable(getattr(value, "calibration", None))
