"""Mean intersection over union of a network that gives each pixel a class, against masks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin.decisions import Decisions, ScoreEnds, doubt_decisions, find_scores
from autonuq.evaluate.builtin.images import ImageEvaluator
from autonuq.evaluate.builtin.jackknife import jackknifed
from autonuq.evaluate.builtin.settings import BuiltinSettings
from autonuq.evaluate.builtin.sources import Images, Part, open_images
from autonuq.evaluate.builtin.transform import place_mask
from autonuq.evaluate.samples import Score
from autonuq.graph.model import Array, Graph
from autonuq.pycaffe.pictures import decode
from autonuq.reading import reading

_MOST_CLASSES = 256  # of a network that writes the classes themselves
_MODES = ("1", "L", "P", "I", "I;16")  # Pillow's names of pictures with one number a pixel
_LOOKED_AT = 50  # masks, before hours are spent on them


class Segmentation(ImageEvaluator):
    """Mean intersection over union.

    Notes
    -----
    A mask has the size of its picture and goes through the same resizing and cropping, taking the nearest pixel. Scores
    of another size than the network's input are resized bilinearly to it, as OpenCV does, before the largest decides;
    of a network that ends with ArgMax the numbers are, taking the nearest.

    Of class c, with I_jc pixels of image j that mask and network give to c, and U_jc that at least one of them does:
    T = mean over c of sum_j I_jc / sum_j U_jc. The classes are those that the masks show, so that no stray pixel of
    another one makes a class of its own: it counts as missing in the class that is there. The samples are those of
    `jackknifed`, with dT/dw_j = mean over c of (I_jc - (I_c / U_c) U_jc) / U_c.
    """

    keys = ("drop", "output", "axis", "classes", "ignore", "labels")
    ends: ScoreEnds

    @classmethod
    def find_ends(cls, graph: Graph, settings: BuiltinSettings) -> ScoreEnds:
        """See `ImageEvaluator`."""
        ends = find_scores(graph, settings)
        if len(ends.pixels) != 2 or math.prod(ends.pixels) == 1:
            raise EvaluatorError(
                f"blob '{ends.output}' holds no scores of classes for each pixel: beside images and classes its axes "
                f"are {ends.pixels}, and should be height and width; name another with 'output'"
            )
        return ends

    @classmethod
    def open_scored(cls, settings: BuiltinSettings, part: Part) -> Images:
        """See `ImageEvaluator`: the pictures that have a mask."""
        data = settings.data
        if data.kind != "folder":
            raise EvaluatorError(f"miou reads pictures and masks from folders, no {data.kind}", path=data.path)
        masks = _find_masks(Path(data.labels), data.path)
        if not masks.keys() & set(open_images(replace(data, start=0, count=None), labelled=False).names):
            raise EvaluatorError(f"no mask is called as a picture in {data.path}", path=data.labels)
        return open_images(data, part, labelled=False, names=masks)

    def check_data(self) -> None:
        """Look at some masks."""
        self._masks = _find_masks(Path(self.settings.data.labels), self.settings.data.path)
        shown: set[int] = set()
        for name in self.scored.names[:_LOOKED_AT]:
            shown |= set(np.unique(self._load(name)).tolist())
        if shown == {0, self.settings.ignore}:
            raise EvaluatorError(
                f"the masks show 0 and {self.settings.ignore} alone, and {self.settings.ignore} is not counted: write "
                "the number of its class into each pixel, or name another value with 'ignore'",
                path=self.settings.data.labels,
            )
        beyond = [number for number in self.settings.classes if number >= self._classes]
        if beyond:
            raise EvaluatorError(f"'classes' names {beyond[0]}; blob '{self.ends.output}' has {self._classes} classes")

    @property
    def _classes(self) -> int:
        return _MOST_CLASSES if self.ends.classes is None else self.ends.classes

    def _load(self, name: str) -> NDArray[np.int64]:
        """Load a mask, and check it, shape (height, width)."""
        path = self._masks[name]
        with reading(path, EvaluatorError, "cannot be read", what="mask"):
            picture = decode(path)
        if picture.mode not in _MODES:
            raise EvaluatorError(
                f"is a picture of colours ({picture.mode}); a mask has the number of a class in each pixel, as palette "
                "or grey",
                path=path,
            )
        mask = np.asarray(picture).astype(np.int64)
        wrong = mask[(mask >= self._classes) & (mask != self.settings.ignore)]
        if len(wrong):
            raise EvaluatorError(
                f"shows class {wrong.max()}; blob '{self.ends.output}' has the classes 0..{self._classes - 1} (pixels "
                f"of {self.settings.ignore} are not counted, see 'ignore')",
                path=path,
            )
        return mask

    def label_digests(self) -> dict[str, str]:
        """See `ImageEvaluator`: of the names and contents of all masks."""
        return {f"{Path(self.settings.data.labels).name} (masks)": self._digest}

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name in self.scored.names:
            digest.update(name.encode() + hashlib.sha256(self._masks[name].read_bytes()).digest())
        return digest.hexdigest()

    @property
    def limit(self) -> str:
        """See `ImageEvaluator`."""
        return f"{self.drop} {self.settings.classes} {self.settings.ignore}"

    @property
    def meaning(self) -> str:
        """See `ImageEvaluator`."""
        which = f"{len(self.settings.classes)} classes" if self.settings.classes else "the classes that the masks show"
        return f"mean intersection over union of {which}; {self.drop.say()}"

    def keep(self, outputs: Mapping[str, Array], count: int) -> list[Decisions]:
        """See `ImageEvaluator`: the class of each pixel, of each image, shape (height, width) of the input."""
        scores, size = self.ends.scores(outputs[self.ends.output], count), self.ends.shape[2:]
        resize = _nearest if self.ends.axis is None else _bilinear
        return [self.ends.decide(resize(own, size)[np.newaxis]).reshape(size) for own in scores]

    def doubt(self, found: Sequence[list[Decisions]]) -> str:
        """See `ImageEvaluator`: one class for every pixel."""
        return doubt_decisions(np.stack([picture for batch in found for picture in batch]))

    def compare(self, found: list[Decisions], original: object, start: int) -> Iterator[NDArray[np.int64]]:
        """See `ImageEvaluator`: the pixels of mask and network of each class, shape (2, classes), and of both."""
        for name, size, own in zip(self.scored.names[start:], self.sizes[start:], found, strict=False):
            mask = self._load(name)
            if mask.shape != tuple(size):
                got = f"is {mask.shape[0]}x{mask.shape[1]}"
                raise EvaluatorError(f"{got}, its picture {size[0]}x{size[1]}", path=self._masks[name])
            yield count_pixels(place_mask(self.settings.transform, mask), own, self._classes, self.settings.ignore)

    def score(self, things: Sequence[NDArray[np.int64]]) -> Score:
        """See `ImageEvaluator`."""
        counts = np.array(things, np.float64)
        both, masked = counts[:, 0], counts[:, 1]
        either = masked + counts[:, 2] - both
        shown = masked.sum(axis=0) > 0
        if self.settings.classes:
            shown &= np.isin(np.arange(len(shown)), self.settings.classes)
        if not shown.any():
            raise EvaluatorError("the masks show none of the classes that count", path=self.settings.data.labels)
        both, either = both[:, shown], either[:, shown]
        unions = either.sum(axis=0)
        ratios = both.sum(axis=0) / unions
        return jackknifed(float(ratios.mean()), ((both - ratios * either) / unions).mean(axis=1))


def count_pixels(mask: NDArray[np.int64], found: NDArray[np.integer], classes: int, ignore: int) -> NDArray[np.int64]:
    """Count the pixels of each class that both mask and network give it, the mask does, the network does.

    Parameters
    ----------
    mask, found : ndarray of whole numbers, same shape
        Classes; `found` may hold -1, which is none.
    classes : int
    ignore : int
        Where the mask has this value nothing counts.

    Returns
    -------
    ndarray of int64, shape (3, classes)
    """
    counted = mask != ignore
    mask, found = mask[counted], found[counted]
    chosen = (mask[mask == found], mask, found[(found >= 0) & (found < classes)])
    return np.stack([np.bincount(values, minlength=classes) for values in chosen])


def _find_masks(folder: Path, pictures: Path) -> dict[str, Path]:
    """Return the masks below a folder by their names without suffix."""
    if not folder.is_dir():
        raise EvaluatorError("folder of masks not found: 'labels' in [evaluator.data] must name it", path=folder)
    if folder.resolve() == pictures.resolve():
        raise EvaluatorError("masks must lie in a folder of their own", path=folder)
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.png"))}
    if not found:
        raise EvaluatorError("holds no mask (.png)", path=folder)
    return found


def _nearest(values: Array, size: tuple[int, int]) -> Array:
    """Resize (..., height, width) to a size, each pixel that of the nearest one."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, values.shape[-2:], strict=True)
    )
    return values[..., rows[:, np.newaxis], columns]


def _bilinear(values: Array, size: tuple[int, int]) -> Array:
    """Resize (..., height, width) to a size as OpenCV's INTER_LINEAR."""
    for axis, new in zip((-2, -1), size, strict=True):
        old = values.shape[axis]
        if old == new:
            continue
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        first = np.minimum(place.astype(np.int64), max(0, old - 2))
        share = (place - first).astype(np.float32)
        share = share[:, np.newaxis] if axis == -2 else share
        values = values.take(first, axis) * (1 - share) + values.take(np.minimum(first + 1, old - 1), axis) * share
    return values
