"""Labels of objects: a folder of PASCAL VOC's XML files, or a COCO JSON file.

Both come from others: an XML file may declare no document type, hence no entity, and files have a largest size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from autonuq.errors import EvaluatorError, suggest_name
from autonuq.evaluate.builtin.boxes import Objects
from autonuq.reading import reading

_XML_BYTES, _JSON_BYTES = 16 << 20, 1 << 30  # COCO's largest file has 470 MB
_VISIBLE = 0.5  # share of an object that must be inside the network's picture if it is to count
_VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_NUMBERED = re.compile(r"^\d{8,}_(?=.)")  # of `convert_imageset`


@dataclass(frozen=True)
class Labelled:
    """An object as a file of labels says it.

    Attributes
    ----------
    category : str or int
        Name or number of its class.
    box : tuple of float
        Corners, in pixels of the picture.
    ignored : bool
        VOC's difficult objects, and COCO's crowds.
    """

    category: str | int
    box: tuple[float, float, float, float]
    ignored: bool


class Annotations(Protocol):
    """The labels of many pictures."""

    path: Path
    """Where they are."""

    def __contains__(self, name: object) -> bool:
        """Say whether there are labels of a picture, if only that it shows nothing."""

    def objects(self, name: str) -> list[Labelled]:
        """Return what a picture shows."""

    def classes(self, names: Sequence[str], known: int | None) -> Mapping[str | int, int] | None:
        """Return category -> class of the network; None: all are class 0.

        Parameters
        ----------
        names : sequence of str
            Of the network's classes in its order; empty: they are not known.
        known : int or None
            How many classes the network has.
        """


def open_annotations(path: Path, kind: str) -> Annotations:
    """Open a folder of VOC's `.xml` files or a COCO `.json` file.

    Parameters
    ----------
    path : Path
    kind : {"npz", "folder", "lmdb"}
        Of the pictures' source, whose names for them will be asked for. A folder's pictures are found by their file's
        name without suffix, a database's by their key without the number that Caffe's `convert_imageset` puts in front;
        an npz's k-th picture belongs to the k-th XML file by name, or to the k-th of COCO's `images`.

    Raises
    ------
    EvaluatorError
        The path is not there, or holds neither.
    """
    with reading(path, EvaluatorError, "cannot be read", what="annotations"):
        stat = path.stat()
    return _opened(path, kind, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _opened(path: Path, kind: str, _time: int, _size: int) -> Annotations:
    return VocFolder(path, kind) if path.is_dir() else CocoFile(path, kind)


def _stem(name: str) -> str:
    """Cut off the folders and the suffix of a file's name."""
    return PurePosixPath(name).stem


def _key(name: str, kind: str) -> str:
    """Return what a picture is found by: its name, without folders and suffix."""
    return _stem(_NUMBERED.sub("", name)) if kind == "lmdb" else PurePosixPath(name).name


class VocFolder:
    """PASCAL VOC's annotations, one XML file for each picture."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        files = sorted(path.glob("*.xml"))
        if not files:
            raise EvaluatorError("there are no .xml files, as PASCAL VOC has them", path=path)
        self._files = {str(place) if kind == "npz" else file.stem: file for place, file in enumerate(files)}
        self._kind = kind

    def __contains__(self, name: object) -> bool:
        """See `Annotations`."""
        return _key(str(name), self._kind) in self._files

    def objects(self, name: str) -> list[Labelled]:
        """See `Annotations`."""
        file = self._files[_key(name, self._kind)]
        with reading(file, EvaluatorError, "is no PASCAL VOC annotation", what="XML file"):
            return [_voc_object(each) for each in _parse_xml(_limited(file, _XML_BYTES), file).findall("object")]

    def classes(self, names: Sequence[str], known: int | None) -> Mapping[str | int, int] | None:
        """See `Annotations`; VOC's own classes for a network of 20, and all are one for a network of one class."""
        if not names and known == 1:
            return None
        if not names and known == len(_VOC_CLASSES):
            names = _VOC_CLASSES
        if not names:
            rule = "name the network's classes in its order with 'classes' in [evaluator.detections]"
            raise EvaluatorError(f"the objects have names; {rule}", path=self.path)
        return {name: number for number, name in enumerate(names)}


def _voc_object(element: Element) -> Labelled:
    """Read an object; VOC's pixels are counted from 1, and the last one belongs to the box."""
    name = (element.findtext("name") or "").strip()
    corners = [float(element.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax")]
    if not name or not all(map(math.isfinite, corners)):
        raise ValueError("an object needs a name, and a bndbox of xmin, ymin, xmax, ymax")
    box = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
    return Labelled(name, box, (element.findtext("difficult") or "0").strip() not in ("", "0"))


def _limited(file: Path, most: int) -> bytes:
    if file.stat().st_size > most:
        raise EvaluatorError(f"has more than {most >> 20} MiB", path=file)
    return file.read_bytes()


def _parse_xml(content: bytes, file: Path) -> Element:
    """Parse without a document type: there are no entities to expand or to load."""

    def refuse(*_: object) -> None:
        raise EvaluatorError("declares a document type, which an annotation has no need of", path=file)

    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(content, True)
    return builder.close()


class CocoFile:
    """COCO's annotations of all pictures in a JSON file."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self._kind = path, kind
        with reading(path, EvaluatorError, "is no COCO file", what="JSON file"):
            content: dict[str, Any] = json.loads(_limited(path, _JSON_BYTES))
            images = [(int(each["id"]), str(each["file_name"])) for each in content["images"]]
            self._categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
            self._objects: dict[int, list[Labelled]] = {number: [] for number, _ in images}
            for each in content["annotations"]:
                self._objects[int(each["image_id"])].append(_coco_object(each))
        self._images = {
            str(place) if kind == "npz" else _stem(name): number for place, (number, name) in enumerate(images)
        }

    def __contains__(self, name: object) -> bool:
        """See `Annotations`."""
        return _key(str(name), self._kind) in self._images

    def objects(self, name: str) -> list[Labelled]:
        """See `Annotations`."""
        return self._objects[self._images[_key(name, self._kind)]]

    def classes(self, names: Sequence[str], known: int | None) -> Mapping[str | int, int]:
        """See `Annotations`; by name, or, where the classes have no names, in the order of the categories' numbers."""
        if names:
            by_name = {name: number for number, name in self._categories.items()}
            missing = next((name for name in names if name not in by_name), None)
            if missing is not None:
                hint = suggest_name(missing, list(by_name))
                raise EvaluatorError(f"has no category '{missing}', which 'classes' names.{hint}", path=self.path)
            return {by_name[name]: number for number, name in enumerate(names)}
        if known is not None and len(self._categories) != known:
            raise EvaluatorError(
                f"has {len(self._categories)} categories, the network {known} classes: name them in the network's "
                "order with 'classes' in [evaluator.detections]",
                path=self.path,
            )
        return {number: place for place, number in enumerate(sorted(self._categories))}


def _coco_object(entry: Mapping[str, Any]) -> Labelled:
    x, y, width, height = map(float, entry["bbox"])
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError("bbox must hold four finite numbers")
    return Labelled(int(entry["category_id"]), (x, y, x + width, y + height), bool(entry.get("iscrowd", 0)))


def load_objects(annotations: Annotations, pictures: Sequence[str], names: Sequence[str], known: int | None) -> Objects:
    """Read the objects of pictures, with the network's classes.

    Parameters
    ----------
    annotations : Annotations
    pictures : sequence of str
        The names that their source has for them.
    names : sequence of str
        Of the network's classes; see `Annotations.classes`.
    known : int or None
        How many classes the network has.

    Returns
    -------
    Objects
        In pixels of the pictures. Objects of other classes than the network's are not among them.

    Raises
    ------
    EvaluatorError
        A file cannot be read, the classes do not fit, or there is no object of the network's classes.
    """
    if known is not None and names and len(names) != known:
        raise EvaluatorError(f"'classes' in [evaluator.detections] names {len(names)} classes; the network has {known}")
    numbers = annotations.classes(names, known)
    found = [(image, each) for image, name in enumerate(pictures) for each in annotations.objects(name)]
    own = [(image, each) for image, each in found if numbers is None or each.category in numbers]
    if all(each.ignored for _, each in own):
        others = sorted({str(each.category) for _, each in found})
        have = f"they name {', '.join(others[:10])}" if others else "there is no object at all"
        raise EvaluatorError(
            f"hold no object of the network's classes in {len(pictures)} pictures; {have}", path=annotations.path
        )
    return Objects(
        np.array([image for image, _ in own], np.int64),
        np.array([0 if numbers is None else numbers[each.category] for _, each in own], np.int64),
        np.array([each.box for _, each in own], np.float32).reshape(-1, 4),
        np.array([each.ignored for _, each in own], bool),
    )


def place_objects(objects: Objects, places: NDArray[np.float64], size: tuple[int, int]) -> Objects:
    """Carry objects from the pictures' pixels into the picture that the network sees.

    Parameters
    ----------
    objects : Objects
    places : ndarray of float64, shape (n, 4)
        Of each picture: factors of x and y, then shifts of x and y, from its pixels to the network's.
    size : tuple of int
        Height and width of the network's picture.

    Returns
    -------
    Objects
        In shares, cut off at the picture's edges. Those that lie outside are gone, and those of which less than half is
        inside are ignored.
    """
    own = places[objects.images]
    frame = np.array([size[1], size[0]] * 2)
    boxes = (objects.boxes * np.tile(own[:, :2], 2) + np.tile(own[:, 2:], 2)) / frame
    inside = boxes.clip(0, 1)
    areas = [np.prod(np.maximum(each[:, 2:] - each[:, :2], 0), axis=1) for each in (boxes, inside)]
    seen = areas[1] > 0
    ignored = objects.ignored | (areas[1] < _VISIBLE * areas[0])
    return Objects(objects.images[seen], objects.classes[seen], inside[seen].astype(np.float32), ignored[seen])
