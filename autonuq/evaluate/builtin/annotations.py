"""Labels of objects: a folder of PASCAL VOC's XML files, or a COCO JSON file.

Both come from others: an XML file may declare no document type, hence no entity, and files have a largest size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
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


@dataclass(frozen=True)
class Labels:
    """The objects of pictures.

    Attributes
    ----------
    style : {"voc", "coco"}
    objects : Objects
        Boxes in pixels of the pictures; `ignored` are VOC's difficult objects and COCO's crowds.
    """

    style: Literal["voc", "coco"]
    objects: Objects


@dataclass(frozen=True)
class _Labelled:
    category: str | int
    box: tuple[float, float, float, float]
    ignored: bool


def load_labels(
    path: Path, names: Sequence[str] | None, count: int, classes: Sequence[str], known: int | None
) -> Labels:
    """Read the labels of pictures.

    Parameters
    ----------
    path : Path
        A folder of `.xml` files, or a `.json` file.
    names : sequence of str or None
        File names of the pictures, in their order. None: they have none, and the k-th picture belongs to the k-th XML
        file by name, or to the k-th of COCO's `images`.
    count : int
        Pictures.
    classes : sequence of str
        Names of the network's classes in its order. Empty: COCO's categories by rising number; VOC's 20 classes for a
        network of 20; for a network of one class XML's objects whatever their names.
    known : int or None
        Classes of the network.

    Raises
    ------
    EvaluatorError
        The labels cannot be read, lack a picture, or name none of the network's classes.

    Notes
    -----
    Objects of other classes than the network's are not counted.
    """
    if known is not None and classes and len(classes) != known:
        raise EvaluatorError(
            f"'classes' in [evaluator.detections] names {len(classes)} classes; the network has {known}"
        )
    if path.is_dir():
        found = _load_voc(path, names, count)
        numbers: Mapping[str | int, int] | None = _voc_numbers(classes, known, path)
    else:
        found, categories = _load_coco(path, names, count)
        numbers = _coco_numbers(categories, classes, known, path)
    own = [
        (image, 0 if numbers is None else numbers[each.category], each)
        for image, objects in enumerate(found)
        for each in objects
        if numbers is None or each.category in numbers
    ]
    if not any(not each.ignored for _, _, each in own):
        others = sorted({str(each.category) for objects in found for each in objects})
        have = f"they name {', '.join(others[:10])}" if others else "there are no objects at all"
        raise EvaluatorError(
            f"the labels hold no object of the network's classes in {count} pictures; {have}", path=path
        )
    return Labels(
        "voc" if path.is_dir() else "coco",
        Objects(
            np.array([image for image, _, _ in own], np.int64),
            np.array([number for _, number, _ in own], np.int64),
            np.array([each.box for _, _, each in own], np.float32).reshape(-1, 4),
            np.array([each.ignored for _, _, each in own], bool),
        ),
    )


def _load_voc(folder: Path, names: Sequence[str] | None, count: int) -> list[list[_Labelled]]:
    """Return the objects of each picture."""
    if names is None:
        files = sorted(folder.glob("*.xml"))
        if len(files) < count:
            raise EvaluatorError(f"there are {len(files)} .xml files for {count} pictures without names", path=folder)
        return [_read_voc(file) for file in files[:count]]
    files = [folder / f"{PurePosixPath(name).stem}.xml" for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise EvaluatorError(
            f"there is no '{missing.name}': each picture needs an .xml file of its name, one without objects, too",
            path=folder,
        )
    return [_read_voc(file) for file in files]


def _read_voc(file: Path) -> list[_Labelled]:
    with reading(file, EvaluatorError, "is no PASCAL VOC annotation", what="XML file"):
        root = _parse_xml(_limited(file, _XML_BYTES), file)
        return [_voc_object(each) for each in root.findall("object")]


def _voc_object(element: Element) -> _Labelled:
    """Read an object; VOC's pixels are counted from 1, and the last one belongs to the box."""
    name = (element.findtext("name") or "").strip()
    corners = [float(element.findtext(f"bndbox/{key}") or "nan") for key in ("xmin", "ymin", "xmax", "ymax")]
    if not name or not all(map(math.isfinite, corners)):
        raise ValueError("an object needs a name, and a bndbox of xmin, ymin, xmax, ymax")
    box = (corners[0] - 1, corners[1] - 1, corners[2], corners[3])
    return _Labelled(name, box, (element.findtext("difficult") or "0").strip() not in ("", "0"))


def _limited(file: Path, most: int) -> bytes:
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise EvaluatorError(f"has more than {most >> 20} MiB", path=file)
    return content


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


def _voc_numbers(classes: Sequence[str], known: int | None, path: Path) -> Mapping[str | int, int] | None:
    """Return name -> class; None for a network of one class that has no name."""
    if not classes and known == 1:
        return None
    if not classes and known == len(_VOC_CLASSES):
        classes = _VOC_CLASSES
    if not classes:
        raise EvaluatorError(
            "the objects have names; name the network's classes in its order with 'classes' in [evaluator.detections]",
            path=path,
        )
    return {name: number for number, name in enumerate(classes)}


def _load_coco(file: Path, names: Sequence[str] | None, count: int) -> tuple[list[list[_Labelled]], dict[int, str]]:
    """Return the objects of each picture, and the categories, number -> name."""
    with reading(file, EvaluatorError, "is no COCO file", what="JSON file"):
        content: dict[str, Any] = json.loads(_limited(file, _JSON_BYTES))
        images = [(int(each["id"]), str(each.get("file_name", ""))) for each in content["images"]]
        categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
        objects: dict[int, list[_Labelled]] = {number: [] for number, _ in images}
        for each in content["annotations"]:
            objects[int(each["image_id"])].append(_coco_object(each))
    if names is None:
        if len(images) < count:
            raise EvaluatorError(f"has {len(images)} images for {count} pictures without names", path=file)
        return [objects[number] for number, _ in images[:count]], categories
    by_name = {PurePosixPath(name).name: number for number, name in images} | {name: number for number, name in images}
    found = [by_name.get(name, by_name.get(PurePosixPath(name).name)) for name in names]
    if None in found:
        raise EvaluatorError(f"picture '{names[found.index(None)]}' is not among its images", path=file)
    return [objects[number] for number in found if number is not None], categories


def _coco_object(entry: Mapping[str, Any]) -> _Labelled:
    x, y, width, height = map(float, entry["bbox"])
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError("bbox must hold four finite numbers")
    return _Labelled(int(entry["category_id"]), (x, y, x + width, y + height), bool(entry.get("iscrowd", 0)))


def _coco_numbers(
    categories: Mapping[int, str], classes: Sequence[str], known: int | None, path: Path
) -> Mapping[str | int, int]:
    """Return category -> class: by name, or, where the classes have no names, in the order of the numbers."""
    if classes:
        by_name = {name: number for number, name in categories.items()}
        missing = next((name for name in classes if name not in by_name), None)
        if missing is not None:
            raise EvaluatorError(
                f"has no category '{missing}', which 'classes' names.{suggest_name(missing, list(by_name))}", path=path
            )
        return {by_name[name]: number for number, name in enumerate(classes)}
    if known is not None and len(categories) != known:
        raise EvaluatorError(
            f"has {len(categories)} categories, the network {known} classes: name them in the network's order with "
            "'classes' in [evaluator.detections]",
            path=path,
        )
    return {number: place for place, number in enumerate(sorted(categories))}


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
