"""Tables of PEFT, in which the ends of names of layers are regular expressions."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from refiners.fluxion.printable import printable

_LONGEST = 1000  # characters of an expression
_MOST_EXPRESSIONS = 10_000
_MOST_REPETITIONS = 3  # in one expression: the time of a search grows with this power of the length of a name
_MOST_ALTERNATIVES = 16
_PLAIN = re.compile(r"[\w.]+")
_SIGNS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?|(?P<repeated>\)?)(?P<repetition>(?:[*+?]|\{\d*,?\d*\})[?+]?)|(?P<bar>\|)"
)


class Patterns:
    """Find the value of the first expression that the end of a name is: the whole name, or what follows a dot.

    Tables that programs write have the names of all layers, and each name would be compared with hundreds of
    expressions: those that are plain names are compared with names of their length alone.

    Args:
        table: The values by expressions.

    Raises:
        ValueError: If an expression is none, or searching it could take very long.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        if len(table) > _MOST_EXPRESSIONS:
            raise ValueError(f"there may be {_MOST_EXPRESSIONS} expressions, got {len(table)}")
        self._values = list(table.values())
        self._plain: defaultdict[int, list[tuple[int, re.Pattern[str]]]] = defaultdict(list)
        self._others: list[tuple[int, re.Pattern[str]]] = []
        for index, text in enumerate(table):
            _check(text)
            try:
                pattern = re.compile(text)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"'{printable(text)}' is no regular expression: {error}") from error
            is_plain = _PLAIN.fullmatch(text) is not None
            (self._plain[len(text)] if is_plain else self._others).append((index, pattern))

    def find(self, name: str) -> Any:
        """Give the value of a name; `None` if it fits no expression."""
        best = len(self._values)
        for start in (0, *(dot + 1 for dot, each in enumerate(name) if each == ".")) if self._values else ():
            for index, pattern in (*self._plain.get(len(name) - start, ()), *self._others):
                if index < best and pattern.fullmatch(name, start):
                    best = index
        return self._values[best] if best < len(self._values) else None


def _check(text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(f"'{printable(text)}' is longer than {_LONGEST} characters")
    signs = list(_SIGNS.finditer(text))
    repetitions = [found for found in signs if found["repetition"]]
    if len(repetitions) > _MOST_REPETITIONS or any(
        found["repeated"] and found["repetition"][0] != "?" for found in repetitions
    ):
        raise ValueError(
            f"'{printable(text)}' could take very long to search: at most {_MOST_REPETITIONS} repetitions are allowed,"
            " and none of a group"
        )
    if sum(found["bar"] is not None for found in signs) > _MOST_ALTERNATIVES:
        raise ValueError(f"'{printable(text)}' has more than {_MOST_ALTERNATIVES} alternatives")
