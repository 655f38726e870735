"""What `autonuq new` writes without pictures: a study file and an evaluator that runs at once, on random data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from autonuq.atomic import replace_text, say_system_error
from autonuq.cli.picture_study import STUDY, Ask, picture_study_text
from autonuq.errors import StudyError
from autonuq.file_names import RULE, is_file_name
from autonuq.graph.files import load_graph, prototxt_text
from autonuq.graph.hosted.permission import is_refused
from autonuq.graph.layers import infer_known_shapes
from autonuq.graph.model import TEST, Graph, Shape
from autonuq.runtime.net import Net
from autonuq.visible import visible

STUDY_NAME, EVALUATOR_NAME = "study.toml", "evaluate.py"

_CLASS = f"""\
class = "{EVALUATOR_NAME}:Closeness"  # it runs on random data: fill in what is marked TODO there
evaluate_batch_num = 8
# Pictures need no class: 'autonuq new NAME --images FOLDER ...' writes the keys that take the place of the two lines
# above, with labels (top1, top5, map, miou) or without (agreement, detections, outputs)."""

_PERMISSION = """
# allow_python_layers = true     # lets its Python layers run, code of others: take the mark away where you trust it"""

_EVALUATOR = Template('''\
"""How good a network is, and whether that is good enough.

As it stands, this measures on random data how close a network's output comes to the original network's. That shows
that everything works, but it says nothing about your task, and every result of the study says so: fill in what is
marked TODO. With a folder of pictures, labelled or not, none is needed: 'autonuq new NAME --images FOLDER ...'.
"""

from pathlib import Path

import numpy as np

import autonuq as nuq

FOLDER = Path(__file__).parent
ORIGINAL = str(FOLDER / ${prototxt}), str(FOLDER / ${weights})
INPUTS = ${inputs}
OUTPUT = ${output}  # ${others}


class Closeness(nuq.Evaluator):
    """1 minus the relative error of the output; 1 for the original network."""

    random_data = True  # TODO 1: remove this line when the data are yours

    def __init__(self, evaluate_batch_num):
        super().__init__(evaluate_batch_num=evaluate_batch_num)
        self.expected = {}

    def batch(self, number):
        """Return every input blob of a batch, the same each time."""
        # TODO 2: return your images, prepared as for training (size, order of the colours, mean, scale), as float32.
        rng = np.random.default_rng(number)
        return {blob: rng.standard_normal(shape, np.float32) for blob, shape in INPUTS.items()}

    def run(self, model_file, weights_file, batch_num):
        net = nuq.Net(model_file, weights_file, nuq.pycaffe.TEST)
        return np.stack([net.forward([OUTPUT], **self.batch(number))[OUTPUT] for number in range(batch_num)])

    def eval_model(self, model_file, weights_file, batch_num):
        """Run `batch_num` batches and return one number; also called to calibrate, when the number is ignored."""
        output = self.run(model_file, weights_file, batch_num)
        # TODO 3: return your metric. Of a classifier with labels of shape (batch_num, batch size), for example:
        #     return float((output.reshape(*labels.shape, -1).argmax(-1) == labels).mean())
        if batch_num not in self.expected:
            self.expected[batch_num] = self.run(*ORIGINAL, batch_num)
        expected = self.expected[batch_num]
        return 1 - float(np.linalg.norm(output - expected) / np.linalg.norm(expected))

    def is_satisfied(self, original_metric, new_metric):
        """Say whether a compressed network is good enough."""
        # TODO 4: say how much may be lost.
        return original_metric - new_metric < 0.1
''')


def write_skeleton(
    folder: Path,
    model: Path,
    weights: Path,
    *,
    level: int = 0,
    stages: Sequence[str] = (),
    images: Path | None = None,
    ask: Ask = lambda key, guessed: None,
) -> tuple[Path, ...]:
    """Write a study file for a network, complete where there are pictures, and else an evaluator beside it.

    Parameters
    ----------
    folder : Path
        Made if it is not there; its name is the study's.
    model, weights : Path
        The files name them relative to `folder`.
    level, stages
        Which layers are kept, by the prototxt's rules. Where they are given, the network that they choose is written
        into the folder for the study.
    images : Path, optional
        Pictures that the network is scored on, without labels; see `picture_study`.
    ask : callable
        See `Ask`.

    Returns
    -------
    tuple of Path
        The study file, the evaluator if there are no pictures, and the prototxt if it was written.

    Raises
    ------
    StudyError
        One of the files exists, or the folder cannot be written.
    EvaluatorError
        There are no pictures, or the network takes none.
    ModelError, RuntimeFailure
        The network cannot be used.
    """
    if not is_file_name(folder.resolve().name):
        raise StudyError(f"the folder's name is the study's, and that cannot be used: {RULE}", path=folder)
    graph = load_graph(model, weights, level=level, stages=stages)
    network = {folder / model.name: prototxt_text(graph)} if level or stages else {}
    named = next(iter(network), model)
    targets = [folder / STUDY_NAME, *([folder / EVALUATOR_NAME] if images is None else []), *network]
    for target in targets:
        if target.exists():
            raise StudyError("exists already; choose another folder, or remove it", path=target)
    values = _values(graph, infer_known_shapes(graph), folder, named, weights)
    if images is None:
        texts = {
            targets[0]: STUDY.substitute(values, evaluator=_CLASS, batch_num=2),
            targets[1]: _EVALUATOR.substitute(values),
        } | network
    else:
        net = Net(str(model), TEST, level=level, stages=list(stages), weights=str(weights))
        texts = {targets[0]: picture_study_text(graph, net, values, images, folder, ask)} | network
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, text in texts.items():
            replace_text(target, text)
    except OSError as error:
        for target in texts:  # there was none of them
            target.unlink(missing_ok=True)
        raise StudyError(say_system_error(error)) from error
    return tuple(texts)


def _values(graph: Graph, shapes: Mapping[str, Shape], folder: Path, model: Path, weights: Path) -> dict[str, str]:
    output = likely_output(graph)
    sizes = {blob: str(shapes.get(blob, "of a shape that a Python layer makes")) for blob in [output, *graph.outputs]}
    others = [f"{blob} {sizes[blob]}" for blob in graph.outputs if blob != output]
    prototxt, caffemodel = (
        json.dumps(os.path.relpath(path.resolve(), folder.resolve()), ensure_ascii=False) for path in (model, weights)
    )
    beside = f"the outputs are {', '.join(others)}" if others else "the only output"
    return {  # in comments names are escaped: behind a line break there would be code
        "title": visible(graph.name or model.name),
        "name": json.dumps(folder.resolve().name, ensure_ascii=False),
        "prototxt": prototxt,
        "weights": caffemodel,
        "inputs": repr(dict(graph.inputs)),
        "output": json.dumps(output),
        "permission": _PERMISSION if any(map(is_refused, graph.layers)) else "",
        "others": visible(f"{sizes[output]}; {beside}"),
    }


def likely_output(graph: Graph) -> str:
    """Guess the blob to look at: the last output with probabilities, else the last output.

    A DetectionOutput's rows change in number, so the confidences that it reads stand for it.
    """
    makers = {top: layer for layer in graph.layers for top in layer.tops}
    likely = [blob for blob in graph.outputs if makers[blob].type in ("Softmax", "Sigmoid")]
    blob = (likely or list(graph.outputs))[-1]
    return makers[blob].bottoms[1] if makers[blob].type == "DetectionOutput" else blob
