"""The evaluator: the user's code that runs a network and says how good it is and whether that is good enough."""

from __future__ import annotations

import copyreg
import hashlib
import importlib
import importlib.util
import inspect
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from autonuq.atomic import is_out_of_room, say_system_error
from autonuq.errors import AutonuqError, EvaluatorError, WriteFailure, suggest_name
from autonuq.evaluate.samples import Score
from autonuq.evaluate.sending import arrived_file, read_own_files
from autonuq.evaluate.typed_in import source_file, typed_code
from autonuq.graph.files import ModelPair
from autonuq.graph.hosted.python_layer import layers_importable
from autonuq.records import Unit
from autonuq.streams import Forgiving

_log = logging.getLogger(__name__)


class Evaluator:
    """Base of user evaluators, with the contract of AMCT's AutoNuqEvaluatorBase.

    Parameters
    ----------
    _self : object, optional
        Ignored: AMCT's sample passes `self` a second time.
    evaluate_batch_num : int, optional
        Batches of a scoring pass; subclasses may set the attribute themselves.

    Notes
    -----
    An evaluator may offer more, derived from this class or not: `calibrate_model`, called like `eval_model` for the
    calibration pass alone; `fingerprint() -> str`, a digest of all that its metric depends on, instead of one of its
    code; `data_digests() -> dict`, of str, a digest of each file that it reads, by what the file is called:
    whoever goes on with a study is told which has changed; `standard_error(metric) -> float`; `name`, a str for the
    report; `unit`, what losses are said in, a tuple like ("points", 100, "images"): its name, how many are 1 of the
    metric, and what is scored; `meaning`, a str that says in a line what the metric means; `random_data`, True where it
    scores data that were made up: every result of the study says so.

    Examples
    --------
    >>> class Recorded(Evaluator):  # one that runs no network: what scores were recorded elsewhere
    ...     def eval_model(self, model_file, weights_file, batch_num):
    ...         return {"net.prototxt": 0.912}.get(model_file, 0.905)
    ...
    ...     def is_satisfied(self, original_metric, new_metric):
    ...         return (original_metric - new_metric) * 100 < 1
    >>> evaluator = Recorded(evaluate_batch_num=20)
    >>> original = evaluator.eval_model("net.prototxt", "net.caffemodel", evaluator.evaluate_batch_num)
    >>> new = evaluator.eval_model("fake_quant.prototxt", "fake_quant.caffemodel", evaluator.evaluate_batch_num)
    >>> original, new, evaluator.is_satisfied(original, new)
    (0.912, 0.905, True)
    """

    evaluate_batch_num: int

    def __init__(self, _self: object = None, *, evaluate_batch_num: int | None = None) -> None:
        if evaluate_batch_num is not None:
            self.evaluate_batch_num = evaluate_batch_num

    def eval_model(self, model_file: str, weights_file: str, batch_num: int) -> float:
        """Run `batch_num` batches of the network and return exactly one number, a `Score` where samples are known.

        It is called with the original network, with the calibration network (its value is ignored then), and once
        a trial with the fake-quantized network; where int8 alone is not good enough, also to find the layers to blame.
        """
        raise NotImplementedError(f"{type(self).__name__} must define eval_model")

    def is_satisfied(self, original_metric: float, new_metric: float) -> bool:
        """Say whether the compressed network's metric is good enough beside the original's."""
        raise NotImplementedError(f"{type(self).__name__} must define is_satisfied")


def load_evaluator(reference: str, folder: Path, evaluate_batch_num: int) -> Any:
    """Make an evaluator from `file.py:Class` or `package.module:Class`.

    Parameters
    ----------
    reference : str
    folder : Path
        What a relative file is relative to.
    evaluate_batch_num : int
        Given to the class as an argument of that name if it takes one; set as an attribute otherwise.

    Raises
    ------
    EvaluatorError
        The file, module or class is not found, or loading or constructing it fails.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise EvaluatorError(f"evaluator '{reference}' must read file.py:Class or package.module:Class")
    module = load_module(source, folder)
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        classes = [key for key in own if isinstance(vars(module)[key], type)]
        hint = suggest_name(name, classes)
        raise EvaluatorError(f"{source} has no class '{name}' (it has: {', '.join(classes) or 'none'}).{hint}")
    # Other processes need not be sent its data: they make their own.
    if source.endswith(".py"):
        main = (folder / source).resolve()
        files = read_own_files(main)
        copyreg.pickle(cls, lambda _: (load_sent_evaluator, (main, name, evaluate_batch_num, files)))
    else:
        copyreg.pickle(cls, lambda _: (_constructed, (cls, reference, evaluate_batch_num)))
    return _constructed(cls, reference, evaluate_batch_num)


def _constructed(cls: type, reference: str, evaluate_batch_num: int) -> Any:
    try:
        takes = "evaluate_batch_num" in inspect.signature(cls).parameters
        evaluator = cls(evaluate_batch_num=evaluate_batch_num) if takes else cls()
    except Exception as error:
        raise EvaluatorError(f"{reference} cannot be constructed: {_reason(error)}") from error
    if not hasattr(evaluator, "evaluate_batch_num"):
        evaluator.evaluate_batch_num = evaluate_batch_num
    return evaluator


def load_sent_evaluator(main: Path, name: str, evaluate_batch_num: int, files: Mapping[str, bytes]) -> Any:
    """Make the evaluator of another process here: from its file, or, where that is not the same, from what was sent.

    Parameters
    ----------
    main : Path
        Its file there, absolute and no link.
    name : str
        Of the class.
    evaluate_batch_num : int
    files : mapping of str to bytes
        See `sending.read_own_files`.

    Raises
    ------
    EvaluatorError
        See `load_evaluator`.
    """
    return load_evaluator(f"{arrived_file(main, files)}:{name}", main.parent, evaluate_batch_num)


def load_module(source: str, folder: Path) -> ModuleType:
    """Import a file or a module; a file's own folder is importable meanwhile.

    Raises
    ------
    EvaluatorError
        It is not there, or loading it fails.
    """
    if not source.endswith(".py"):
        try:
            return importlib.import_module(source)
        except Exception as error:
            hint = f"; a file is named so: '{source}.py:Class'" if (folder / f"{source}.py").is_file() else ""
            raise EvaluatorError(f"module '{source}' cannot be imported: {_reason(error)}{hint}") from error
    path = (folder / source).resolve()
    if not path.is_file():
        raise EvaluatorError("evaluator file not found", path=path)
    name = f"autonuq_evaluator_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise EvaluatorError("is no Python file", path=path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, as the import system does: pickling and dataclasses look it up
    with _importable(path.parent):
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise EvaluatorError(f"cannot be loaded: {_reason(error)}", path=path) from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


_METHODS = {
    "eval_model": ("model_file", "weights_file", "batch_num"),
    "is_satisfied": ("original_metric", "new_metric"),
}


def check_evaluator(evaluator: Any) -> None:
    """Check that an object has what an evaluator needs.

    Raises
    ------
    EvaluatorError
        A method is missing or takes other arguments, or `evaluate_batch_num` is not a positive int.
    """
    for method, arguments in _METHODS.items():
        found = getattr(evaluator, method, None)
        if not callable(found):
            raise EvaluatorError(f"{type(evaluator).__name__} has no method '{method}'")
        try:
            inspect.signature(found).bind(*arguments)
        except TypeError as error:
            call = f"{type(evaluator).__name__}.{method}({', '.join(arguments)})"
            raise EvaluatorError(f"{call} cannot be called so: {error}") from error
        except ValueError:
            continue  # a callable that does not tell what it takes
    count = getattr(evaluator, "evaluate_batch_num", None)
    if not isinstance(count, int) or count < 1:
        raise EvaluatorError(
            f"{type(evaluator).__name__}.evaluate_batch_num must be a positive int: the number of batches of a "
            f"scoring pass. Got {count!r} instead."
        )


def run_evaluator(evaluator: Any, pair: ModelPair, batch_num: int, method: str = "eval_model") -> object:
    """Call `eval_model`, or another method with its arguments, and return whatever it returns.

    Raises
    ------
    EvaluatorError
        It raised; errors of our own about calibration or the engine pass through.
    """
    return run_evaluator_call(evaluator, method, str(pair.model), str(pair.weights), batch_num)


def run_evaluator_call(evaluator: Any, method: str, model_file: str, weights_file: str, batch_num: int) -> object:
    """Call a method of the user's: what it prints goes to stderr, the working directory stays what it was."""
    folder = Path.cwd()
    try:
        # importable: the module of Python layers, for a Caffe that is not ours
        with redirect_stdout(sys.stderr and Forgiving(sys.stderr)), layers_importable(Path(model_file).parent):
            return getattr(evaluator, method)(model_file, weights_file, batch_num)
    except AutonuqError:
        raise
    except (Exception, SystemExit) as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and is_out_of_room(error):
            raise WriteFailure(say_system_error(error)) from error
        raise EvaluatorError(f"{method} raised {_reason(error)}") from error
    finally:
        _go_back(folder, method)


def _is_interrupt(error: BaseException | None) -> bool:
    """Say whether an error comes of Ctrl-C: a compiled module that is being loaded makes an ImportError of that."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__))


def _go_back(folder: Path, method: str) -> None:
    try:
        now = Path.cwd()
    except FileNotFoundError:
        now = Path("a folder that is gone")
    if now != folder:
        os.chdir(folder)
        _log.warning("%s changed the working directory to %s; it was changed back to %s", method, now, folder)


def run_calibration(evaluator: Any, pair: ModelPair, batch_num: int) -> None:
    """Run the calibration pass: by `calibrate_model` where the evaluator has one, by `eval_model` elsewhere.

    Raises
    ------
    EvaluatorError
        It raised; see `run_evaluator`.
    """
    method = "calibrate_model" if hasattr(evaluator, "calibrate_model") else "eval_model"
    run_evaluator(evaluator, pair, batch_num, method)


def score(evaluator: Any, pair: ModelPair, batch_num: int | None = None) -> float:
    """Return the metric of a network over `batch_num` batches, by default `evaluate_batch_num`.

    Returns
    -------
    float
        A `Score` where the evaluator returned one.

    Raises
    ------
    EvaluatorError
        It raised, or returned anything but one finite number.
    """
    result = run_evaluator(evaluator, pair, batch_num or evaluator.evaluate_batch_num)
    try:
        metric = math.nan if isinstance(result, (str, bytes)) else float(result)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        metric = math.nan
    if not math.isfinite(metric):
        got = f"{result!r} ({type(result).__name__})"
        raise EvaluatorError(f"eval_model must return one finite number. Got {got} instead.")
    return result if isinstance(result, Score) else metric


def is_satisfied(evaluator: Any, original_metric: float, new_metric: float) -> bool:
    """Ask for the verdict.

    Raises
    ------
    EvaluatorError
        `is_satisfied` raised, or returned anything but a bool, Python's or NumPy's.
    """
    try:
        verdict = evaluator.is_satisfied(original_metric, new_metric)
    except (Exception, SystemExit) as error:
        raise EvaluatorError(f"is_satisfied raised {_reason(error)}") from error
    if not isinstance(verdict, bool | np.bool_):
        raise EvaluatorError(
            f"is_satisfied must return True or False. Got {verdict!r} ({type(verdict).__name__}) for "
            f"is_satisfied({original_metric:g}, {new_metric:g}) instead."
        )
    return bool(verdict)


def standard_error(evaluator: Any, metric: float) -> float | None:
    """Return the standard error of a metric; None where the evaluator does not define it or gives no finite number."""
    try:
        error = float(evaluator.standard_error(metric))
    except Exception:  # no such method, or one that fails: a result is not worth less for that
        return None
    return error if math.isfinite(error) and error >= 0 else None


def loss_unit(evaluator: Any) -> Unit:
    """Return what the evaluator's losses are said in: its own `unit`, or the metric's."""
    return Unit(*getattr(evaluator, "unit", ()))


def evaluator_name(evaluator: Any) -> str:
    """Return its own `name`; else `file.py:Class`, or the class's full name where it comes from no file."""
    name = getattr(evaluator, "name", None)
    if isinstance(name, str):
        return name
    cls, source = type(evaluator), source_file(type(evaluator))
    return f"{source.name}:{cls.__qualname__}" if source else f"{cls.__module__}.{cls.__qualname__}"


def evaluator_fingerprint(evaluator: Any) -> str:
    """Return its own `fingerprint`; else a digest of the class, its code, and `evaluate_batch_num`.

    The code is the file that defines the class; for one that was typed in see `typed_in`.
    """
    if callable(getattr(evaluator, "fingerprint", None)):
        return str(_asked(evaluator, "fingerprint"))
    cls, source = type(evaluator), source_file(type(evaluator))
    digest = hashlib.sha256(f"{cls.__qualname__}\n{getattr(evaluator, 'evaluate_batch_num', None)}\n".encode())
    digest.update(source.read_bytes() if source else typed_code(cls).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def data_digests(evaluator: Any) -> dict[str, str]:
    """Return a digest of each part of the data that an evaluator reads, by what it is called, where it tells them.

    Raises
    ------
    EvaluatorError
        It raised, or returned no dict.
    """
    if not callable(getattr(evaluator, "data_digests", None)):
        return {}
    found = _asked(evaluator, "data_digests")
    if not isinstance(found, Mapping):
        raise EvaluatorError(f"data_digests must return a dict of name -> digest. Got {found!r} instead.")
    return {str(part): str(digest) for part, digest in found.items()}


def changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the parts of data that are not what they were; a file may have another name, if it is the same."""
    return [part for part, digest in before.items() if digest not in now.values()]


def _asked(evaluator: Any, method: str) -> object:
    """Return what a method of the user's says of its evaluator."""
    try:
        return getattr(evaluator, method)()
    except AutonuqError:
        raise
    except (Exception, SystemExit) as error:
        raise EvaluatorError(f"{method} raised {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
