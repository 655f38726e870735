"""How far a network's outputs are from the original one's: for regressors, landmarks, embeddings, anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.decisions import FEWEST_ALIKE
from autonuq.evaluate.builtin.images import (
    ImageEvaluator,
    check_fixed,
    choose_blob,
    find_entrance,
    find_items,
    images_first,
    made_outputs,
)
from autonuq.evaluate.builtin.jackknife import jackknifed
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.evaluate.samples import Score
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.files import ModelPair
from autonuq.graph.model import Array, Graph

_SNR_DB = 20.0
_COSINE = 0.99
_DIGITS = 6  # of saturated outputs
_LEAST_SIGNAL = 1e-4  # of an output's energy: what varies less is as good as constant


@dataclass(frozen=True)
class OutputEnds:
    """Where images go into a network, and the blobs that are compared.

    Attributes
    ----------
    input : str
    shape : tuple of int
        (batch, channels, height, width) of it.
    outputs : tuple of str
    items : tuple of int or None
        Axis of the images in each; None: all of it is one image's.
    """

    input: str
    shape: tuple[int, int, int, int]
    outputs: tuple[str, ...]
    items: tuple[int | None, ...]


class Outputs(ImageEvaluator):
    """What the worst of the outputs has lost: the power of its noise beside its signal's, or of cosine similarity.

    Notes
    -----
    Of output y, image j of n, and the original's output Y with its mean M over the images:

        noise       e_j = |y_j - Y_j|^2
        signal      s_j = |Y_j - M|^2 n / (n - 1), what of the output depends on the image
        snr         T = sum e_j / sum s_j; in decibels the signal-to-noise ratio is -10 log10 T
        cosine      T = mean of 1 - cos(y_j, Y_j)

    Both are 0 for the original network and grow with the noise power, as the model of the search expects; they add up
    over layers, decibels would not. An output that hardly depends on the image counts as varying by a hundredth of its
    size; of a single image the whole output is signal.

    The samples are those of `jackknifed`: M is where sum s_j is smallest, so that its own change adds nothing to the
    derivative of T, (e_j - T s_j) / sum s.
    """

    compares = True
    keys = ("outputs", "measure", "snr", "cosine")
    ends: OutputEnds

    def __init__(self, settings: BuiltinSettings, ends: OutputEnds, original: ModelPair) -> None:
        super().__init__(settings, ends, original)
        self._signals: dict[int, NDArray[np.float64]] = {}

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> OutputEnds:
        """See `ImageEvaluator`."""
        entrance = find_entrance(graph, settings)
        names = tuple(choose_blob("output", name, entrance.shapes) for name in settings.outputs) or _varying(graph)
        for name in names:
            check_fixed(graph, name)
        items = tuple(find_items(graph, name, entrance.shapes[name], entrance.shape[0]) for name in names)
        return OutputEnds(entrance.input, entrance.shape, names, items)

    @property
    def _is_cosine(self) -> bool:
        settings = self.settings
        return settings.measure == "cosine" or (settings.measure is None and settings.cosine is not None)

    @property
    def _allowed(self) -> float:
        """The loss that is too much."""
        if self._is_cosine:
            return 1.0 - (_COSINE if self.settings.cosine is None else self.settings.cosine)
        decibels = _SNR_DB if self.settings.snr is None else self.settings.snr
        return float(10.0 ** (-decibels / 10.0))

    @property
    def limit(self) -> str:
        """See `ImageEvaluator`."""
        return f"{'cosine' if self._is_cosine else 'snr'} {self._allowed:g}"

    @property
    def unit(self) -> tuple[str, float, str]:  # type: ignore[override]
        """See `Evaluator`."""
        return "% of the cosine" if self._is_cosine else "% noise", 100, "images"

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        which = (
            "the output's " if len(self.ends.outputs) == 1 else f"of {len(self.ends.outputs)} outputs the worst one's "
        )
        if self._is_cosine:
            return f"{which}cosine distance from the original network's; must stay under {self._allowed:g}"
        decibels = -10.0 * np.log10(self._allowed)
        return (
            f"{which}noise, its power beside that of the signal in it; must stay under {100 * self._allowed:.3g} % "
            f"(a signal-to-noise ratio of {decibels:.3g} dB)"
        )

    def is_satisfied(self, original_metric: float, new_metric: float) -> bool:
        """Accept what has lost less than the limit."""
        return new_metric - original_metric < self._allowed

    def keep(self, outputs: Mapping[str, Array], count: int) -> list[Array]:
        """See `ImageEvaluator`: each output, shape (images, values)."""
        found = zip(self.ends.outputs, self.ends.items, strict=True)
        apart = [images_first(outputs[name], items)[:count] for name, items in found]
        return [values.reshape(len(values), -1).copy() for values in apart]

    def compare(self, found: list[Array], original: list[Array], start: int) -> NDArray[np.float64]:
        """See `ImageEvaluator`: what each output of each image has lost, shape (images, outputs)."""
        for name, new, old in zip(self.ends.outputs, found, original, strict=True):
            if new.shape != old.shape:
                raise EvaluatorError(
                    f"blob '{name}' holds {new.shape[1]} values where the original network has {old.shape[1]}; name "
                    "blobs of a fixed size with 'outputs'"
                )
        measure = _cosine_distances if self._is_cosine else _energies
        return np.stack([measure(new, old) for new, old in zip(found, original, strict=True)], axis=1)

    def doubt(self, found: Sequence[list[Array]]) -> str:
        """See `ImageEvaluator`: outputs that hardly depend on the image, or that are at the ends of their range."""
        for number, name in enumerate(self.ends.outputs):
            values = np.concatenate([batch[number] for batch in found]).astype(np.float64)
            if len(values) < FEWEST_ALIKE:
                continue
            if values.var(axis=0).sum() < _LEAST_SIGNAL * np.square(values).mean(axis=0).sum():
                return f"output '{name}' of the original network is nearly the same for each of {len(values)} images"
            if np.isin(np.round(values, _DIGITS), (-1.0, 0.0, 1.0)).all():
                return f"output '{name}' of the original network is saturated: it holds nothing but -1, 0 and 1"
        return ""

    def score(self, things: Sequence[NDArray[np.float64]]) -> Score:
        """See `ImageEvaluator`."""
        lost = np.array(things)
        if not np.isfinite(lost).all():
            worst = self.ends.outputs[int(np.argmin(np.isfinite(lost).all(axis=0)))]
            raise EvaluatorError(f"blob '{worst}' holds NaN or infinity")
        if self._is_cosine:
            mean = lost.mean(axis=0)
            return Score(float(mean.max()), samples=lost[:, mean.argmax()])
        signals = self._signals_of(len(lost))
        totals = signals.sum(axis=0)
        ratios = lost.sum(axis=0) / totals
        worst_one = int(ratios.argmax())
        slopes = (lost[:, worst_one] - ratios[worst_one] * signals[:, worst_one]) / totals[worst_one]
        return jackknifed(float(ratios[worst_one]), slopes)

    def _signals_of(self, count: int) -> NDArray[np.float64]:
        """Return the signal in each output of the first images, shape (images, outputs)."""
        if count not in self._signals:
            self._signals[count] = self._measured(count)
        return self._signals[count]

    def _measured(self, count: int) -> NDArray[np.float64]:
        """Go over the original's outputs twice: for their means, and for what differs from these."""
        size = self.ends.shape[0]
        batches = [(start, min(start + size, count)) for start in range(0, count, size)]
        sums = [np.zeros(values.shape[1]) for values in self.of_original(*batches[0])]
        energies = np.zeros(len(sums))
        for batch in batches:
            for number, values in enumerate(self.of_original(*batch)):
                sums[number] += values.sum(axis=0, dtype=np.float64)
                energies[number] += np.square(values, dtype=np.float64).sum()
        means = [total / count if count > 1 else 0 * total for total in sums]
        apart = [np.stack(list(map(_energies, self.of_original(*batch), means)), axis=1) for batch in batches]
        signals = np.concatenate(apart) * (count / max(1, count - 1))
        least = _LEAST_SIGNAL * energies / count + np.finfo(np.float64).tiny
        return np.asarray(signals + np.maximum(0.0, least - signals.mean(axis=0)))


def _energies(values: Array, others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the energy of the differences in each row."""
    differences = np.subtract(values, others, dtype=np.float64)
    return np.asarray(np.einsum("ij,ij->i", differences, differences))


def _cosine_distances(found: Array, original: Array) -> NDArray[np.float64]:
    """Return 1 - cos of each row; 0 where both are zero, 1 where one is."""
    norms = [np.sqrt(_energies(values, np.zeros(1))) for values in (found, original)]
    product = norms[0] * norms[1]
    cosines = np.einsum("ij,ij->i", found, original, dtype=np.float64) / np.where(product > 0, product, 1.0)
    return np.asarray(np.where(product > 0, np.maximum(0.0, 1.0 - cosines), norms[0] != norms[1]))


def _varying(graph: Graph) -> tuple[str, ...]:
    """Return the outputs, without those that depend on the size of the input alone, as boxes laid over it do."""
    try:
        axes = find_batch(graph).axes
    except MixesItems:
        return made_outputs(graph)
    return tuple(name for name in made_outputs(graph) if name in axes) or made_outputs(graph)
