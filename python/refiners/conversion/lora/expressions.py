"""Regular expressions from files: which ones may be searched, and how long that takes at most."""

from __future__ import annotations

import re
from math import prod

from refiners.fluxion.printable import printable

LONGEST_NAME = 300
"""The characters of a name in which repetitions are searched: no layer of a published model has one half as long."""

_LONGEST = 1000  # characters of an expression
_MOST_REPETITIONS = 3  # in one expression: the time of a search grows with this power of the length of a name
_MOST_ALTERNATIVES = 16
_SIGNS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<flags>\(\?[aiLmsux-])|(?P<open>\(\??)"
    r"|(?P<repeated>\)?)(?P<repetition>(?:[*+?]|\{\d*,?\d*\})[?+]?)|(?P<bar>\|)|(?P<close>\))"
)
# Any number of parts of the name, which may precede every expression in any case.
_PARTS = re.compile(r"\^?\((?:\?:)?(?P<part>\.[*+]\\\.)\)(?P<repetition>[*+?])(?![*+?{])")
_REFERENCES = re.compile(r"\\\d|\(\?P=|\(\?\(")


def simplified(text: str) -> str:
    r"""Leave out a beginning such as `(.+\.)*`, which changes nothing; where it is `(.+\.)+`, `.+\.` does."""
    found = _PARTS.match(text)
    if found is None or _REFERENCES.search(text):
        return text
    return (found["part"] if found["repetition"] == "+" else "") + text[found.end() :]


def check_expression(text: str, written: str) -> None:
    """Raise `ValueError` if searching an expression could take very long; errors show it as it was written."""
    shown = printable(written)
    if len(text) > _LONGEST:
        raise ValueError(f"'{shown}' is longer than {_LONGEST} characters")
    signs = list(_SIGNS.finditer(text))
    if any(found["flags"] for found in signs):
        raise ValueError(f"'{shown}' has flags, which are not supported")
    repetitions = [found for found in signs if found["repetition"]]
    if len(repetitions) > _MOST_REPETITIONS or any(
        found["repeated"] and found["repetition"][0] != "?" for found in repetitions
    ):
        raise ValueError(
            f"'{shown}' could take very long to search: at most {_MOST_REPETITIONS} repetitions are allowed,"
            " and none of a group"
        )
    if sum(found["bar"] is not None for found in signs) > _MOST_ALTERNATIVES:
        raise ValueError(f"'{shown}' has more than {_MOST_ALTERNATIVES} alternatives")


def steps_of(text: str) -> tuple[int, int]:
    """Give the number of repetitions, and the number of ways to choose among alternatives and what may be missing."""
    repetitions, counts, open_groups, maybes = 0, [1], [0], 0
    for found in _SIGNS.finditer(text):
        if found["open"] or found["flags"]:
            open_groups.append(len(counts))
            counts.append(1)
        elif found["bar"]:
            counts[open_groups[-1]] += 1
        if (found["close"] or found["repeated"]) and len(open_groups) > 1:
            open_groups.pop()
        if found["repetition"]:
            maybes += found["repetition"][0] == "?"
            repetitions += found["repetition"][0] != "?"
    return repetitions, prod(counts) * 2**maybes
