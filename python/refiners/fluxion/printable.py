"""Texts out of files, as messages can hold them."""

from __future__ import annotations

_LONGEST = 200  # characters; names of layers have up to 120


def printable(text: str) -> str:
    """Write a text on one line, in characters that can be printed, shortened if it is very long.

    A file may have anything in its keys: line breaks, halves of characters, codes that a terminal obeys.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}... ({len(text)} characters)"
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
