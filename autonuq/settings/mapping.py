"""ATC's fused-graph JSON: which layers the device would like to have compressed.

ATC turns a deploy pair into an ``.om`` file, and ``atc --mode=1`` turns that into JSON. There every operator
whose weights the device compresses carries a marker, and the names of the Caffe layers fused into it. The
simplified configuration points at this file (``nuq_config.mapping_file``). Without it the marks are predicted from
shapes, for a chip (``nuq_config.chip``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autonuq.compress.chip import predict_marks
from autonuq.errors import QuantizationError
from autonuq.graph.capability import Capability
from autonuq.graph.model import Graph
from autonuq.settings.config_json import parse_json

# Files carry the first spelling, AMCT's pages the second.
_MARKERS = ("_fe_weight_compress", "fe_weight_compress")
_MEMBERS = "_datadump_original_op_names"


@dataclass(frozen=True)
class Marks:
    """What the markers of one file mean for one network.

    Attributes
    ----------
    layers : tuple of str
        Marked layers that can be quantized, in file order, each once.
    unmatched : tuple of str
        Marked operators in which no such layer was found.
    """

    layers: tuple[str, ...]
    unmatched: tuple[str, ...]


def predicted_layers(graph: Graph, chip: str) -> tuple[str, ...]:
    """Return the layers that ATC would mark on a chip, in network order.

    Parameters
    ----------
    graph : Graph
        With or without blobs.
    chip : str
        Key of `quant.atc.chips.DDR_RATES`.

    Notes
    -----
    Convolutions only: the one published file leaves its fully connected layer unmarked (`unsaid`).
    """
    marks = predict_marks(graph, chip)
    return tuple(name for name, mark in marks.items() if mark.is_marked)


def load_marks(path: str | Path, capabilities: Sequence[Capability]) -> Marks:
    """Read which layers are marked, whether or not they can carry a codebook.

    Parameters
    ----------
    path : str or Path
        JSON of an ``.om``, as ``atc --mode=1`` writes it.
    capabilities : sequence of Capability
        Every layer of the folded network.

    Returns
    -------
    Marks

    Raises
    ------
    QuantizationError
        If the file cannot be read or is not of ATC's shape.

    Notes
    -----
    The name of a fused operator is the plain concatenation of its members' names and cannot be split again;
    the members come from the operator's list of original names. Only where that knows no layer of the network
    is the longest layer name taken that the operator's name begins with.

    **Cost**: one pass over the operators.
    """
    path = Path(path)
    candidates = {capability.name for capability in capabilities if capability.quantizable}
    layers: dict[str, None] = {}
    unmatched: list[str] = []
    for operator, attributes in _operators(path):
        if not any(_is_true(attributes.get(marker)) for marker in _MARKERS):
            continue
        hits = [name for name in _original_names(operator, attributes) if name in candidates]
        if not hits:
            starts = [name for name in candidates if operator.startswith(name)]
            hits = [max(starts, key=len)] if starts else []
        layers |= dict.fromkeys(hits)
        unmatched += [] if hits else [operator]
    return Marks(tuple(layers), tuple(unmatched))


def _operators(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the attributes of each operator, checking the file's shape on the way."""
    root = parse_json(path)
    graphs = root.get("graph") if isinstance(root, dict) else None
    if not isinstance(graphs, list):
        raise _wrong_shape(path, "an object with a list 'graph'", root)
    for g, graph in enumerate(graphs):
        operators = graph.get("op") if isinstance(graph, dict) else None
        if not isinstance(operators, list):
            raise _wrong_shape(path, f"a list 'op' in graph[{g}]", graph)
        for o, operator in enumerate(operators):
            where = f"graph[{g}].op[{o}]"
            if not isinstance(operator, dict) or not isinstance(operator.get("name"), str):
                raise _wrong_shape(path, f"an object with a 'name' at {where}", operator)
            yield operator["name"], _attributes(path, operator.get("attr", []), where)


def _attributes(path: Path, pairs: object, where: str) -> Mapping[str, Any]:
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and "key" in pair for pair in pairs):
        raise _wrong_shape(path, f"a list of {{key, value}} at {where}.attr", pairs)
    return {str(pair["key"]): pair.get("value") for pair in pairs}


def _is_true(value: object) -> bool:
    """Tell whether a tagged value ``{b | i | f | s: x}``, or a bare one, says yes."""
    if isinstance(value, dict):
        value = next((value[tag] for tag in "bis" if tag in value), None)
    return value in (True, "true", "True")  # 1 == True


def _original_names(operator: str, attributes: Mapping[str, Any]) -> Sequence[str]:
    keys = [_MEMBERS, *(key for key in attributes if "original_op_names" in key and key != _MEMBERS)]
    for key in keys:
        value = attributes.get(key)
        members = value.get("list") if isinstance(value, dict) else None
        names = members.get("s") if isinstance(members, dict) else None
        if isinstance(names, list) and names:
            return [name for name in names if isinstance(name, str)]
    return [operator]


def _wrong_shape(path: Path, wanted: str, got: object) -> QuantizationError:
    return QuantizationError(
        f"The mapping file must hold {wanted}. Got {json.dumps(got, ensure_ascii=False)[:80]} instead."
        " Write it with 'atc --mode=1 --om=model.om --json=model.json'.",
        path=path,
    )
