"""Texts out of files, as messages can hold them."""

import pytest

from refiners.fluxion.printable import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unet.to_q", "unet.to_q"),
        ("чебурашка", "чебурашка"),
        ("", ""),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x07\0", r"\x1b[2J\x07\x00"),
        ("\ud800x", r"\ud800x"),
        ("\u202ex", r"\u202ex"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 100 + "... (201 characters)"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).isprintable()
