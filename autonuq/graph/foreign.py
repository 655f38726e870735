"""Parameters that the schema lacks, of layers whose type a user registered.

A fork's layer brings a message of its own, `mish_param { ... }`. Protobuf can only refuse or lose what it does not
know, so that such messages are put in quotes before a prototxt is parsed, and taken out again when one is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from google.protobuf import text_encoding

from autonuq.graph import caffe_pb2

_FIELD = "foreign_param"
_TOKEN = re.compile(
    r"""\#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<name>[A-Za-z_]\w*)|(?P<brace>[{}])""",
    re.VERBOSE,
)
_WRITTEN = re.compile(rf'^(\s*){_FIELD}: "((?:\\.|[^"\\])*)"$', re.MULTILINE)


def quote_foreign(text: str) -> str:
    """Put messages named `..._param` that LayerParameter lacks in quotes, wherever they stand in a `layer`."""
    result, done = [], 0
    for start, end in _foreign_spans(text):
        quoted = text_encoding.CEscape(text[start:end].encode(), as_utf8=False)
        result += [text[done:start], f'{_FIELD}: "{quoted}"']
        done = end
    return "".join([*result, text[done:]])


def unquote_foreign(text: str) -> str:
    """Undo `quote_foreign` in a written prototxt."""
    return _WRITTEN.sub(lambda found: found[1] + text_encoding.CUnescape(found[2]).decode(), text)


def _foreign_spans(text: str) -> Iterator[tuple[int, int]]:
    known = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name
    last: re.Match[str] | None = None  # name
    opened: list[re.Match[str] | None] = []
    for token in _TOKEN.finditer(text):
        if token["name"]:
            last = token
        elif token["brace"] == "{":
            opened.append(last)
        elif token["brace"] and opened:
            name = opened.pop()
            inside_layer = len(opened) == 1 and opened[0] is not None and opened[0][0] == "layer"
            if inside_layer and name is not None and name[0].endswith("_param") and name[0] not in known:
                yield name.start(), token.end()
