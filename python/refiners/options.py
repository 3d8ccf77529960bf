"""What the options of all commands have in common: checked at once, a mistake told in one line."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


def complain(command: str, message: str) -> int:
    """Print in one line why a command stops, and give its exit code."""
    print(f"python -m refiners {command}: error: {message}", file=sys.stderr)
    return 2


def fold(message: str, hint: str = "") -> str:
    """Fold a message of several lines: the first one, the titles of the lists that follow, and a hint to the rest."""
    first, *rest = message.splitlines() or [""]
    if not rest:
        return first
    titles = ", ".join(line.removesuffix(":") for line in rest if re.match(r"\S.*:$", line))
    first = f"{first} {titles}" if titles else first.removesuffix(":")
    return f"{first}; {hint}" if hint else first


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that explains a mistake in one line, with what would be valid, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; the options are " + ", ".join(name for name in self._option_string_actions if name[1] == "-")
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


MOST = 2**63 - 1  # what torch takes for a size
MOST_SEED = 2**64 - 1  # and for a seed


def natural(least: int, most: int = MOST) -> Callable[[str], int]:
    """Give a reader of whole numbers from a least one to a greatest one."""

    def read(text: str) -> int:
        shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
        try:
            value = int(text) if text.isdecimal() else least - 1
        except ValueError:  # Python refuses to read thousands of digits
            value = most + 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {shown}")
        if value > most:
            raise argparse.ArgumentTypeError(f"expected a whole number of at most {most}, got {shown}")
        return value

    return read


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """Give a reader of finite numbers from a least one, up to a largest one if there is any."""
    valid = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"expected a number {valid}, got {text!r}")
        return value

    return read


def existing_file(text: str) -> Path:
    """Read the path of a file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def new_file(text: str) -> Path:
    """Read the path of a file that can be written: known before a long run whose result goes there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: it is a folder")
    if not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: there is no folder {path.resolve().parent}")
    return path
