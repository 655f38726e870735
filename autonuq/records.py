"""What a study and its trials leave behind, as plain data.

`study` writes these records (into the storage and the artifact folder), `report` draws them. They live below
both, so that neither room imports the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from autonuq.plain import ANY_NUMBER

# Words in storages; those of ours carry the prefix `autonuq:`.

RATIO_PREFIX = "ratio/"
"""Of the parameters: `ratio/<layer>` is the layer's float32 bytes over its compressed bytes."""
CONSTRAINT = "satisfied"
"""The constraint: the margin, log(drop / allowed drop), negative inside."""

# Attributes of a study.
FINGERPRINT = "autonuq:fingerprint"
ORIGINAL_METRIC = "autonuq:original_metric"
ORIGINAL_ERROR = "autonuq:original_standard_error"
LAYERS = "autonuq:layers"
TARGET_TRIALS = "autonuq:target_trials"
PROVENANCE = "autonuq:provenance"
MEANING, RANDOM_DATA = "meaning of the metric", "random data"
"""Keys of the provenance: what the metric means, in a line, and that the evaluator scores data nobody took anywhere."""
TASK = "autonuq:task"
MAKER = "autonuq:maker"
"""The mark of whoever finishes a study that was half made, in a storage without lock."""
CONFIDENCE = "autonuq:confidence"
UNIT = "autonuq:unit"
ORIGINAL_SAMPLES = "autonuq:original_samples"
CONFIRMING_SAMPLES = "autonuq:confirming_samples"
CODEC = "autonuq:codec"
CHIP = "autonuq:chip"
"""The `ChipRecord` of the study; empty without a chip. Studies of versions that counted for none lack it."""
CONFIRMATION = "autonuq:confirmation"
STOPPED = "autonuq:stopped"
FLOAT_LAYERS = "autonuq:float_layers"
"""The `FloatLayers` of the study; empty until they are decided. Studies of versions that had none lack it."""
FLOAT_MEASURED = "autonuq:float_measured"
"""What was measured to decide them: this is how many there are, `autonuq:float_measured/0` is the first."""
WAYS = "autonuq:ways"
"""The `Rounding` of the study; studies of versions that had one way only lack it."""
SENDER = "autonuq:sender"
"""The `storage.lease.Lease` of the process that has sent workers out, while it waits for them; empty afterwards."""
ARTIFACTS = "autonuq:artifacts"
"""File name -> SHA-256."""
CALIBRATED = "autonuq:calibrated"
"""The same, of the files of the calibration, from its end on; `ARTIFACTS` has those that are kept, too."""
POINTS = "autonuq:points"
"""SHA-256 of the operating points' index, which has the digests of the files beside it."""
DATA = "autonuq:data"
"""Part of the evaluators' data, in words -> digest."""
SEAL = "autonuq:seal"
"""Attribute that is final -> digest."""

# Attributes of a trial.
TRIAL = "autonuq:trial"
ORIGIN = "autonuq:origin"
DEATHS = "autonuq:deaths"
RUNNING = "autonuq:running"
"""The fields of `RUNNING_FIELDS`, while the trial is scored."""
RUNNING_FIELDS = ("size_bytes", "started", "worker")
LEASE = "autonuq:lease"
"""The `storage.lease.Lease` of the worker that runs the trial; empty between two workers."""
INT8 = "int8"
"""The origin of the trial that was scored before the search: layers have all their steps, or stay float."""
COPY_OF = "copy of "
"""What an origin begins with where an equal plan had been scored; that trial's number follows."""
PLAN = "autonuq:plan"
"""A system attribute: the index of the proposed point of every layer, in the order of the curves."""
LOSS_ERROR = "autonuq:loss_error"
"""The paired error of a trial's loss, in allowed drops."""
MARGIN_ERROR = "autonuq:margin_error"
"""The standard deviation of a constraint that is an estimate itself."""

MARGIN_LIMIT = 7.0
"""Margins are clipped to +-7: a drop 1,000 times smaller or larger than allowed says no more."""
_VERDICT_ALONE = 1.0
ON_RANDOM_DATA = "on random data: this says nothing about the network's task"
"""Said beside every result of such a study."""
INT8_STEPS = 256


def verdict_alone(satisfied: bool) -> float:
    """Return the margin that says nothing but the verdict: -1 or 1."""
    return -_VERDICT_ALONE if satisfied else _VERDICT_ALONE


def is_verdict_alone(margin: float) -> bool:
    """Say whether a margin says nothing but the verdict."""
    return abs(margin) == _VERDICT_ALONE


@dataclass(frozen=True)
class Unit:
    """What losses are said in.

    Attributes
    ----------
    name : str
        Empty for the metric's own.
    factor : float
        Of it in the metric's: 100 for points of a share.
    samples : str
        What is scored.
    """

    name: str = ""
    factor: float = 1.0
    samples: str = "samples"

    def say(self, loss: float, error: float | None) -> str:
        """Put a loss and its error into words."""
        own, spread = (".3g", ".2g") if self.factor == 1.0 or error is None else (".2f", ".2f")
        shown = f"{loss * self.factor:{own}}" + ("" if error is None else f" ± {error * self.factor:{spread}}")
        return f"{shown} {self.name}".strip()


def say_verdict(satisfied: bool | None) -> str:
    """Put a verdict into words."""
    return "satisfied" if satisfied else "not satisfied"


def encode_levels(levels: Iterable[int]) -> str:
    """Write the levels of a codebook as 64 hexadecimal digits, bit i standing for level i - 128."""
    return f"{sum(1 << (int(level) + 128) for level in levels):064x}"


def decode_levels(code: str) -> tuple[int, ...]:
    """Read what `encode_levels` wrote: sorted levels.

    Examples
    --------
    >>> decode_levels(encode_levels([7, -8, 0]))
    (-8, 0, 7)
    """
    mask = int(code, 16)
    return tuple(level for level in range(-128, 128) if mask >> (level + 128) & 1)


@dataclass(frozen=True)
class LayerRecord:
    """One layer with weights.

    Attributes
    ----------
    name, type : str
        Caffe's layer name and type.
    weights : int
        Number of weights (bias not counted).
    treatment : {"nuq", "uniform", "float"}
        Searched codebook, all 256 int8 steps, or left as float32.
    reason : str
        Why the treatment is not "nuq"; empty otherwise.
    rates_bytes, distortions : tuple of float
        The layer's rate-distortion curve, by falling rate (one point for layers that are not searched).
    curve_levels : tuple of int
        Number of levels of each point of the curve (256 stands for uniform int8).
    histogram : tuple of int
        Count of each int8 code before NUQ, index = code + 128; empty if it was not recorded.
    codebooks : tuple of str
        Codebook of each point of the curve, as `encode_levels` writes it; empty if they were not recorded.
    steps : tuple of float
        Distance of neighbouring levels at each point, in int8 steps, the median of the outputs; empty where it is 1.
    """

    name: str
    type: str
    weights: int
    treatment: Literal["nuq", "uniform", "float"]
    reason: str = ""
    rates_bytes: tuple[int, ...] = ()
    distortions: tuple[float, ...] = ()
    curve_levels: tuple[int, ...] = ()
    histogram: tuple[int, ...] = ()
    codebooks: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()

    @property
    def original_bytes(self) -> int:
        """Size of the weights as float32."""
        return 4 * self.weights


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes
    ----------
    number : int
    state : {"complete", "failed", "running", "waiting"}
    ratio : float or None
        Overall weight-compression ratio; None unless complete.
    metric : float or None
        What the evaluator returned.
    satisfied : bool or None
        The evaluator's verdict.
    margin : float or None
        The constraint: log(drop / allowed drop), negative inside.
    size_bytes : int or None
        Compressed bytes of all quantizable layers' weights.
    points : mapping of str to int
        Index of the chosen point on each searched layer's curve.
    origin : str
        "int8" (all steps, see `INT8`), "seed" (a uniform level count), "sampler", or "copy of N" when an equal
        plan had been scored.
    started : str
        ISO 8601 in UTC, empty if not started.
    duration_s : float or None
    error : str
        Why the trial failed; empty otherwise.
    worker : str
        host:pid of the process that ran it.
    predicted : float or None
        The margin that the curves and the trials before this one let expect.
    standard_error : float or None
        Of the metric, where the evaluator can tell.
    margin_error : float or None
        The standard deviation of `margin` where that is an estimate, as `metric` is then; None where it was measured.
    loss_error : float or None
        The paired standard error of the loss, in the metric's unit; None where samples are not known.
    relative_error : float or None
        The same in allowed drops; None unless the margin tells.
    probability : float or None
        That the plan keeps the limit on data like these; None unless margins tell.
    built : mapping of str to pair of int
        Bytes and number of levels of each layer that was rounded anew when the plan's network was built; other layers
        have those of their point.
    network : str
        SHA-256 of the file that keeps the plan's network; empty where it is what its points say.
    scatter : float or None
        By which trials scatter around the model of the loss, in allowed drops: what stands for the error of a loss
        whose samples are not known. Neither of these two is stored: they follow from all trials.
    """

    number: int
    state: Literal["complete", "failed", "running", "waiting"]
    ratio: float | None = None
    metric: float | None = None
    satisfied: bool | None = None
    margin: float | None = None
    size_bytes: int | None = None
    points: Mapping[str, int] = field(default_factory=dict)
    origin: str = "sampler"
    started: str = ""
    duration_s: float | None = None
    error: str = ""
    worker: str = ""
    predicted: float | None = None
    standard_error: float | None = None
    margin_error: float | None = None
    loss_error: float | None = None
    relative_error: float | None = None
    probability: float | None = None
    scatter: float | None = None
    built: Mapping[str, Sequence[int]] = field(default_factory=dict)
    network: str = ""

    @property
    def is_copy(self) -> bool:
        """Whether its numbers are those of an earlier trial of the same plan."""
        return self.origin.startswith(COPY_OF)

    @property
    def outcome(self) -> str:
        """What came of the trial, in a word or two: a verdict, "failed", or "running"."""
        if self.state != "complete":
            return "failed" if self.state == "failed" else "running"
        return say_verdict(self.satisfied)

    @property
    def summary(self) -> str:
        """What came of the trial, in one line."""
        if self.state != "complete":
            return self.error
        estimated = ", estimated" if self.margin_error is not None else ""
        alone = ", verdict alone: is_satisfied shows no single edge" if is_verdict_alone(self.margin or 0.0) else ""
        return f"ratio {self.ratio:.2f}, metric {self.metric:g}{estimated}{alone}"


@dataclass(frozen=True)
class Confirmation:
    """What another evaluator, or the same on other data, says of the winner; the search never saw it.

    Attributes
    ----------
    evaluator : str
        Its name and number of batches.
    trial : int
        The winner that was scored.
    original_metric, metric : float or None
        Of the original network and of the winner; None where `error` says why not.
    satisfied : bool or None
        The verdict of the confirming evaluator.
    original_standard_error, standard_error : float or None
        Of both metrics, where the evaluator can tell.
    error : str
        Why it could not be had; empty otherwise.
    loss, loss_error : float or None
        What was lost, in the metric's unit, positive where it got worse, and its standard error. Of a second plan that
        was tried and later ones: what both data together say, because the last of several looks is lucky.
    limit : float or None
        The loss that is allowed there.
    samples : int or None
        How many were scored.
    tried : int
        Plans that were scored until this one.
    probability : float or None
        That the plan keeps the limit, after both the search and this.
    holds : bool or None
        Whether it is confirmed: satisfied here, and probable enough.
    finished : int
        How many trials had finished when this was found.
    """

    evaluator: str
    trial: int
    original_metric: float | None = None
    metric: float | None = None
    satisfied: bool | None = None
    original_standard_error: float | None = None
    standard_error: float | None = None
    error: str = ""
    loss: float | None = None
    loss_error: float | None = None
    limit: float | None = None
    samples: int | None = None
    tried: int = 1
    probability: float | None = None
    holds: bool | None = None
    finished: int = -1

    def say(self, unit: Unit) -> str:
        """Put what was found into words."""
        if self.metric is None:
            return f"trial {self.trial} could not be confirmed: {self.error}"
        if self.loss is None:
            before = format_metric(self.original_metric, self.original_standard_error)
            after = format_metric(self.metric, self.standard_error)
            return f"trial {self.trial} by {self.evaluator}: metric {before} -> {after}, {say_verdict(self.satisfied)}"
        words = say_loss(self.loss, self.loss_error, unit, self.samples, self.limit, "that the search never saw")
        tried = f"; {self.tried} plans were tried" if self.tried > 1 else ""
        return f"{words}{say_probability(self.probability)}{tried}: {'confirmed' if self.holds else 'not confirmed'}"


MOST_NAMED = 5
"""Of what there may be hundreds."""


def say_few(names: Sequence[str]) -> str:
    """Name the first few, and say how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs alone: the others are float.

    Attributes
    ----------
    layer : str
    float_bytes : int
        What its weights take as float32.
    cost : float or None
        See `FloatLayers.measure`; None where the evaluator failed.
    """

    layer: str
    float_bytes: int
    cost: float | None = field(metadata=ANY_NUMBER)


OUTPUT_ERROR, METRIC_CHANGE = "share of error in the outputs", "change of the metric"
"""What a layer's cost can be: measured on inputs of the calibration, or by the evaluator."""


@dataclass(frozen=True)
class FloatLayers:
    """Layers that stay float although they can be quantized, and why.

    Attributes
    ----------
    layers : tuple of str
        In network order; none where int8 is good enough, and where nothing helps.
    reason : str
        Empty where int8 is good enough or was not questioned.
    measure : str
        What the costs are: `OUTPUT_ERROR` or `METRIC_CHANGE`; empty without.
    costs : tuple of LayerCost
        Of every layer that was quantized, the largest first; empty where nothing was measured.
    hopeless : bool
        Not one layer can be quantized within the limit.
    """

    layers: tuple[str, ...] = ()
    reason: str = ""
    measure: str = ""
    costs: tuple[LayerCost, ...] = ()
    hopeless: bool = False

    def say(self) -> str:
        """Put what was decided into words; empty where nothing stays float."""
        if self.hopeless:
            return f"nothing helps: {self.reason}, and no layer can be quantized within the limit"
        if not self.layers:
            return ""
        count = "1 layer stays" if len(self.layers) == 1 else f"{len(self.layers)} layers stay"
        return f"{count} float: {say_few(self.layers)}, because {self.reason}"

    def say_cost(self, cost: float | None) -> str:
        """Put one layer's cost into words."""
        if cost is None:
            return "not scored"
        return f"{cost:.3%}" if self.measure == OUTPUT_ERROR else f"{cost:.4g}"


def say_loss(loss: float, error: float | None, unit: Unit, samples: int | None, limit: float | None, where: str) -> str:
    """Say what was lost, on what, and what may be: `lost 0.71 ± 0.24 points on 5,000 images ... (limit 1)`."""
    count = f" on {samples:,} {unit.samples} {where}" if samples else f" on data {where}"
    allowed = "" if limit is None else f" (limit {limit * unit.factor:.3g})"
    return f"lost {unit.say(loss, error)}{count}{allowed}"


def say_probability(probability: float | None) -> str:
    """Say how probable it is that the limit is kept."""
    return "" if probability is None else f", kept with probability {probability:.2f}"


@dataclass(frozen=True)
class ComparedWay:
    """A way of rounding that was tried on images of the calibration that took no part in it.

    Attributes
    ----------
    way : str
        In words.
    ratio, divergence : float
        Of the network that it made; nats from the original, mean over images.
    """

    way: str
    ratio: float
    divergence: float = field(metadata=ANY_NUMBER)


@dataclass(frozen=True)
class Rounding:
    """How the layers' weights are rounded, and why.

    Attributes
    ----------
    way : str
        In words; empty where that was not chosen.
    compared : tuple of ComparedWay
        The ways that were tried.
    unknown : mapping of str to str
        Layers of which is not known what their errors do to the network's end -> the reason.
    in_order : bool
        Each plan's network is built in order, against what the quantized layers before really give.
    images : int
        Of the calibration, that were kept for this.
    factors : mapping of str to float
        By which the layers' curves were corrected once the divergence of some plans had been measured.
    """

    way: str = ""
    compared: tuple[ComparedWay, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    in_order: bool = False
    images: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)

    def say(self) -> str:
        """Put it into words."""
        if not self.way:
            return ""
        order = f"networks are built in order on {self.images} images" if self.in_order else "layers are rounded alone"
        return f"{self.way}; {order}"


@dataclass(frozen=True)
class ChipLayer:
    """What a chip's compiler does with one layer.

    Attributes
    ----------
    layer : str
    is_compressed : bool
    reason : str
        Why, or why not.
    device_bytes : int
        Its int8 weights as the chip holds them, uncompressed.
    load : float or None
        Cycles that loading them takes, by those of computing with them; None where that is not judged.
    """

    layer: str
    is_compressed: bool
    reason: str
    device_bytes: int
    load: float | None = None


@dataclass(frozen=True)
class ChipRecord:
    """The chip whose bytes a study counts.

    Attributes
    ----------
    chip : str
    marks : str
        Which layers its compiler compresses, in words.
    layers : tuple of ChipLayer
        Every layer with int8 weights, in network order; of a `StudyRecord` those that stay float, too.
    """

    chip: str
    marks: str
    layers: tuple[ChipLayer, ...]

    def of_study(self, layers: Iterable[LayerRecord]) -> ChipRecord:
        """Return what the chip does with all layers of a study: those that stay float it loads as float32."""
        known = {layer.layer: layer for layer in self.layers}
        floats = {
            layer.name: ChipLayer(layer.name, False, layer.reason, layer.original_bytes)
            for layer in layers
            if layer.treatment == "float"
        }
        return replace(self, layers=tuple((known | floats).values()))


_LARGE_SHARE = 0.1  # of the loss: below, tenths of per cents count


@dataclass(frozen=True)
class LossPart:
    """What one layer contributes to the loss of a plan.

    Attributes
    ----------
    layer : str
        Empty for what no layer's plan changes: activations in int8, and layers that are not searched.
    share : float
        Of the loss, in [0, 1].
    deviation : float
        Standard deviation of the logarithm of the share.
    """

    layer: str
    share: float
    deviation: float


@dataclass(frozen=True)
class LossParts:
    """Which layers cause the loss of a trial, by the model of the loss that learnt from all trials.

    Attributes
    ----------
    trial : int
        The best one or, where none is satisfied, the one nearest to the limit.
    layers : tuple of LossPart
        Those that are searched, the largest part first.
    rest : LossPart
        What is left: all parts together are the loss.
    loss, loss_error : float or None
        What the trial is believed to lose, in the metric's unit, and the standard deviation of that; None where no
        margin tells.
    """

    trial: int
    layers: tuple[LossPart, ...]
    rest: LossPart
    loss: float | None = None
    loss_error: float | None = None

    def loss_of(self, part: LossPart) -> float | None:
        """Return a part of the loss, in the metric's unit; None where the loss is not known."""
        return None if self.loss is None else part.share * self.loss

    def say(self, part: LossPart, unit: Unit) -> tuple[str, str]:
        """Put a part into words: `0.12 points` and `34% (24% to 48%)`; the first is empty where no margin tells."""
        low, high = self.bounds(part)
        loss = self.loss_of(part)
        pattern = ".0%" if part.share >= _LARGE_SHARE else ".1%"
        return "" if loss is None else unit.say(
            loss, None
        ), f"{part.share:{pattern}} ({low:{pattern}} to {high:{pattern}})"

    def bounds(self, part: LossPart) -> tuple[float, float]:
        """Return the share within which a part lies with one standard deviation, above and below."""
        spread = math.exp(min(part.deviation, MARGIN_LIMIT))
        return part.share / spread, min(1.0, part.share * spread)


def _say_trials(numbers: Sequence[int]) -> str:
    """Name a few trials, and say how many more there are."""
    return f"trial{'s' if len(numbers) > 1 else ''} {say_few(list(map(str, numbers)))}"


@dataclass(frozen=True)
class StudyRecord:
    """A study at one moment.

    Attributes
    ----------
    name, codec : str
    original_metric : float or None
        Metric of the float32 network; None before it was scored.
    layers : tuple of LayerRecord
        Every layer with weights, in network order.
    trials : tuple of TrialRecord
        By number.
    target_trials : int
        How many trials the study shall have in all.
    provenance : mapping of str to str
        What is needed to repeat it: versions, seed, hashes, files.
    confirmation : Confirmation or None
        Of the best trial at the end of the last run, where the study has it.
    original_standard_error : float or None
        Of the original metric, where the evaluator can tell.
    stopped : str
        Why the study ended before it had all its trials; empty otherwise.
    confidence : float
        With which the winner shall keep the limit on data like these; 0 takes every measurement at its word.
    unit : Unit
        Of losses.
    samples : int or None
        How many the evaluator scores, where it tells.
    float_layers : FloatLayers
        Decided before the search.
    rounding : Rounding
        Chosen before the search.
    chip : ChipRecord or None
        Whose bytes are counted, if a chip's are.
    ignored : mapping of int to str
        Numbers of the trials in its storage that are not among `trials`, because another program made them or what is
        stored of them is damaged -> why.
    loss_parts : LossParts or None
        Which layers cause the loss of the best trial; None where the model of the loss says nothing. It is not stored:
        it follows from all trials.
    """

    name: str
    codec: str
    original_metric: float | None
    layers: tuple[LayerRecord, ...]
    trials: tuple[TrialRecord, ...]
    target_trials: int
    provenance: Mapping[str, str] = field(default_factory=dict)
    confirmation: Confirmation | None = None
    original_standard_error: float | None = None
    stopped: str = ""
    confidence: float = 0.0
    unit: Unit = Unit()
    samples: int | None = None
    float_layers: FloatLayers = FloatLayers()
    rounding: Rounding = Rounding()
    chip: ChipRecord | None = None
    ignored: Mapping[int, str] = field(default_factory=dict)
    loss_parts: LossParts | None = None

    @property
    def meaning(self) -> str:
        """What the metric means, in a line; empty where the evaluator does not say."""
        return self.provenance.get(MEANING, "")

    @property
    def warning(self) -> str:
        """What whoever reads a result must know first; empty where there is nothing."""
        return ON_RANDOM_DATA if RANDOM_DATA in self.provenance else ""

    @property
    def int8_bytes(self) -> int | None:
        """Bytes that the chip would load with int8 alone, layers that stay float as float32; None without a chip."""
        if self.chip is None:
            return None
        return sum(layer.device_bytes for layer in self.chip.of_study(self.layers).layers)

    def say_transfer(self) -> str:
        """Say what the chip loads now, with int8 only and with float32; empty without a chip, or a best trial."""
        best, plain = self.best, self.int8_bytes
        if self.chip is None or best is None or best.size_bytes is None or plain is None:
            return ""
        sizes = f"{best.size_bytes:,} bytes of weights; with int8 only {plain:,}, with float32 {self.original_bytes:,}"
        return f"{self.chip.chip} loads {sizes} ({self.chip.marks})"

    @property
    def original_bytes(self) -> int:
        """Float32 bytes of all layers' weights."""
        return sum(layer.original_bytes for layer in self.layers)

    @property
    def best(self) -> TrialRecord | None:
        """The trial that is exported: the confirmed one, or else what `chosen` finds; None if none is satisfied."""
        found = self.confirmation
        if found is not None and found.holds and found.finished == self.counts.finished:
            return next((trial for trial in self.trials if trial.number == found.trial), None)
        return self.chosen()

    def chosen(self) -> TrialRecord | None:
        """Return the satisfied trial with the largest ratio that keeps the limit with the study's confidence.

        The earlier one of equals; the most probable one, if none is probable enough; None if none is satisfied. Int8
        alone, of which the model of the loss says nothing, is what is left where nothing else satisfies.
        """
        every = [trial for trial in self.trials if trial.state == "complete" and trial.satisfied]
        satisfied = [trial for trial in every if trial.origin != INT8] or every
        trusted = [trial for trial in satisfied if trial.probability is None or trial.probability >= self.confidence]
        if trusted or not satisfied:
            return max(trusted, key=lambda trial: (trial.ratio or 0.0, -trial.number), default=None)
        return max(satisfied, key=lambda trial: (trial.probability or 0.0, -trial.number))

    def front(self) -> tuple[TrialRecord, ...]:
        """Return the satisfied trials that no other one beats in both ratio and metric, by falling ratio.

        Of equals, the earliest.
        """
        sign = 1 if self.metric_rises else -1
        satisfied = [
            (-trial.ratio, -sign * trial.metric, trial.number, trial)
            for trial in self.trials
            if trial.state == "complete" and trial.satisfied and trial.ratio is not None and trial.metric is not None
        ]
        front: list[TrialRecord] = []
        least = math.inf
        for _, lack, _, trial in sorted(satisfied, key=lambda one: one[:3]):
            if lack < least:
                front.append(trial)
                least = lack
        return tuple(front)

    @property
    def confirmed(self) -> bool | None:
        """Whether the best trial held on data that the search never saw; None if there was no look at any."""
        found, best = self.confirmation, self.best
        if found is None or best is None or found.trial != best.number or found.metric is None:
            return None
        return bool(found.satisfied if found.holds is None else found.holds)

    def loss(self, trial: TrialRecord) -> float | None:
        """Return how much worse a trial's metric is than the original's, in the metric's unit."""
        if trial.metric is None or self.original_metric is None:
            return None
        return (self.original_metric - trial.metric) * (1 if self.metric_rises else -1)

    @property
    def allowed(self) -> float | None:
        """The loss that the limit allows, in the metric's unit; None if no margin tells."""
        return None if self.limit is None or self.original_metric is None else abs(self.original_metric - self.limit)

    @property
    def metric_rises(self) -> bool:
        """Whether a larger metric is the better one.

        A verdict does not tell which way a metric improves (accuracy up, loss down). Where the constraint turns does;
        else the metric is taken to improve upwards unless the unsatisfied trials (all, if none is unsatisfied) lie on
        average above the original. Source: own derivation.
        """
        if self.original_metric is None:
            return True
        if self.limit is not None:
            return self.limit <= self.original_metric
        known = [trial for trial in self.trials if trial.state == "complete" and trial.metric is not None]
        worse = [trial.metric for trial in known if not trial.satisfied] or [trial.metric for trial in known]
        return not worse or sum(metric or 0.0 for metric in worse) / len(worse) <= self.original_metric

    def nearest(self) -> TrialRecord | None:
        """Return the trial of the search that is nearest to the limit; None before one has a margin."""
        known = [t for t in self.trials if t.state == "complete" and t.margin is not None and t.origin != INT8]
        return min(known, key=lambda trial: (trial.margin or 0.0, trial.number), default=None)

    def say_best(self) -> str:
        """Say what must be known first, what the best trial lost, on what, whether that holds; empty without one."""
        words = self.say_best_loss()
        return f"{self.warning}; {words}" if self.warning and words else words

    def say_best_loss(self) -> str:
        """Say what the best trial lost, on what, whether that holds; empty without one."""
        best = self.best
        if best is None:
            return ""
        found = self.confirmation
        confirms = found is not None and found.trial == best.number and found.metric is not None
        return found.say(self.unit) if found is not None and confirms else self._say_unconfirmed(best)

    def _say_unconfirmed(self, best: TrialRecord) -> str:
        error, allowed = best.loss_error, self.allowed
        by = ""
        if error is None and best.scatter is not None and allowed is not None:
            error, by = best.scatter * allowed, " (± by the scatter of the trials, not of samples)"
        words = say_loss(self.loss(best) or 0.0, error, self.unit, self.samples, allowed, "that chose it")
        return f"{words}{by}{say_probability(best.probability)}: not confirmed"

    @property
    def limit(self) -> float | None:
        """The metric at which the constraint turns, out of the trial nearest to it; None if no margin tells.

        A margin is log(drop / allowed drop), so original + (metric - original) / exp(margin) is the limit. Margins of
        -1, 0 and 1, which stand for the verdict alone, clipped and estimated ones tell nothing.
        """
        if self.original_metric is None:
            return None
        telling = [
            (abs(trial.margin), trial.margin, trial.metric)
            for trial in self.trials
            if trial.metric is not None
            and trial.margin is not None
            and trial.margin_error is None
            and trial.metric != self.original_metric
            and 0 < abs(trial.margin) < MARGIN_LIMIT
            and not is_verdict_alone(trial.margin)
        ]
        if not telling:
            return None
        _, margin, metric = min(telling)
        return self.original_metric + (metric - self.original_metric) * math.exp(-margin)

    @property
    def counts(self) -> Counts:
        """How many trials are in which state."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        return Counts(
            complete=len(complete),
            satisfied=sum(bool(trial.satisfied) for trial in complete),
            failed=sum(trial.state == "failed" for trial in self.trials),
            running=sum(trial.state == "running" for trial in self.trials),
        )

    def say_ignored(self) -> list[str]:
        """Say which trials count for nothing, a line for each reason."""
        by_reason: dict[str, list[int]] = {}
        for number, why in self.ignored.items():
            by_reason.setdefault(why, []).append(number)
        return [f"{_say_trials(numbers)}: {why}" for why, numbers in by_reason.items()]

    def layer_rows(self, trial: TrialRecord | None) -> tuple[LayerRow, ...]:
        """Return what a trial's plan makes of every layer, in network order; without a trial, what is known."""
        return tuple(_layer_row(layer, trial) for layer in self.layers)

    def layer_levels(self, trial: TrialRecord) -> dict[str, int]:
        """Levels of every quantized layer under a trial's plan."""
        return {row.layer.name: row.levels for row in self.layer_rows(trial) if row.levels is not None}


@dataclass(frozen=True)
class Counts:
    """Trials of a study.

    Attributes
    ----------
    complete, satisfied, failed, running : int
        Those that are satisfied are complete, too.
    """

    complete: int
    satisfied: int
    failed: int
    running: int

    @property
    def finished(self) -> int:
        """Trials that will not run again."""
        return self.complete + self.failed


@dataclass(frozen=True)
class LayerRow:
    """One layer under a plan.

    Attributes
    ----------
    layer : LayerRecord
    size_bytes : int or None
        Compressed; None without a plan.
    levels : int or None
        int8 steps that the layer keeps; None without a plan and for a layer that stays float.
    """

    layer: LayerRecord
    size_bytes: int | None
    levels: int | None

    @property
    def ratio(self) -> float | None:
        """Bytes as float32 over compressed bytes; a layer that needs none counts as one byte."""
        return None if self.size_bytes is None else self.layer.original_bytes / max(1, self.size_bytes)

    @property
    def retention(self) -> float | None:
        """Share of the int8 steps that are kept."""
        return None if self.levels is None else self.levels / INT8_STEPS

    @property
    def bits_per_weight(self) -> float | None:
        """Of the compressed layer."""
        return None if self.size_bytes is None or not self.layer.weights else 8 * self.size_bytes / self.layer.weights


def _layer_row(layer: LayerRecord, trial: TrialRecord | None) -> LayerRow:
    if trial is None:
        return LayerRow(layer, None, None)
    point = trial.points.get(layer.name, 0)
    levels = None if layer.treatment == "float" else layer.curve_levels[point]
    size, levels = trial.built.get(layer.name, (layer.rates_bytes[point], levels))
    return LayerRow(layer, size, levels)


def format_metric(metric: float | None, standard_error: float | None = None) -> str:
    """Write a metric, with its standard error where that is known."""
    if metric is None:
        return "-"
    return f"{metric:g}" if standard_error is None else f"{metric:g} ± {standard_error:.2g}"
