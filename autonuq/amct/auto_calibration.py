"""AMCT's accuracy_based_auto_calibration: leave just the layers float that the user's metric cannot do without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autonuq.amct.log import FOLDER, open_log, warn_of
from autonuq.amct.static import load_configured, write_outputs
from autonuq.atomic import replace_text, temporary_folder
from autonuq.compress.calibration import calibrated, layer_outputs, write_calibration_model
from autonuq.compress.candidate import Candidate
from autonuq.compress.outputs import fake_quant_pair, write_fake_quant
from autonuq.compress.quantized import QuantizedModel, quantize, restrict_levels
from autonuq.errors import AutonuqError, EvaluatorError, QuantizationError, StudyError
from autonuq.graph.files import ModelPair
from autonuq.graph.model import Graph
from autonuq.graph.record import write_record
from autonuq.quant.config import QuantizationConfig
from autonuq.records import say_verdict
from autonuq.runtime.samples import load_sample, samples_folder
from autonuq.search.rollback import (
    BinarySearchStrategy,
    CosineSimilaritySensitivity,
    Probe,
    Sensitivity,
    Strategy,
    Verdict,
    roll_back,
)
from autonuq.settings.config_json import dump_json, parse_json

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "BinarySearchStrategy",
    "CosineSimilaritySensitivity",
    "accuracy_based_auto_calibration",
]

_NAME = "accuracy_based_auto_calibration"


class AutoCalibrationEvaluatorBase:
    """Base of evaluators for `accuracy_based_auto_calibration`.

    Parameters
    ----------
    *_ignored
        Samples pass `self` a second time.
    """

    def __init__(self, *_ignored: object) -> None:
        pass

    def calibration(self, model_file: str, weights_file: str) -> None:
        """Run the configuration's batch_num forward passes of the modified model."""
        raise NotImplementedError(f"{type(self).__name__} must define calibration")

    def evaluate(self, model_file: str, weights_file: str) -> Any:
        """Return the metric of a network."""
        raise NotImplementedError(f"{type(self).__name__} must define evaluate")

    def metric_eval(self, original_metric: Any, new_metric: Any) -> Verdict:
        """Return whether the new metric is good enough beside the original one, and what was lost."""
        raise NotImplementedError(f"{type(self).__name__} must define metric_eval")


def accuracy_based_auto_calibration(
    model_file: str,
    weights_file: str,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str,
    record_file: str,
    save_dir: str,
    strategy: str | Strategy = "BinarySearch",
    sensitivity: str | Sensitivity = "CosineSimilarity",
) -> None:
    """Quantize as many layers as the user's metric allows, and write the network.

    Parameters
    ----------
    model_file, weights_file : str
        The float network.
    model_evaluator : AutoCalibrationEvaluatorBase
    config_file : str
        config.json of `create_quant_config`; only `quant_enable` is varied.
    record_file : str
        The record file to write.
    save_dir : str
        Folder and beginning of the names of the outputs, despite its name.
    strategy : {"BinarySearch"} or Strategy
    sensitivity : {"CosineSimilarity"} or Sensitivity

    Raises
    ------
    EvaluatorError
        The user's code raised, or does not even accept the original network.
    StudyError
        A strategy of the user's stopped at a network that does not satisfy.
    AutonuqError
        See `errors`.
    ValueError, TypeError
        A parameter is misused.

    Notes
    -----
    Writes what `save_model` writes, and beside it the final configuration and the ranking; the history of the search
    goes to amct_log. Where not a single layer can be quantized, no network is written.
    """
    chosen_strategy = _instance("strategy", strategy, "BinarySearch", BinarySearchStrategy)
    measure = _instance("sensitivity", sensitivity, "CosineSimilarity", CosineSimilaritySensitivity)
    for method in ("calibration", "evaluate", "metric_eval"):
        if not callable(getattr(model_evaluator, method, None)):
            raise EvaluatorError(f"{type(model_evaluator).__name__} has no method '{method}'")
    network, config = load_configured(model_file, weights_file, config_file)
    folder = Path(save_dir).parent
    folder.mkdir(parents=True, exist_ok=True)
    user = _User(model_evaluator, ModelPair(Path(model_file), Path(weights_file)))
    with temporary_folder(folder) as scratch:
        trials = _Trials(network, config, user, scratch)
        found = _search(trials, tuple(config.layers), measure, chosen_strategy)
        best = trials.made(found.quantized)
    ranking = sorted(found.ranking.items(), key=lambda item: item[1])
    _write_json(folder / f"{_NAME}_ranking_information.json", ranking)
    _write_json(Path(FOLDER) / f"{_NAME}_record.json", [_history(probe) for probe in found.probes])
    _write_json(folder / f"{_NAME}_final_config.json", _final_config(config_file, found.quantized))
    if best is None:
        warn_of(["every layer had to stay float to satisfy metric_eval, so no quantized model was written"])
        return
    Path(record_file).parent.mkdir(parents=True, exist_ok=True)
    write_record(record_file, best.model.factors)
    write_outputs(best.model, "Both", str(save_dir))
    open_log().info("accuracy of the saved model is %s", best.metric)
    open_log().info("the record file is stored as %s", record_file)


@dataclass(frozen=True)
class _Found:
    """Where a search ended: the ranking, which layers are quantized in the end, and what was tried."""

    ranking: Mapping[str, float]
    quantized: Mapping[str, bool]
    probes: list[Probe]


def _search(trials: _Trials, layers: tuple[str, ...], measure: Sensitivity, strategy: Strategy) -> _Found:
    """Quantize all layers; where that does not satisfy, rank them and follow the strategy."""
    everything = trials.run(dict.fromkeys(layers, True))
    open_log().info("accuracy of the global quantized model is %s", everything.metric)
    ranking = _ranking(everything, measure)
    if everything.verdict[0]:
        quantized = dict.fromkeys(ranking, True)
        return _Found(ranking, quantized, [Probe(quantized, everything.verdict)])
    return _Found(ranking, *roll_back(ranking, strategy, everything.verdict, lambda kept: trials.run(kept).verdict))


@dataclass(frozen=True)
class _Trial:
    """One network that was calibrated and scored; `record_file` leads to the samples of its layers' inputs."""

    quantized: Mapping[str, bool]
    model: QuantizedModel
    metric: Any
    verdict: Verdict
    record_file: Path


class _User:
    """The user's evaluator, its exceptions mapped, with the metric of the original network.

    Raises
    ------
    EvaluatorError
        Not even the original network satisfies.
    """

    def __init__(self, evaluator: AutoCalibrationEvaluatorBase, source: ModelPair) -> None:
        self._evaluator = evaluator
        self._original = self.evaluate(source)
        open_log().info("accuracy of the original model is %s", self._original)
        if not self.verdict(self._original)[0]:
            raise EvaluatorError(
                f"metric_eval({self._original}, {self._original}) is not satisfied by the original network itself"
            )

    def calibrate(self, pair: ModelPair) -> None:
        call_evaluator(self._evaluator, "calibration", str(pair.model), str(pair.weights))

    def evaluate(self, pair: ModelPair) -> Any:
        return call_evaluator(self._evaluator, "evaluate", str(pair.model), str(pair.weights))

    def verdict(self, metric: Any) -> Verdict:
        answer = call_evaluator(self._evaluator, "metric_eval", self._original, metric)
        try:
            satisfied, loss = answer
            return bool(satisfied), float(loss)
        except (TypeError, ValueError) as error:
            raise EvaluatorError(
                f"metric_eval must return (bool, loss as a number). Got {answer!r} instead."
            ) from error


def call_evaluator(evaluator: Any, method: str, *arguments: Any) -> Any:
    """Call a method of the user's.

    Raises
    ------
    EvaluatorError
        It raised; errors of our own pass through.
    """
    try:
        return getattr(evaluator, method)(*arguments)
    except AutonuqError:
        raise
    except (Exception, SystemExit) as error:
        raise EvaluatorError(f"{method} raised {type(error).__name__}: {error}") from error


class _Trials:
    """Makes, calibrates and scores networks in a scratch folder; the last one that satisfied is kept."""

    def __init__(self, network: Graph, config: QuantizationConfig, user: _User, scratch: Path) -> None:
        self._network, self._config, self._user, self._scratch = network, config, user, scratch
        self._count = 0
        self._kept: _Trial | None = None

    def run(self, quantized: Mapping[str, bool]) -> _Trial:
        """Make the network in which the layers of a mapping are quantized or float.

        Raises
        ------
        QuantizationError
            It satisfies, but cannot be deployed; that is said now, and not when the search is over.
        """
        folder = self._scratch / str(self._count)
        folder.mkdir()
        layers = {name: layer for name, layer in self._config.layers.items() if quantized[name]}
        uniform = quantize(self._network, replace(self._config, layers=layers))
        record_file = folder / "record.txt"
        if self._count == 0:
            samples_folder(record_file).mkdir()
        self._count += 1
        modified = ModelPair(folder / "modified_model.prototxt", folder / "modified_model.caffemodel")
        write_calibration_model(restrict_levels(uniform), modified, record_file, uniform.nuq_layers)
        self._user.calibrate(modified)
        model = restrict_levels(calibrated(uniform, record_file), record_file)
        pair, candidate = fake_quant_pair(str(folder / "probe")), Candidate(model)
        write_fake_quant(candidate, pair)
        metric = self._user.evaluate(pair)
        trial = _Trial(quantized, model, metric, self._user.verdict(metric), record_file)
        _log_trial(trial)
        if trial.verdict[0]:
            candidate.deploy_graph()  # raises where a bias does not fit: with still fewer float layers, none will
            self._kept = trial
        return trial

    def made(self, quantized: Mapping[str, bool]) -> _Trial | None:
        """Return the network of a mapping, made once more if need be; None where no layer is quantized.

        Raises
        ------
        StudyError
            It does not satisfy: a strategy of the user's stopped too early.
        """
        if not any(quantized.values()):
            return None
        kept = self._kept
        trial = kept if kept is not None and kept.quantized == quantized else self.run(quantized)
        if not trial.verdict[0]:
            raise StudyError("the strategy stopped at a network that does not satisfy metric_eval; nothing was written")
        return trial


def _log_trial(trial: _Trial) -> None:
    floats = ", ".join(name for name, is_quantized in trial.quantized.items() if not is_quantized) or "none"
    state = say_verdict(trial.verdict[0])
    open_log().info("float layers: %s; metric %s, loss %s: %s", floats, trial.metric, trial.verdict[1], state)


def _ranking(trial: _Trial, measure: Sensitivity) -> dict[str, float]:
    """Measure every quantized layer, alone, on inputs of the calibration."""
    ranking = {}
    for name in trial.model.factors:
        inputs = load_sample(trial.record_file, name)
        if inputs is None:
            raise QuantizationError(
                "there is no sample of its inputs to rank it by; calibration must run the modified model in this "
                "package's Net",
                layer=name,
            )
        ranking[name] = float(measure.compare(*layer_outputs(trial.model, name, inputs)))
    return ranking


def _history(probe: Probe) -> dict[str, Any]:
    satisfied, loss = probe.verdict
    shown = loss if math.isfinite(loss) else str(loss)
    return {"roll_back_config": dict(probe.quantized), "metric_eval": [satisfied, shown]}


def _final_config(config_file: str, quantized: Mapping[str, bool]) -> dict[str, Any]:
    document: Any = parse_json(Path(config_file))
    for name, is_quantized in quantized.items():
        document[name]["quant_enable"] = is_quantized
    return dict(document)


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(exist_ok=True)
    replace_text(path, dump_json(document))


def _instance(parameter: str, given: Any, name: str, make: Callable[[], Any]) -> Any:
    """Return an instance for the one documented name, or the instance that was given."""
    wanted = ("initialize", "update_quant_config") if parameter == "strategy" else ("compare",)
    if given == name:
        return make()
    if all(callable(getattr(given, method, None)) for method in wanted) and not isinstance(given, type):
        return given
    raise ValueError(
        f"The '{parameter}' parameter of {_NAME} must be '{name}' or an instance of {make.__name__}. "
        f"Got {given!r} instead."
    )
