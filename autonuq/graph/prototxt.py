"""The text of a prototxt as a message, whichever fork wrote it and in whatever encoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from autonuq.errors import ModelError
from autonuq.graph import caffe_pb2
from autonuq.graph.foreign import Findings, ForeignField, cut_out, find_foreign, settle_foreign
from autonuq.graph.text import decode_text, unescape_bytes
from autonuq.graph.upgrade import has_v0_layers, is_included, legacy_inputs, upgrade_layers

_MOST_PARSED = 500_000  # characters, while messages that the parser refuses are cut out one by one: about two seconds
_SHOWN = 200  # characters of a syntax error: it may quote the whole file
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class ParsedNet:
    """What a prototxt says, in today's format.

    Attributes
    ----------
    name : str
    kept : tuple of LayerParameter
        The layers of the phase, level and stages; inputs first, as an `Input` layer.
    left_out : tuple of LayerParameter
        The others.
    """

    name: str
    kept: tuple[caffe_pb2.LayerParameter, ...]
    left_out: tuple[caffe_pb2.LayerParameter, ...]


def parse_prototxt(data: bytes, path: Path, state: caffe_pb2.NetState) -> ParsedNet:
    """Parse a prototxt.

    Parameters
    ----------
    data : bytes
        Those of strings are kept, those of comments ignored, be they UTF-8 or not.
    path : Path
        For messages.
    state : NetState
        Which layers are kept; the text's own `state` goes before.

    Raises
    ------
    ModelError
        It is no prototxt, an older spelling cannot be upgraded, or a layer has parameters that nobody here knows.
    """
    text = _decoded(data, path)
    net, foreign = _parsed(text, data, path)
    types = {field.layer: field.value for field in foreign if field.layer is not None and field.is_v1_type}
    net.state.MergeFrom(state)
    layers = upgrade_layers(net, path, types)
    kept = [index for index, layer in enumerate(layers) if is_included(layer, net.state)]
    places = frozenset(kept)
    settle_foreign((field for field in foreign if not field.is_v1_type), layers, places, path)
    inputs, names = legacy_inputs(net, path), {layers[index].name for index in kept}
    for layer in inputs:
        while layer.name in names:
            layer.name += "_"
    left_out = tuple(layer for index, layer in enumerate(layers) if index not in places)
    return ParsedNet(net.name, (*inputs, *(_settled(layers[index]) for index in kept)), left_out)


def _settled(layer: caffe_pb2.LayerParameter) -> caffe_pb2.LayerParameter:
    """Take out what is done with: blobs stand in the caffemodel, and rules of level and stage chose this layer."""
    layer.ClearField("blobs")
    rules = (*layer.include, *layer.exclude)
    if any(field.name != "phase" for rule in rules for field, _ in rule.ListFields()):
        layer.ClearField("include")
        layer.ClearField("exclude")
    return layer


def _decoded(data: bytes, path: Path) -> str:
    if data.startswith(_UTF16_MARKS):
        raise ModelError("is UTF-16 text; Caffe reads bytes of ASCII or UTF-8, so save it as UTF-8", path=path)
    return unescape_bytes(decode_text(data.removeprefix(_UTF8_MARK)))


def _parsed(text: str, data: bytes, path: Path) -> tuple[caffe_pb2.NetParameter, tuple[ForeignField, ...]]:
    """Return the message, and what was left out of it; that is looked for where the text does not parse whole."""
    net = caffe_pb2.NetParameter()
    try:
        text_format.Parse(text, net)
    except text_format.ParseError as error:
        refused = ModelError(_syntax_message(error, data), path=path)
    else:
        return net, ()
    found: Findings | None = find_foreign(text)
    parsed = 0
    while found is not None and parsed <= _MOST_PARSED:
        parsed += len(text)
        net.Clear()
        try:
            text_format.Parse(cut_out(text, found.fields), net)
        except text_format.ParseError as error:
            refused = ModelError(_syntax_message(error, data), path=path)
            found = found.without_message_at(_position(text, error), refused.message)
            continue
        if has_v0_layers(net) or _is_untyped(net, found.fields):
            break
        return net, found.fields
    raise refused


def _position(text: str, error: text_format.ParseError) -> int:
    """Return where in a text the parser stopped."""
    lines = text.split("\n")[: (error.GetLine() or 1) - 1]
    return sum(len(line) + 1 for line in lines) + (error.GetColumn() or 1) - 1


def _is_untyped(net: caffe_pb2.NetParameter, foreign: Sequence[ForeignField]) -> bool:
    """Say whether a layer with such fields has no type, so that nobody can tell what they mean."""
    if net.layer and net.layers:  # both formats mixed, which is refused later
        return False
    layers: Sequence[caffe_pb2.LayerParameter | caffe_pb2.V1LayerParameter] = net.layer or net.layers
    typed = {field.layer for field in foreign if field.is_v1_type}
    return any(
        field.layer not in typed and not layers[field.layer].type for field in foreign if field.layer is not None
    )


def _syntax_message(error: text_format.ParseError, data: bytes) -> str:
    """Say where a text does not parse, without protobuf's repetition of the whole line."""
    control = _CONTROL.search(data)
    if control is not None:
        return f"is not text, so no prototxt: byte 0x{control[0].hex()} at position {control.start()}"
    reason = str(error).rpartition("': ")[2].rpartition(" : ")[2].strip()
    shown = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]}..."
    return f"syntax error in line {error.GetLine()}, column {error.GetColumn()}: {shown}"
