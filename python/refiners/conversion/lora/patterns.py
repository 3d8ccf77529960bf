"""Tables of PEFT, in which the ends of names of layers are regular expressions."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

from refiners.conversion.lora.expressions import LONGEST_NAME, check_expression, simplified, steps_of
from refiners.fluxion.printable import printable

_MOST_EXPRESSIONS = 10_000
_MOST_STEPS = 30_000_000  # of one expression in one name: about a second
_MOST_SECONDS = 5.0  # of the processor, for all names of a file; tables that people write take some milliseconds
_PLAIN = re.compile(r"\^?[\w.]+")


class Patience:
    """The time that the expressions of a file may take."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._begun = 0.0

    def __enter__(self) -> Patience:
        self._begun = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self._spent += time.thread_time() - self._begun

    def check(self) -> None:
        """Raise `ValueError` if it is over."""
        if self._spent + time.thread_time() - self._begun > _MOST_SECONDS:
            raise ValueError(f"the expressions take too long to search: more than {_MOST_SECONDS:g} seconds")


class _Expression(NamedTuple):
    number: int
    pattern: re.Pattern[str]
    is_of_beginning: bool
    repetitions: int
    ways: int


class Patterns:
    """Find the value of the first expression that the end of a name is: the whole name, or what follows a dot.

    `^` is the beginning of the name. Tables that programs write have the names of all layers, and each name would be
    compared with hundreds of expressions: those that are plain names are compared with names of their length alone.

    Args:
        table: The values by expressions.
        patience: The time that all the expressions of a file may take together.

    Raises:
        ValueError: If an expression is none, or searching it could take very long.
    """

    def __init__(self, table: Mapping[str, Any], patience: Patience | None = None) -> None:
        if len(table) > _MOST_EXPRESSIONS:
            raise ValueError(f"there may be {_MOST_EXPRESSIONS} expressions, got {len(table)}")
        self._values = list(table.values())
        self._patience = patience or Patience()
        self._plain: defaultdict[int, list[tuple[int, re.Pattern[str]]]] = defaultdict(list)
        self._others: list[_Expression] = []
        with self._patience:
            for index, text in enumerate(table):
                self._patience.check()
                self._add(index, simplified(text), text)

    def _add(self, index: int, text: str, written: str) -> None:
        check_expression(text, written)
        try:
            pattern = re.compile(text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"'{printable(written)}' is no regular expression: {error}") from error
        if _PLAIN.fullmatch(text):
            self._plain[len(text.removeprefix("^"))].append((index, pattern))
            return
        # What begins with anything, or with the beginning, need not be looked for after each dot.
        is_of_beginning = text.startswith((".*", "^")) and "|" not in text
        self._others.append(_Expression(index, pattern, is_of_beginning, *steps_of(text)))

    def find(self, name: str) -> Any:
        """Give the value of a name; `None` if it fits no expression.

        Raises:
            ValueError: If it takes too long.
        """
        best = len(self._values)
        starts = [0, *(dot + 1 for dot, each in enumerate(name) if each == ".")] if self._values else []
        for start in starts:
            for index, pattern in self._plain.get(len(name) - start, ()):
                if index < best and pattern.fullmatch(name, start):
                    best = index
        with self._patience:
            for each in self._others:
                if each.number > best:
                    break
                if self._fits(each, name, starts):
                    best = each.number
                    break
        return self._values[best] if best < len(self._values) else None

    def _fits(self, expression: _Expression, name: str, starts: list[int]) -> bool:
        self._patience.check()
        if len(name) > LONGEST_NAME and expression.repetitions:
            return False  # no layer has such a name
        starts = starts[:1] if expression.is_of_beginning else starts
        if _steps(expression, len(name)) * len(starts) > _MOST_STEPS:
            raise ValueError(
                f"'{printable(expression.pattern.pattern)}' takes too long to search in a name of {len(name)}"
                " characters"
            )
        return any(expression.pattern.fullmatch(name, start) for start in starts)


def _steps(expression: _Expression, length: int) -> int:
    """Bound the ways to cut a name into what is repeated, times those to choose."""
    steps = expression.ways
    for number in range(1, expression.repetitions + 1):
        steps = steps * (length + number) // number
    return steps
