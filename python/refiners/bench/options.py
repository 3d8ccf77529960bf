"""The values that options take: checked at once, a mistake told in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable

import torch

from refiners.options import natural


def some_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Give a reader of comma-separated choices."""
    valid = list(choices)

    def read(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(valid):
            raise argparse.ArgumentTypeError(f"choose any of {', '.join(valid)}; got '{text}'")
        return list(dict.fromkeys(names))

    return read


def some_devices(text: str) -> list[str]:
    """Read comma-separated devices that are here."""
    if "cuda" in text.split(",") and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("there is no CUDA device here, or torch was built without CUDA; choose cpu")
    return some_of(("cpu", "cuda"))(text)


def positive_integers(text: str) -> list[int]:
    """Read whole numbers above 0, separated by commas."""
    return [natural(1)(part) for part in text.split(",")]


def positive_number(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return value
