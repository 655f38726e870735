"""Text of others as text: names out of files and storages may hold line breaks, a terminal's commands, and more."""

from __future__ import annotations


def visible(text: str, keep: str = "") -> str:
    """Escape what is not printable, but for the characters in `keep`: controls, and what turns the direction around."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
