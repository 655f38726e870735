"""Text that need not be UTF-8: prototxts, caffemodels and record files as C++ protobuf reads and writes them.

C++ keeps the bytes of a string as they are, Python's protobuf refuses those that are no UTF-8. Here such a byte
becomes one character of a private range on the way in and the byte again on the way out. In between it is ordinary
text: messages take it, JSON, databases and reports hold it, terminals print it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_encoding
from google.protobuf.message import Message

from autonuq.graph import caffe_pb2

_PRIVATE = 0x10FE00  # + byte: the end of Unicode's last private plane
_FROM_SURROGATES = {0xDC00 + byte: _PRIVATE + byte for byte in range(0x80, 0x100)}
_TO_SURROGATES = {private: surrogate for surrogate, private in _FROM_SURROGATES.items()}
_TO_ESCAPES = {private: f"\\{private - _PRIVATE:03o}" for private in _TO_SURROGATES}
_PRIVATE_UTF8 = re.compile(rb"\xf4\x8f[\xba\xbb][\x80-\xbf]")
# Possessive, from the beginnings of words only, and with strings that do not end: else its time has the text's square.
_STRING = re.compile(r"""\#[^\n]*+|((?<!\w)\w++\s*+:\s*+)?(["'])((?:\\.|(?!\2)[^\\\n])*+)(\2?)""")
_HIGH_ESCAPE = re.compile(r"\\(?:[0-7]|[xX][0-9a-fA-F])")
_Field = descriptor_pb2.FieldDescriptorProto
_BYTES_FIELDS = frozenset(
    field.name
    for message in caffe_pb2.DESCRIPTOR.message_types_by_name.values()
    for field in message.fields
    if field.type == field.TYPE_BYTES
)


def decode_text(data: bytes) -> str:
    """Return bytes as text that `encode_text` turns into the same bytes again, whatever they are.

    Notes
    -----
    Bytes that happen to spell a character of the private range count as bytes that are no UTF-8.
    """
    parts = re.split(b"(%b)" % _PRIVATE_UTF8.pattern, data)  # every second one is such a character
    codecs = ("ascii" if index % 2 else "utf-8" for index in range(len(parts)))
    found = (part.decode(codec, "surrogateescape") for part, codec in zip(parts, codecs, strict=True))
    return "".join(found).translate(_FROM_SURROGATES)


def encode_text(text: str) -> bytes:
    """Return the bytes that `decode_text` made the text from; plain UTF-8 where it is ordinary text."""
    return text.translate(_TO_SURROGATES).encode("utf-8", "surrogateescape")


def escape_bytes(text: str) -> str:
    r"""Spell bytes that are no UTF-8 as `\304` in protobuf's text format, as C++ writes them."""
    return text.translate(_TO_ESCAPES)


def unescape_bytes(text: str) -> str:
    r"""Undo `escape_bytes` in protobuf's text format: bytes spelled as `\304` need not be UTF-8 either."""
    return _STRING.sub(_respelled, text) if "\\" in text else text


def _respelled(found: re.Match[str]) -> str:
    """Respell one string, unless its field holds bytes: those are no text."""
    field, content = found[1] or "", found[3] or ""
    if not found[4] or not _HIGH_ESCAPE.search(content) or field.rstrip(": \t\r\n") in _BYTES_FIELDS:
        return found[0]
    try:
        data = text_encoding.CUnescape(escape_bytes(content))
    except ValueError:  # a bad escape: for the parser to refuse
        return found[0]
    text = decode_text(data).encode()
    return f'{field}"{text_encoding.CEscape(text, as_utf8=True)}"' if text != data else found[0]


def serialize(message: Message) -> bytes:
    """Return a message in the wire format, its strings as the bytes that they came from."""
    data = message.SerializeToString(deterministic=True)
    if not _PRIVATE_UTF8.search(data):
        return data
    classes, strings = _byte_classes(message.DESCRIPTOR.file)
    raw = classes[message.DESCRIPTOR.full_name].FromString(data)
    _restore(raw, strings)
    return bytes(raw.SerializeToString(deterministic=True))


@cache
def _byte_classes(file: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Make the classes of a schema with all strings as bytes, the wire format is the same; and name those fields."""
    schema = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(schema)
    strings = set()
    for message in schema.message_type:
        for field in message.field:
            if field.type == _Field.TYPE_STRING:
                field.type = _Field.TYPE_BYTES
                strings.add(f"{schema.package}.{message.name}.{field.name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    found = pool.FindFileByName(schema.name).message_types_by_name.values()
    return {message.full_name: message_factory.GetMessageClass(message) for message in found}, frozenset(strings)


def _restore(message: Message, strings: frozenset[str]) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                _restore(inner, strings)
        elif field.full_name in strings and isinstance(value, bytes):
            setattr(message, field.name, encode_text(value.decode()))
        elif field.full_name in strings:
            value[:] = [encode_text(item.decode()) for item in value]
