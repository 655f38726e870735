"""What a study is told: its task, and how it tells of its progress."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from autonuq.compress.chip import aimed, say_reasons
from autonuq.compress.quantized import QuantizedModel, default_config, quantize
from autonuq.errors import StudyError, suggest_name
from autonuq.evaluate.evaluator import evaluator_fingerprint
from autonuq.evaluate.recipe import EvaluatorRecipe, make_evaluator
from autonuq.file_names import RULE, file_name_of, is_file_name
from autonuq.graph.files import ModelPair, load_graph
from autonuq.graph.model import Graph
from autonuq.graph.passes import capabilities
from autonuq.masking import masked
from autonuq.quant.codecs import broken_rule
from autonuq.quant.config import NO_TARGET, QuantizationConfig, Target
from autonuq.records import TrialRecord
from autonuq.search.sampler import RATE_DISTORTION, check_sampler, stored_sampler
from autonuq.settings.simplified import load_simplified
from autonuq.study.engines import Workers

CONFIDENCE = 0.8
FLOAT_RULES = ("auto", "never")
"""What `float_layers` may be beside names of layers."""


@dataclass(frozen=True)
class Task:
    """Everything that defines a study; the defaults of `tune`, study files and AMCT's call stand here alone.

    Attributes
    ----------
    name : str
    source : ModelPair
        The float network.
    evaluator : object
        See `evaluate.evaluator.Evaluator`; or an `EvaluatorRecipe` until `made`.
    out : Path
        Folder of results and of what later runs need.
    storage : str
        URL of the storage.
    config : QuantizationConfig or None
        None: what `cfg` says.
    cfg : Path or None
        AMCT's simplified configuration. None quantizes every layer that can be, with the next two.
    batch_num : int
        Forward passes of the calibration.
    activation_offset : bool
        Asymmetric activations.
    amct_levels : bool
        A layer keeps 32 or 16 levels or stays uniform, as AMCT has it; otherwise any number is tried.
    python_layers : bool
        The evaluator runs a Caffe without AMCT's layers: it gets `Python` layers in their place, the same numbers.
    codec : str
        One of `quant.codecs.CODEC_NAMES`; empty: what `chip` reads, `entropy` without one.
    chip : str
        A key of `quant.atc.chips.DDR_RATES`: bytes are those that this chip stores. Empty: no chip's.
    marks : str
        Out of `quant.atc.chips.MARKS`: which layers the chip's compiler compresses; empty: those that it marks.
    counts_chip : bool
        Whether a chip in the configuration counts. For studies of earlier versions it only said which layers to search.
    sampler : str or BaseSampler
        Key of `search.sampler.SAMPLERS`, or an object, of which is stored only what it is.
    pruner : BasePruner or None
        For the trials that others make in the study: one of ours is a single call, of which nothing is known before
        its end. Stored nowhere.
    seed : int
    n_trials : int
        Total of the study, resumed runs included.
    artifacts : str
        Where workers on other machines find the network: a folder or `s3://bucket/prefix`; empty for a folder in
        `out`.
    provenance : mapping of str to str
        What the study's provenance shall hold beside what the task itself knows, such as the command.
    confirm : object or None
        Another evaluator, or one of other data, for the winner only; or a recipe, as for `evaluator`.
    stop_gain : float
        The study ends when the model says with 90 % probability that no plan is better than the best by more than
        this share, after ten trials at the earliest; 0 never.
    confidence : float in [0, 1)
        With which the winner shall keep the limit on data like those that are scored. 0 takes every measurement at its
        word, for whoever's test set is the specification.
    float_layers : {"auto", "never"} or sequence of str
        Layers that stay float though they can be quantized: "auto" those without which int8 does not keep the limit,
        found before the search; or the names of some.
    study_file : Path or None
        Absolute, where the task comes from one.
    allow_python_layers : bool
        The network's own `Python` layers may run here; whoever works on the study elsewhere says so himself, so that
        this is stored nowhere.
    workers : Workers
        Who runs its trials, and where; not part of what a study is.
    """

    name: str
    source: ModelPair
    evaluator: Any
    out: Path
    storage: str
    config: QuantizationConfig | None = None
    cfg: Path | None = None
    batch_num: int = QuantizationConfig.batch_num
    activation_offset: bool = QuantizationConfig.activation_offset
    amct_levels: bool = QuantizationConfig.amct_levels
    python_layers: bool = False
    codec: str = ""
    chip: str = ""
    marks: str = ""
    counts_chip: bool = True
    sampler: str | BaseSampler = RATE_DISTORTION
    pruner: BasePruner | None = None
    seed: int = 0
    n_trials: int = 40
    artifacts: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    confirm: Any = None
    stop_gain: float = 0.0
    confidence: float = CONFIDENCE
    float_layers: str | Sequence[str] = "auto"
    study_file: Path | None = None
    workers: Workers = Workers()
    allow_python_layers: bool = False

    def __post_init__(self) -> None:
        check_sampler(self.sampler, self.name)
        if self.pruner is not None and not isinstance(self.pruner, BasePruner):
            raise StudyError(f"pruner must be an object of a pruner of Optuna's. Got {self.pruner!r}.", study=self.name)
        if (self.chip or not self.marks) and (broken := broken_rule(self.target)):  # a `cfg` may have the chip
            raise StudyError(str(broken), study=self.name)
        if not 0 <= self.confidence < 1:
            rule = "confidence must be in [0, 1)"
            raise StudyError(f"{rule}. Got {self.confidence} instead.", study=self.name)
        if isinstance(self.float_layers, str) and self.float_layers not in FLOAT_RULES:
            rule = "float_layers must be 'auto', 'never' or a list of layer names"
            raise StudyError(f"{rule}. Got '{self.float_layers}' instead.", study=self.name)
        if self.n_trials < 1:
            raise StudyError(f"the number of trials must be positive. Got {self.n_trials} instead.", study=self.name)

    def as_before(self) -> Task:
        """Return the task of a study that was started before there was a confidence: all data, nothing held back."""
        if not isinstance(self.evaluator, EvaluatorRecipe):
            return replace(self, confidence=0.0)
        held = isinstance(self.confirm, EvaluatorRecipe) and self.confirm.part == "held back"
        confirm = None if held else self.confirm
        return replace(self, evaluator=self.evaluator.of_part("all"), confirm=confirm, confidence=0.0)

    @property
    def target(self) -> Target:
        """What the task itself says of what bytes are counted with; its configuration may say the rest."""
        return Target(self.codec, self.chip, self.marks)

    @property
    def named_float_layers(self) -> Sequence[str]:
        """The layers that the user wants float; none where that is left to the study, or ruled out."""
        return () if isinstance(self.float_layers, str) else self.float_layers

    def made(self) -> Task:
        """Return the task with its evaluators made from their recipes.

        Raises
        ------
        EvaluatorError, ModelError
            See `EvaluatorRecipe.make`.
        """
        return replace(
            self,
            evaluator=make_evaluator(self.evaluator, self.source),
            confirm=make_evaluator(self.confirm, self.source),
        )

    def as_attribute(self) -> dict[str, Any]:
        """Return what `locate.load_stored_task` makes the task from again, in JSON; evaluators are not data."""
        paths = {"out": self.out, "prototxt": self.source.model, "weights": self.source.weights}
        optional = {"cfg": self.cfg, "study_file": self.study_file}
        return {
            **{key: str(path.resolve()) for key, path in paths.items()},
            **{key: path and str(path.resolve()) for key, path in optional.items()},
            **{key: getattr(self, key) for key in PLAIN_FIELDS},
            "sampler": stored_sampler(self.sampler),
            "artifacts": masked(self.artifacts),
            "has_config": self.config is not None,
        }

    @property
    def artifacts_location(self) -> str:
        """Where the artifacts are."""
        return self.artifacts or str(self.out / "artifacts")

    def trial_folder(self, number: int) -> Path:
        """Where a trial's network lies while it is scored: the same if the trial was killed and runs again."""
        return self.out / f"trial{number}"

    @property
    def scratch_folder(self) -> Path:
        """Where networks lie that are run without the evaluator; it is there only meanwhile."""
        return self.out / "scratch"

    @property
    def prefix(self) -> str:
        """Beginning of the exported files' names."""
        return str(self.out / file_name_of(self.name))

    @property
    def log_file(self) -> Path:
        """One line for each trial that was run with this folder."""
        return self.out / f"{file_name_of(self.name)}.log"

    @property
    def record_file(self) -> Path:
        """The record file of the calibration."""
        return self.out / "calibration" / "record.txt"

    @property
    def points_folder(self) -> Path:
        """The operating points of every layer, built once."""
        return self.out / "calibration" / "points"


PLAIN_FIELDS = (
    "artifacts",
    "batch_num",
    "activation_offset",
    "amct_levels",
    "python_layers",
    "codec",
    "chip",
    "marks",
    "seed",
    "stop_gain",
    "confidence",
    "float_layers",
)
"""Fields of `Task` that are JSON as they stand."""


@dataclass(frozen=True)
class Progress:
    """What just happened, for whoever shows it.

    Attributes
    ----------
    stage : {"study", "baseline", "calibration", "ways", "curves", "float", "foretelling", "waiting", "trial", "stop",
        "confirmation"}
    message : str
    done, total : int
        Within the stage.
    trial, best : TrialRecord or None
    """

    stage: str
    message: str
    done: int
    total: int
    trial: TrialRecord | None = None
    best: TrialRecord | None = None


OnProgress = Callable[[Progress], None]
Callback = Callable[[optuna.Study, FrozenTrial], object]
"""Of Optuna's kind: called with the study and a trial that has just finished."""


def tell_nobody(progress: Progress) -> None:
    """Take no notice of a step."""


def quantized_model(task: Task, graph: Graph | None = None) -> QuantizedModel:
    """Quantize the weights of the task's network as the task says; the network is read unless it is given.

    Layers that its chip does not compress keep their uniform steps.

    Raises
    ------
    StudyError
        `float_layers` names a layer that there is not, or that cannot be quantized; or chip, marks and codec do not go
        together.
    ModelError, QuantizationError
        See `load_graph` and `quantize`.
    """
    graph = graph or load_graph(task.source.model, task.source.weights)
    config = _configuration(task, graph)
    target = task.target.over(config.target) if task.counts_chip else task.target
    config = replace(config, amct_levels=task.amct_levels, target=target)
    if broken := broken_rule(config.target):
        raise StudyError(str(broken), study=task.name)
    _check_named_floats(task, graph, config)
    quantized = {name: layer for name, layer in config.layers.items() if name not in task.named_float_layers}
    model = aimed(quantize(graph, replace(config, layers=quantized)))
    if not model.weights:
        raise StudyError(_say_no_weights(task, model), study=task.name)
    return model


def _say_no_weights(task: Task, model: QuantizedModel) -> str:
    """Say why no layer has int8 weights, so that a study would have nothing to count."""
    with_weights = [one for one in model.capabilities if one.weights]
    named = dict.fromkeys(task.named_float_layers, "is named in float_layers")
    left_out = "is left out by the configuration"
    reasons = {one.name: named.get(one.name) or one.reason or left_out for one in with_weights}
    return f"no layer's weights are quantized: {say_reasons(reasons) or 'the network has none'}"


def _check_named_floats(task: Task, graph: Graph, config: QuantizationConfig) -> None:
    """Refuse names that mean nothing; a layer that the configuration leaves out already may be named."""
    if not task.named_float_layers:
        return
    able = capabilities(graph, skip_fusion=config.skip_fusion_layers, do_fusion=config.do_fusion)
    known = {capability.name: capability for capability in able}
    for name in task.named_float_layers:
        said = f"'float_layers' names '{name}'"
        if name not in known:
            hint = suggest_name(name, known)
            raise StudyError(f"{said}, but the network has no such layer.{hint}", study=task.name)
        if not known[name].quantizable:
            why = known[name].reason
            raise StudyError(f"{said}, which is not quantized anyway ({why}); take it out there", study=task.name)


def _configuration(task: Task, graph: Graph) -> QuantizationConfig:
    if task.config is not None:
        return task.config
    if task.cfg is None:
        return default_config(graph, batch_num=task.batch_num, activation_offset=task.activation_offset)
    said = task.target if task.counts_chip else NO_TARGET
    loaded = load_simplified(task.cfg, capabilities(graph), graph, said)
    for warning in loaded.warnings:
        warnings.warn(warning, stacklevel=2)
    return loaded.config


def make_folders(task: Task) -> None:
    """Make the study's folders and write into them once, before hours are spent; see `check_folder`."""
    with _folder_errors(task):
        task.record_file.parent.mkdir(parents=True, exist_ok=True)
    check_folder(task, task.out)


def check_folder(task: Task, place: Path) -> None:
    """Write once into a folder: the study's, or the one that it will be made in.

    Raises
    ------
    StudyError
        That is not possible.
    """
    with _folder_errors(task), tempfile.TemporaryFile(dir=place):
        pass


@contextmanager
def _folder_errors(task: Task) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"the output folder {task.out} cannot be written: {error.strerror}; choose another with --out",
            study=task.name,
        ) from error


def check_name(task: Task) -> None:
    """Refuse the name of a new study that cannot be that of its files; studies of earlier versions are gone on with.

    Raises
    ------
    StudyError
        Says the rule.
    """
    if not is_file_name(task.name):
        raise StudyError(f"its name cannot be used: {RULE}; give another name", study=task.name)


_digests: dict[tuple[int, int, int, int], str] = {}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Notes
    -----
    **Cost**: one pass over the file, 1 to 2 GB/s, once in a process: a file that has neither been replaced nor written
    since is not read again.
    """
    found = path.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


def fingerprint_of(task: Task, model: QuantizedModel, evaluator: str | None = None) -> dict[str, str]:
    """Digest everything that changes a measurement, under the words that a user knows.

    The evaluator's digest may be known already: whoever is sent one does not see the file that it comes from.

    The folding has an entry where studies of older versions were made without it, so that these are not gone on with;
    the others stay what they are.
    """
    target = model.config.target
    plain = {key: value for key, value in asdict(replace(model.config, layers={})).items() if key != "target"}
    config = json.dumps(plain, sort_keys=True) + json.dumps(
        {name: asdict(settings) for name, settings in model.config.layers.items()}
    )
    digests = {
        "prototxt": file_digest(task.source.model),
        "weights": file_digest(task.source.weights),
        "quantization": hashlib.sha256(config.encode()).hexdigest(),
        "codec": target.say(),
        "evaluator": evaluator or evaluator_fingerprint(task.evaluator),
    }
    if target.chip and target.marked is not None:
        digests["marked layers"] = hashlib.sha256("\0".join(target.marked).encode()).hexdigest()
    if folds := _later_folds(model):
        digests["folding"] = hashlib.sha256(json.dumps(folds).encode()).hexdigest()
    return digests


def _later_folds(model: QuantizedModel) -> dict[str, tuple[str, ...]]:
    """Return what is folded into an InnerProduct, or into a layer behind it: older versions left that alone."""
    order = [capability.name for capability in model.capabilities]
    return {
        host: names
        for host, names in model.folded.items()
        if model.graph.by_name[host].type == "InnerProduct" or order.index(names[0]) < order.index(host)
    }
