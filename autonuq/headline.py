"""What a study says first, wherever it is looked at: what it reached, whether that holds, and what to do next.

The one owner of these words: the report's first screen, `status`, `compare` and the dashboard show what stands here.
Every rule reads the `StudyRecord` and nothing else. A rule gives at most one step, and steps come in the order in which
they help: what makes all others void first (random data, trials that fail), then trials that are left, then what the
result lacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from autonuq.records import MOST_NAMED, LayerRecord, LossPart, StudyRecord, TrialRecord

StepKind = Literal["data", "mend", "resume", "wait", "trials", "samples", "confirm", "relax", "limit", "done"]

LARGE_ERROR = 0.25
"""Of the limit: an error that is larger keeps the search far inside of it."""

RISE, RISE_TRIALS = 0.01, 0.25
"""A front that rose by more than this in this share of the trials, the last ones, is still rising."""

MUCH_LOSS, FEW_BYTES, KNOWN = 0.1, 0.02, 0.7
"""A layer is better left float if it causes this share of the loss, costs no more than this share of the bytes then,
and its share is known to this standard deviation of its logarithm: to a factor of two."""

MOST_LAYERS = 3
"""That are named in a step, and among those that hurt most."""

LEAST_SHARE = 0.005
"""Of the loss: less is shown as 0 %, and no layer is said to hurt by it."""

WORTH = 1.5
"""As many samples as there are: fewer more are not worth it."""

MOST_TIMES = 1000
"""As many samples as there are, that are still worth advising."""


@dataclass(frozen=True)
class Step:
    """What to do next.

    Attributes
    ----------
    kind : str
        In a word, for programs: `StepKind`.
    text : str
        In a sentence.
    trials, samples : int or None
        How many there should be in all, where that is the advice.
    layers : tuple of str
        The layers that are meant.
    """

    kind: StepKind
    text: str
    trials: int | None = None
    samples: int | None = None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hurting:
    """A layer that causes much of the loss.

    Attributes
    ----------
    part : LossPart
    loss : str
        What it causes, in words; empty where only shares are known.
    share : str
        Of the loss, with one standard deviation of what is not known.
    size_bytes : int
    byte_share : float
        Of all compressed bytes.
    """

    part: LossPart
    loss: str
    share: str
    size_bytes: int
    byte_share: float

    def say(self) -> str:
        """Put it into one line."""
        loss = f"{self.loss}, " if self.loss else ""
        return f"{self.part.layer}: {loss}{self.share} of the loss, {self.size_bytes:,} bytes"


@dataclass(frozen=True)
class Headline:
    """What a study says first.

    Attributes
    ----------
    warning, meaning : str
        What must be known before anything else; what the metric means. Empty where there is nothing.
    ratio : str
        How much smaller, and how many bytes; or why there is no ratio.
    loss : str
        Of the best trial, with its error and its limit; empty without one.
    confirmed : str
        Whether it holds on other data and, if not, why; empty without a best trial.
    steps : tuple of Step
        At least one.
    hurting : tuple of Hurting
        The layers that hurt most; none where the model of the loss says nothing.
    """

    warning: str
    meaning: str
    ratio: str
    loss: str
    confirmed: str
    steps: tuple[Step, ...]
    hurting: tuple[Hurting, ...]


def headline(record: StudyRecord) -> Headline:
    """Put into words what a study says first."""
    return Headline(
        warning=record.warning,
        meaning=record.meaning,
        ratio=say_ratio(record),
        loss=record.say_best_loss(),
        confirmed=say_confirmed(record),
        steps=next_steps(record),
        hurting=hurting(record),
    )


def say_ratio(record: StudyRecord) -> str:
    """Say how much smaller the network got, or that no trial tells."""
    best = record.best
    if best is None:
        return "no trial satisfied the constraint" if record.counts.complete else "no finished trial yet"
    size = "" if best.size_bytes is None else f": {record.original_bytes:,} -> {best.size_bytes:,} bytes of weights"
    return f"{best.ratio or 0.0:.2f}x smaller{size}"


def say_confirmed(record: StudyRecord) -> str:
    """Say whether the best trial holds on data that the search never saw, and why not."""
    found, best = record.confirmation, record.best
    if best is None:
        return ""
    if record.confirmed is None:
        if found is not None and found.error and found.trial == best.number:
            return f"no: {found.error}"
        if _is_unfinished(record):
            return "not yet: trials are left"
        return "no: no data were held back from the search"
    if record.confirmed:
        return "yes, on data that the search never saw"
    if found is not None and not found.satisfied:
        return "no: on data that the search never saw the limit is not kept"
    return "no: the limit is kept there, but too narrowly for other data like these"


def hurting(record: StudyRecord) -> tuple[Hurting, ...]:
    """Return the layers that cause most of the loss, with their parts of it and their bytes."""
    parts = record.loss_parts
    trial = None if parts is None else next((one for one in record.trials if one.number == parts.trial), None)
    if parts is None or trial is None:
        return ()
    sizes = {row.layer.name: row.size_bytes or 0 for row in record.layer_rows(trial)}
    whole = max(1, sum(sizes.values()))
    return tuple(
        Hurting(part, *parts.say(part, record.unit), sizes[part.layer], sizes[part.layer] / whole)
        for part in parts.layers[:MOST_LAYERS]
        if part.share >= LEAST_SHARE
    )


def next_steps(record: StudyRecord) -> tuple[Step, ...]:
    """Say what to do next, what helps most first; of each kind one step."""
    found: dict[str, Step] = {}
    for rule in _FIRST_RULES if record.warning else (*_FIRST_RULES, *_RULES):
        for step in rule(record):
            found.setdefault(step.kind, step)
    return tuple(found.values()) or (Step("done", "nothing is left to do: the exported network can be used"),)


def _is_unfinished(record: StudyRecord) -> bool:
    return not record.stopped and record.counts.finished < record.target_trials


def _on_random_data(record: StudyRecord) -> Iterator[Step]:
    if record.warning:
        yield Step("data", "score real data first: the evaluator makes random ones, which say nothing about the task")


def _failing(record: StudyRecord) -> Iterator[Step]:
    failed = [trial for trial in record.trials if trial.state == "failed"]
    if failed and len(failed) >= record.counts.complete:
        yield Step("mend", f"mend what lets trials fail, then resume: {failed[-1].error}")
    found = record.confirmation
    if found is not None and found.error:
        yield Step("mend", f"mend what the confirmation failed with, then resume: {found.error}")


def _unfinished(record: StudyRecord) -> Iterator[Step]:
    if not _is_unfinished(record):
        return
    counts, left = record.counts, record.target_trials - record.counts.finished
    if counts.running:
        yield Step("wait", f"wait for {_count(left, 'trial')}, {counts.running} running now")
    else:
        yield Step("resume", f"autonuq resume STUDY: {_count(left, 'trial')} of {record.target_trials} are left")


def _rising(record: StudyRecord) -> Iterator[Step]:
    """Ask for more trials where the last ones still found better plans."""
    done = sorted((t for t in record.trials if t.state == "complete" and t.ratio), key=lambda trial: trial.number)
    last = max(1, math.ceil(RISE_TRIALS * len(done)))
    before, after = (
        max((t.ratio or 0.0 for t in some if t.satisfied and _is_sure(record, t)), default=0.0)
        for some in (done[:-last], done)
    )
    if _is_unfinished(record) or record.stopped or record.best is None or not before or after <= (1 + RISE) * before:
        return
    more = 2 * record.target_trials
    rise = f"the last {_count(last, 'trial')} raised the ratio by {after / before - 1:.0%}"
    yield Step("trials", f"autonuq resume STUDY --trials {more}: {rise}", trials=more)


def _is_sure(record: StudyRecord, trial: TrialRecord) -> bool:
    return trial.probability is None or trial.probability >= record.confidence


def _improbable(record: StudyRecord) -> Iterator[Step]:
    """Ask for more trials where the best of them is satisfied, but hardly by more than luck."""
    best = record.best
    if best is None or _is_unfinished(record) or record.stopped or _is_sure(record, best) or record.confirmed:
        return
    more = 2 * record.target_trials
    why = f"no plan yet keeps the limit with probability {record.confidence:g}"
    yield Step("trials", f"autonuq resume STUDY --trials {more}: {why}", trials=more)


def _unsatisfied(record: StudyRecord) -> Iterator[Step]:
    """Say what lets a network keep the limit, of which no plan did."""
    if record.best is not None or not record.counts.complete or _is_unfinished(record):
        return
    floats, nearest = record.float_layers, record.nearest()
    if not floats.hopeless:
        names = tuple(one.layer for one in floats.costs if one.layer not in floats.layers)[:MOST_LAYERS]
        parts = record.loss_parts
        if not names and parts is not None:
            names = tuple(part.layer for part in parts.layers[:MOST_LAYERS] if part.share >= LEAST_SHARE)
        if names:
            yield _leave_float(record, names, "these cost most")
    allowed = record.allowed
    how = ""
    if nearest is not None and allowed is not None and (loss := record.loss(nearest)) is not None:
        shown = record.unit.say(loss, None)
        how = f": trial {nearest.number} lost least, {shown} where {record.unit.say(allowed, None)} may be lost"
    yield Step("limit", f"allow a larger loss, or calibrate on more data{how}")


def _uncertain(record: StudyRecord) -> Iterator[Step]:
    """Ask for more samples where the error is what keeps the ratio down, or the winner from being confirmed."""
    best, found = record.best, record.confirmation
    if best is None or _is_unfinished(record):
        return
    searched = _samples_for_search(record, best)
    held = None
    if record.confirmed is False and found is not None and found.satisfied:
        held = _times_to_confirm(record)
    if held is not None and found is not None and found.samples:
        wanted = _rounded(held * found.samples)
        yield Step(
            "samples",
            f"hold back about {wanted:,} {record.unit.samples} in place of {found.samples:,}, to be sure of the limit",
            samples=wanted,
        )
    if searched is None or best.loss_error is None:
        return
    error, limit = record.unit.say(best.loss_error, None), record.unit.say(record.allowed or 0.0, None)
    why = f"an error of ± {error} is large beside the limit of {limit}"
    if record.samples:
        wanted = _rounded(searched * record.samples)
        what = f"score about {wanted:,} {record.unit.samples} in place of {record.samples:,}"
        yield Step("samples", f"{what}: {why}", samples=wanted)
    else:
        yield Step("samples", f"score about {searched:.1f} times as many {record.unit.samples}: {why}")


def _samples_for_search(record: StudyRecord, best: TrialRecord) -> float | None:
    """Return how many times the samples make the error small beside the limit: it falls with their root."""
    allowed = record.allowed
    if best.loss_error is None or not allowed:
        return None
    times = (best.loss_error / allowed / LARGE_ERROR) ** 2
    return min(MOST_TIMES, times) if times >= WORTH else None


def _times_to_confirm(record: StudyRecord) -> float | None:
    """Return how many times the held-back samples would confirm a loss like the one that was found."""
    found = record.confirmation
    if found is None or found.loss is None or not found.loss_error or found.limit is None or found.loss >= found.limit:
        return None
    sure = NormalDist().inv_cdf(min(0.999, max(0.5, record.confidence)))
    times = (sure * found.loss_error / (found.limit - found.loss)) ** 2
    return min(MOST_TIMES, times) if times > 1 else None


def _unconfirmed(record: StudyRecord) -> Iterator[Step]:
    found, best = record.confirmation, record.best
    if best is None or _is_unfinished(record) or record.confirmed:
        return
    if record.confirmed is None:
        if found is None or not found.error:
            yield Step("confirm", "hold data back from the search and confirm the result on them: [confirm] names them")
    elif found is not None and not found.satisfied and record.target_trials:
        more = 2 * record.target_trials
        why = "the plans that were confirmed lose too much elsewhere"
        yield Step("trials", f"autonuq resume STUDY --trials {more}: {why}", trials=more)


def _costly(record: StudyRecord) -> Iterator[Step]:
    """Name layers that cause much of the loss and would cost few bytes more as float32."""
    parts, best = record.loss_parts, record.best
    if parts is None or best is None or parts.trial != best.number or not best.size_bytes or record.chip is not None:
        return
    sizes = {row.layer.name: (row.layer, row.size_bytes or 0) for row in record.layer_rows(best)}
    cheap = [part for part in parts.layers if _is_cheap(part, *sizes[part.layer], best.size_bytes)][:MOST_LAYERS]
    if cheap:
        share = sum(part.share for part in cheap)
        more = sum(sizes[part.layer][0].original_bytes - sizes[part.layer][1] for part in cheap) / best.size_bytes
        why = f"{share:.0%} of the loss for {more:.1%} more bytes"
        yield _leave_float(record, tuple(part.layer for part in cheap), why)


def _is_cheap(part: LossPart, layer: LayerRecord, size_bytes: int, whole_bytes: int) -> bool:
    return (
        part.share >= MUCH_LOSS
        and part.deviation <= KNOWN
        and layer.original_bytes - size_bytes <= FEW_BYTES * whole_bytes
    )


def _leave_float(record: StudyRecord, names: tuple[str, ...], why: str) -> Step:
    already = record.float_layers.layers
    wanted = ", ".join(f'"{name}"' for name in (names if len(already) > MOST_NAMED else (*already, *names)))
    how = f"the {len(already)} that stay float now and {wanted}" if len(already) > MOST_NAMED else f"[{wanted}]"
    return Step("relax", f"try a study with float_layers = {how} in [search]: {why}", layers=names)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rounded(number: float) -> int:
    """Round up to two digits."""
    step: int = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return math.ceil(number / step) * step


_FIRST_RULES: tuple[Callable[[StudyRecord], Iterator[Step]], ...] = (_on_random_data, _failing, _unfinished)
"""Those that hold whatever the data are."""

_RULES: tuple[Callable[[StudyRecord], Iterator[Step]], ...] = (
    _unsatisfied,
    _uncertain,
    _unconfirmed,
    _improbable,
    _rising,
    _costly,
)
