"""What the commands have in common to tell mistakes."""

from __future__ import annotations

import pytest

from refiners.options import OneLineParser, complain, fold


def test_a_complaint_is_one_line_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("demo", "no") == 2
    assert capsys.readouterr().err == "python -m refiners demo: error: no\n"


def test_a_parser_complains_in_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        OneLineParser(prog="python -m refiners demo").parse_args(["--loud"])
    error = capsys.readouterr().err
    assert error.startswith("python -m refiners demo: error: unrecognized arguments: --loud; the options are --help")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "message, expected",
    [
        ("", ""),
        ("one", "one"),
        ("one\n", "one"),
        ("a is wrong:\n  this\n  that", "a is wrong; hint"),
        ("a is wrong:\n2 missing:\n    b\n    c\n1 left over:\n    d", "a is wrong: 2 missing, 1 left over; hint"),
        ("a is wrong:\n  this\n(more)", "a is wrong; hint"),
    ],
)
def test_lists_are_folded_to_their_titles(message: str, expected: str) -> None:
    assert fold(message, "hint") == expected
