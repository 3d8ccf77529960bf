"""What the options of all commands have in common: checked at once, a mistake told in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that explains a mistake in one line, with what would be valid, and ends with code 2."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; the options are " + ", ".join(name for name in self._option_string_actions if name[1] == "-")
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def natural(least: int, most: int | None = None) -> Callable[[str], int]:
    """Give a reader of whole numbers from a least one, up to a largest one if there is any."""
    valid = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"expected a whole number {valid}, got {text!r}")
        return int(text)

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
