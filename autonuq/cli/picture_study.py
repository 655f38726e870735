"""What `autonuq new --images` writes: a study file that runs as it is, on pictures, without labels or a class."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from textwrap import wrap
from typing import Any

import numpy as np

from autonuq.errors import EvaluatorError
from autonuq.evaluate.builtin import BuiltinSettings, DataSettings, TransformSettings
from autonuq.evaluate.builtin.agreement import FEWEST_DECISIONS, fitting_drop
from autonuq.evaluate.builtin.decisions import find_scores
from autonuq.evaluate.builtin.guess import MOST_PICTURES, Guess, guess_transform
from autonuq.evaluate.builtin.images import tell_size
from autonuq.evaluate.builtin.kinds import KINDS
from autonuq.evaluate.builtin.sources import open_images
from autonuq.evaluate.builtin.suggestion import Suggestion, suggest_evaluator
from autonuq.evaluate.builtin.transform import Transform
from autonuq.graph.batch import MixesItems, find_batch
from autonuq.graph.layers import infer_known_shapes
from autonuq.graph.model import Array, Graph
from autonuq.runtime.net import Net
from autonuq.visible import visible

STUDY = Template("""\
# Study of ${title}: 'autonuq check', then 'autonuq tune' with this file. Paths are relative to it.
name = ${name}

[model]
prototxt = ${prototxt}
weights = ${weights}${permission}

[evaluator]
${evaluator}

[quantization]
batch_num = ${batch_num}                  # batches that calibrate the activations
codec = "entropy"              # or fixed
# chip = "ascend310"           # in its place: count what this chip loads; a layer that it leaves alone stays int8
# marks = "all"                # its compiler is told to compress all layers, not only those that it marks

[search]
trials = 20
""")
"""Every study file that `new` writes."""

_EVALUATOR = Template("""\
${why}
${evaluator}

[evaluator.data]               # what is scored
${data}

[evaluator.calibration]        # what calibrates the activations${apart}
${calibration}

[evaluator.transform]          # Caffe's, in this order
${guessed}
${transform}${detections}""")
_SECONDS_OF_A_TRIAL = 60.0
_LOOK_S, _FEWEST_LOOKED_AT, _MOST_LOOKED_AT = 20.0, FEWEST_DECISIONS, 500  # pictures that tell how sure a network is
_FEWEST_SCORED, _MOST_SCORED = 200, 2000  # of 2,000 and more, images are held back
_MOST_CALIBRATING = 500
_FEW = 40  # pictures that are both scored and calibrate with
_BATCH_VALUES = 1 << 20  # of an input
_MOST_BATCH, _FEWEST_BATCHES = 64, 8
_CROPPED_FROM = 160  # pixels; smaller inputs get whole pictures
_DIGITS = 6
_LINE = 110  # characters of a comment


Ask = Callable[[str, Any], Any]
"""Is told a key of the transform and what is guessed, and says what is right, a mean also as a file's Path; None keeps
the guess."""


def picture_study_text(graph: Graph, net: Net, values: Mapping[str, str], images: Path, folder: Path, ask: Ask) -> str:
    """Return the text of a study file for a network and pictures.

    Parameters
    ----------
    graph : Graph
        With weights.
    net : Net
        The same, to be run.
    values : mapping of str to str
        Of the template, as far as they are the same for every study file.
    images : Path
        A folder of pictures, an npz or an LMDB.
    folder : Path
        Of the study file.
    ask : callable
        See `Ask`.

    Raises
    ------
    EvaluatorError
        There are no pictures, or the network takes none.
    ModelError, RuntimeFailure
        The network cannot be run.
    """
    blob = _picture_input(graph)
    data = _data_settings(images)
    source = open_images(data, labelled=False)
    pictures = source.read(0, min(MOST_PICTURES, len(source.names)), graph.inputs[blob][1])
    channels, height, width = graph.inputs[blob][1:]
    sized = TransformSettings(resize=(height, width))
    if all(picture.dtype == np.uint8 for picture in pictures):
        transform, doubt = _answered(guess_transform(graph, blob, pictures, source.order, sized), ask)
    else:
        transform, doubt = replace(sized, mean=(0.0,)), "Arrays of other numbers than 0..255 stay as they are."
    prepare = Transform(transform, (channels, height, width))
    if prepare.mean.shape[1:] not in ((1, 1), (height, width)):  # a mean image has the size before the crop
        transform = replace(transform, resize=prepare.mean.shape[1:], crop=(height, width))
        prepare = Transform(transform, (channels, height, width))
    found, each_s = _outputs(net, blob, prepare.apply(pictures, source.order, source.wanted))
    suggestion = suggest_evaluator(graph, infer_known_shapes(graph), found)
    is_labelled = suggestion.classifies and _is_labelled(data)
    if suggestion.kind == "agreement" and not is_labelled:
        affordable = int(min(_MOST_LOOKED_AT, max(_FEWEST_LOOKED_AT, _LOOK_S / max(each_s, 1e-6))))
        pictures = source.read(0, min(len(source.names), affordable), channels)
        found, each_s = _outputs(net, blob, prepare.apply(pictures, source.order, source.wanted))
    size = _batch_size(graph, blob, len(source.names))
    spans = _spans(len(source.names), size, each_s)
    kind = "top1" if is_labelled else suggestion.kind
    drop = _limit(kind, graph, data, found)
    keys = {"kind": kind, **({} if drop is None else {"drop": drop}), **suggestion.keys, "batch_size": size}
    place = _data_keys(data, folder, is_labelled)
    evaluator = _EVALUATOR.substitute(
        why=_comment(f"{suggestion.why}; {_KINDS[kind]}."),
        evaluator=_lines(keys),
        apart=": pictures that are not scored" if spans.calibrating else "",
        data=_lines({**place, **spans.scored}),
        calibration=_lines({**place, **spans.calibrating}),
        guessed=_comment(doubt),
        transform=_lines(_transform_keys(_geometry(transform, suggestion), folder)),
        detections=f"\n\n[evaluator.detections]\n{_lines(suggestion.detections)}" if suggestion.detections else "",
    )
    return STUDY.substitute(values, evaluator=evaluator, batch_num=spans.batch_num)


_KINDS = {
    "agreement": "counted are decisions that stay the original's: so many points of them may change, which, if the "
    "network is as sure as it says, costs about one point of accuracy",
    "detections": "its own detections are what the smaller network must find again. With labels, VOC's XML or COCO's "
    'JSON, it is kind = "map", and annotations = "FOLDER or FILE" under [evaluator.detections]',
    "outputs": "its outputs must stay what they are, but for some noise",
    "top1": "the pictures have labels",
}


def _picture_input(graph: Graph) -> str:
    """Return the blob that takes pictures."""
    taking = [blob for blob, shape in graph.inputs.items() if len(shape) == 4 and shape[1] in (1, 3)]
    if not taking:
        known = ", ".join(f"'{blob}' {shape}" for blob, shape in graph.inputs.items()) or "none"
        raise EvaluatorError(
            f"no input of the network takes pictures, which have 1 or 3 channels; its inputs: {known}. Leave out "
            "--images: what is written then begins an evaluator of your own"
        )
    return taking[0]


def _data_settings(images: Path) -> DataSettings:
    """Tell what a place with images is; `FILE.npz:NAME` says which array of an npz."""
    archive, _, name = str(images).rpartition(":")
    if archive.endswith(".npz"):
        return DataSettings("npz", Path(archive), images=name)
    if images.suffix == ".npz":
        return DataSettings("npz", images)
    if (images / "data.mdb").exists():
        return DataSettings("lmdb", images)
    return DataSettings("folder", images, labels=str(images / "labels.txt"))


def _is_labelled(data: DataSettings) -> bool:
    """Say whether the images have labels that tell them apart."""
    if data.kind == "folder":
        return Path(data.labels).is_file()
    try:
        return len(np.unique(open_images(data, labelled=True).labels)) > 1
    except EvaluatorError:  # an npz that has none
        return False


def _data_keys(data: DataSettings, folder: Path, is_labelled: bool) -> dict[str, object]:
    """Return the keys of a study file in `folder` that name the images, and their labels."""
    keys: dict[str, object] = {data.kind: os.path.relpath(data.path.resolve(), folder.resolve())}
    if data.images != DataSettings.images:
        keys["images"] = data.images
    if is_labelled and data.kind == "folder":
        keys["labels"] = os.path.relpath(Path(data.labels).resolve(), folder.resolve())
    return keys


def _answered(guess: Guess, ask: Ask) -> tuple[TransformSettings, str]:
    """Return the transform with what the user knows of it, and what the file says about that."""
    keys = ("mean", "scale", *(("channels",) if guess.transform.channels else ()))
    answers = {key: ask(key, getattr(guess.transform, key)) for key in keys}
    known = {key: value for key, value in answers.items() if value is not None}
    guessed = [key for key in keys if key not in known]
    if isinstance(known.get("mean"), Path):
        known |= {"mean": (), "mean_file": str(known["mean"])}
    if not guessed:
        return replace(guess.transform, **known), "As you said."
    return replace(guess.transform, **known), f"{', '.join(guessed)}: a GUESS, please check: {guess.why}."


def _outputs(net: Net, blob: str, values: Array) -> tuple[dict[str, Array], float]:
    """Return what a network puts out for pictures, and the seconds that one takes."""
    shape = net.blobs[blob].shape
    tell_size(net, blob)
    parts, started = [], time.monotonic()
    for start in range(0, len(values), shape[0]):
        net.blobs[blob].data[...] = np.resize(values[start : start + shape[0]], shape)
        parts.append({name: np.array(array) for name, array in net.forward().items()})
    seconds = (time.monotonic() - started) / max(1, len(values))
    # a batch of a detector has as many rows as there are boxes
    axes = {name: 2 if len({part[name].shape for part in parts}) > 1 else 0 for name in parts[0]}
    return {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}, seconds


def _batch_size(graph: Graph, blob: str, count: int) -> int:
    """Return how many pictures a pass takes: more than the prototxt says where that changes no result."""
    size, *shape = graph.inputs[blob]
    try:
        find_batch(graph)
    except MixesItems:
        return size
    return max(size, min(_MOST_BATCH, _BATCH_VALUES // math.prod(shape), count // _FEWEST_BATCHES))


@dataclass(frozen=True)
class _Spans:
    """Which pictures are scored and which calibrate."""

    scored: Mapping[str, int]
    calibrating: Mapping[str, int]
    batch_num: int


def _spans(count: int, size: int, each_s: float) -> _Spans:
    """Divide the pictures: a quarter calibrates, and of the others as many are scored as take a minute."""
    if count < max(_FEW, 2 * size):
        return _Spans({}, {}, max(1, min(count, _MOST_CALIBRATING) // size))
    batches = max(1, min(count // 4, _MOST_CALIBRATING) // size)
    affordable = int(min(_MOST_SCORED, max(_FEWEST_SCORED, _SECONDS_OF_A_TRIAL / max(each_s, 1e-6))))
    scored = {"start": batches * size} | ({"count": affordable} if count - batches * size > affordable else {})
    return _Spans(scored, {"count": batches * size}, batches)


def _geometry(transform: TransformSettings, suggestion: Suggestion) -> TransformSettings:
    """Cut the centre out for a classifier of large pictures, as it is trained; others see whole pictures."""
    height, width = transform.resize
    if transform.crop or not suggestion.classifies or min(height, width) < _CROPPED_FROM:
        return transform
    shorter = 256 if max(height, width) in (224, 227) else round(min(height, width) * 8 / 7)
    return replace(transform, resize=(shorter,), crop=(height, width))


def _transform_keys(transform: TransformSettings, folder: Path) -> dict[str, object]:
    """Return the transform as keys of a study file in `folder`."""
    keys: dict[str, object] = {"resize": transform.resize if len(transform.resize) > 1 else transform.resize[0]}
    if transform.crop is not None:
        keys["crop"] = transform.crop
    if transform.channels is not None:
        keys["channels"] = transform.channels
    if transform.mean_file is not None:
        keys["mean_file"] = os.path.relpath(Path(transform.mean_file).resolve(), folder.resolve())
    else:
        keys["mean"] = transform.mean if len(transform.mean) > 1 else transform.mean[0]
    return keys | {"scale": round(transform.scale, _DIGITS)}


def _limit(kind: str, graph: Graph, data: DataSettings, found: Mapping[str, Array]) -> float | None:
    """Return the limit of a kind; of decisions by how sure the network is of them. None: it is no `drop`."""
    if kind == "agreement":
        ends = find_scores(graph, BuiltinSettings(kind, data, data))
        if ends.axis:
            decisions = np.moveaxis(found[ends.output], ends.axis, -1).reshape(-1, found[ends.output].shape[ends.axis])
            if len(decisions) >= FEWEST_DECISIONS:
                return fitting_drop(decisions).limit
    return KINDS[kind].drop_unsaid.limit if "drop" in KINDS[kind].keys else None


def _comment(text: str) -> str:
    """Write a text as lines that say nothing."""
    return "\n".join(f"# {line}" for line in wrap(visible(text[:1].upper() + text[1:]), _LINE))


def _lines(keys: Mapping[str, object]) -> str:
    return "\n".join(f"{key} = {_toml(value)}" for key, value in keys.items())


def _toml(value: object) -> str:
    """Write a value as TOML has it, which writes texts, numbers and lists of them as JSON does."""
    return json.dumps(value, ensure_ascii=False)
