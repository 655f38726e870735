"""Fields that the schema lacks: every fork of Caffe has some of its own.

Protobuf can only refuse or lose what it does not know. What a layer's name, type and place in the network say stays
true without such fields, so that they are cut out of the text before it is parsed, and judged when the layers are
known: in a layer that the phase leaves out they mean nothing, in one of an unsupported type the type is what has to
be said, a registered type gets them as they stand, and in a layer that is computed here they are refused by name
unless they say nothing about what it computes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor

from autonuq.errors import ModelError, suggest_name
from autonuq.graph import caffe_pb2
from autonuq.graph.hosted.registry import registered_types
from autonuq.graph.layers import LAYER_TYPES

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<name>[A-Za-z_]\w*)
    |(?P<number>\.?\d(?:[eE][-+]\d|[\w.])*)
    |(?P<mark>["'][^\n]*|.)""",  # a string without an end, too: else each quote in it would be tried
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_CLOSERS = {"{": "}", "<": ">", "[": "]"}
_WRITTEN = re.compile(r'^(\s*)foreign_param: "((?:\\.|[^"\\])*)"$', re.MULTILINE)

# Of the network: memory, precision and parallelism of NVIDIA's, Intel's and multi-GPU forks.
_HARMLESS_IN_NET = re.compile(
    r"default_\w+|global_grad_scale\w*|engine|net_mode|multinode|profile_info|compile_net_state|eltwise_mem_sharing"
    r"|reduce_buckets|optimize_mem|mem_param|bn_stats_batch_size|store_blobs_in_old_format|quantize\w*_debug"
)
# Of a layer: which implementation computes it, in which precision it is trained, what learns.
_HARMLESS_IN_LAYER = re.compile(
    r"(forward|backward)_(type|math)|debug|engine|cudnn_math_override|multinode|mn_\w+|split_param|need_backward|freeze"
    r"|force_backward|reshape_every_iter|coeff_schedule_param"
)
_HARMLESS_INSIDE = re.compile(r"engine|cudnn_\w+|conv_algos_override|workspace_limit|force_\w+_im2col")
# Read where data are loaded, or in training.
_BESIDE_THE_POINT = frozenset({"transform_param", "param", "loss_param"})
_HOLES = {"hole": (0, 1), "hole_h": (0,), "hole_w": (1,)}  # DeepLab's words for dilation, and the axes they are of


@dataclass(frozen=True)
class ForeignField:
    """A field that the schema lacks, or whose value the schema's field does not have.

    Attributes
    ----------
    layer : int or None
        Position of its layer among the file's; None outside of layers.
    path : tuple of str
        Names from the layer, or from the network, down to it.
    start, end : int
        Where it stands in the text, a separator behind it included.
    text : str
        Itself.
    line, column : int
    fault : {"field", "value", "form", "syntax"}
        The message has no such field; its enumeration has no such value; a message stands where a value is due, text
        where a number is, or the reverse; the parser refuses what is in it.
    hint : str
        What the parser says.
    known : collection of str
        The names that the message has.
    """

    layer: int | None
    path: tuple[str, ...]
    start: int
    end: int
    text: str
    line: int
    column: int
    fault: Literal["field", "value", "form", "syntax"]
    hint: str = ""
    known: Collection[str] = ()

    @property
    def value(self) -> str:
        """What stands behind the name."""
        return self.text[len(self.path[-1]) :].lstrip(": \t\r\n")

    @property
    def is_v1_type(self) -> bool:
        """Whether it is a type that the enumeration of V1 layers lacks."""
        return self.path == ("type",) and self.fault == "value"

    @property
    def is_harmless(self) -> bool:
        """Whether it says nothing about what a network in phase TEST computes."""
        *outer, name = self.path
        if self.layer is None:
            return _HARMLESS_IN_NET.fullmatch(self.path[0]) is not None
        if not outer:
            return _HARMLESS_IN_LAYER.fullmatch(name) is not None
        if (*self.path, self.value) == ("dropout_param", "sample_weights_test", "false"):
            return True  # Bayesian SegNet draws at random on request
        beside = outer[0] in _BESIDE_THE_POINT or any(part.endswith("_filler") for part in outer)
        return beside or "save_output_param" in outer or _HARMLESS_INSIDE.fullmatch(name) is not None

    def described(self, owner: str) -> str:
        """Say what is wrong; `owner` is what a field stands in that is in no other message."""
        *outer, name = self.path
        if self.fault == "syntax":
            return self.hint
        if self.fault == "value":
            what = f"'{'.'.join(self.path)}' has no value named {self.value}"
        elif self.fault == "form":
            what = f"'{'.'.join(self.path)}' is written in another form than Caffe's"
        elif outer:
            what = f"'{'.'.join(outer)}' has no field named \"{name}\""
        else:
            what = f"{owner} has no parameters '{name}'"
        nearest = suggest_name(name, self.known)
        remedy = f".{nearest}" if nearest else "; remove it if that does not change what is computed"
        return f"{what} (line {self.line}, column {self.column}){remedy}"


@dataclass(frozen=True)
class Findings:
    """What a prototxt says beyond the schema, in its order, up to where the text is no prototxt any more.

    Attributes
    ----------
    fields : tuple of ForeignField
    messages : tuple of ForeignField
        The layers' parameter messages that the schema has: what is in them may be refused by the parser all the same.
    """

    fields: tuple[ForeignField, ...]
    messages: tuple[ForeignField, ...]

    def without_message_at(self, position: int, reason: str) -> Findings | None:
        """Count the message around a position among the fields, for this reason; None where there is none."""
        for message in self.messages:
            if message.start <= position < message.end:
                others = [one for one in self.fields if not message.start <= one.start < message.end]
                refused = replace(message, fault="syntax", hint=reason)
                fields = sorted([*others, refused], key=lambda one: one.start)
                return Findings(tuple(fields), tuple(one for one in self.messages if one is not message))
        return None


def find_foreign(text: str) -> Findings:
    """Look for what the schema lacks."""
    scanner = _Scanner(text)
    with suppress(_Lost):  # the parser says what is wrong there
        scanner.scan()
    return Findings(tuple(scanner.found), tuple(scanner.messages))


def cut_out(text: str, fields: Iterable[ForeignField]) -> str:
    """Return the text with blanks in place of some fields; lines and columns stay."""
    result, done = [], 0
    for field in fields:
        result += [text[done : field.start], re.sub(r"[^\n]", " ", text[field.start : field.end])]
        done = field.end
    return "".join([*result, text[done:]])


def settle_foreign(
    fields: Iterable[ForeignField], layers: Sequence[caffe_pb2.LayerParameter], kept: Collection[int], path: Path
) -> None:
    """Judge fields that were cut out, and give those that mean something here to the layers.

    Parameters
    ----------
    layers : sequence of LayerParameter
        All layers of the file; changed in place.
    kept : collection of int
        Positions of those that the network's state keeps.

    Raises
    ------
    ModelError
        A field may change what a layer computes, or whether it is kept; file, layer, field and line are named.
    """
    for field in fields:
        if field.is_harmless:
            continue
        if field.layer is None:
            raise ModelError(field.described("a network"), path=path)
        layer = layers[field.layer]
        decides = field.path[0] in ("include", "exclude")
        concerns = field.layer in kept and layer.type in LAYER_TYPES and not _taken_over(field, layer)
        if decides or concerns:
            name = None if field.fault == "syntax" else layer.name
            raise ModelError(field.described(f"type '{layer.type}'"), path=path, layer=name)


def _taken_over(field: ForeignField, layer: caffe_pb2.LayerParameter) -> bool:
    """Give a field to the layer whose type says what it means."""
    *outer, name = field.path
    if not outer and name.endswith("_param") and field.fault == "field":
        if name in layer.DESCRIPTOR.fields_by_name:
            return _parsed_into(layer, field)
        layer.foreign_param.extend([field.text] if layer.type in registered_types() else [])
        return layer.type in registered_types()
    if outer != ["convolution_param"] or name not in _HOLES or not field.value.isdecimal():
        return False
    dilation = (list(layer.convolution_param.dilation) * 2)[:2] or [1, 1]
    for axis in _HOLES[name]:
        dilation[axis] = int(field.value)
    layer.convolution_param.dilation[:] = dilation
    return True


def _parsed_into(layer: caffe_pb2.LayerParameter, field: ForeignField) -> bool:
    """Give a V1 layer of a fork what only today's layers have."""
    try:
        text_format.Merge(field.text, layer)
    except text_format.ParseError:
        return False
    return True


def unquote_foreign(text: str) -> str:
    """Put parameters of registered types into a written prototxt as they stood in the one that was read."""
    return _WRITTEN.sub(lambda found: found[1] + text_encoding.CUnescape(found[2]).decode(), text)


class _Lost(Exception):
    """The text is no prototxt."""


class _Scanner:
    """Walks through a text as the schema says and notes what the schema lacks.

    Parameters
    ----------
    text : str

    Attributes
    ----------
    found, messages : list of ForeignField
        See `Findings`.
    """

    def __init__(self, text: str) -> None:
        self.found: list[ForeignField] = []
        self.messages: list[ForeignField] = []
        self._text = text
        self._line_ends = [found.start() for found in re.finditer("\n", text)]
        self._tokens = [token for token in _TOKEN.finditer(text) if token.lastgroup]
        self._next = 0
        self._layers: Counter[str] = Counter()

    def scan(self) -> None:
        """Walk through the whole text."""
        while self._next < len(self._tokens):
            self._field(caffe_pb2.NetParameter.DESCRIPTOR, None, ())

    def _field(self, message: Any, layer: int | None, path: tuple[str, ...]) -> None:
        token = self._take("name")
        path = (*path, token[0])
        if layer is None and token[0] in ("layer", "layers"):
            layer, path = self._layers[token[0]], ()
            self._layers[token[0]] += 1
        fault = self._value(message.fields_by_name.get(token[0]), layer, path)
        start, end = token.start(), self._tokens[self._next - 1].end()
        self._accept(",;")
        is_message = layer is not None and len(path) == 1 and token[0].endswith("_param")
        if fault is None and not is_message:
            return
        (self.messages if fault is None else self.found).append(
            ForeignField(
                layer=layer,
                path=path or (token[0],),
                start=start,
                end=self._tokens[self._next - 1].end(),
                text=self._text[start:end],
                line=bisect_left(self._line_ends, start) + 1,
                column=start - self._text.rfind("\n", 0, start),
                fault=fault or "syntax",
                known=message.fields_by_name.keys() if fault == "field" else (),
            )
        )

    def _value(
        self, field: FieldDescriptor | None, layer: int | None, path: tuple[str, ...]
    ) -> Literal["field", "value", "form"] | None:
        """Go past a value and say what is wrong with it."""
        has_colon = self._accept(":") is not None
        if (opener := self._accept("{<[")) is None:
            if not has_colon:
                raise _Lost
            return self._scalar(field)
        if field is not None and field.message_type is not None and opener != "[":
            while self._accept(_CLOSERS[opener]) is None:
                self._field(field.message_type, layer, path)
            return None
        self._skip(opener)
        if field is None:
            return "field"
        return None if opener == "[" else "form"

    def _scalar(self, field: FieldDescriptor | None) -> Literal["field", "value", "form"] | None:
        if self._kind() == "string":
            while self._kind() == "string":
                self._next += 1
            is_text, name = True, ""
        else:
            self._accept("-")
            is_text, name = False, self._take("name", "number")[0]
        if field is None:
            return "field"
        if field.message_type is not None or is_text != (field.cpp_type == FieldDescriptor.CPPTYPE_STRING):
            return "form"
        if field.enum_type is not None and not name[0].isdigit() and name not in field.enum_type.values_by_name:
            return "value"
        return None

    def _skip(self, opener: str) -> None:
        """Go past everything up to the bracket that closes the last one."""
        opened = [opener]
        while opened:
            token = self._take("name", "number", "string", "mark")
            if token.lastgroup == "mark" and token[0] in _CLOSERS:
                opened.append(token[0])
            elif token.lastgroup == "mark" and token[0] in _CLOSERS.values() and token[0] != _CLOSERS[opened.pop()]:
                raise _Lost

    def _kind(self) -> str | None:
        return self._tokens[self._next].lastgroup if self._next < len(self._tokens) else None

    def _take(self, *kinds: str) -> re.Match[str]:
        if self._kind() not in kinds:
            raise _Lost
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, marks: str) -> str | None:
        """Take the next token if it is one of some marks."""
        if self._kind() == "mark" and self._tokens[self._next][0] in marks:
            self._next += 1
            return self._tokens[self._next - 1][0]
        if self._kind() is None and marks in _CLOSERS.values():
            raise _Lost
        return None
