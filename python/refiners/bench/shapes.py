"""The linear layers of the models, from tables that a script derives from the shapes of their weights."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files

MODELS = ("sd15", "sdxl")


@dataclass(frozen=True)
class LinearShape:
    """One problem, rows x in -> out, and how many layers of the model pose it."""

    model: str
    layers: str
    rows: int
    in_features: int
    out_features: int
    bias: bool
    count: int

    def __str__(self) -> str:
        return f"{self.model} {self.rows}x{self.in_features}→{self.out_features}{'+b' * self.bias}"


def load_shapes(model: str) -> list[LinearShape]:
    """Read the table of a model.

    Raises:
        ValueError: If there is no table for it.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model}")
    text = (files("refiners.bench") / "shapes" / f"{model}.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [
        LinearShape(
            row["model"],
            row["layers"],
            int(row["rows"]),
            int(row["in_features"]),
            int(row["out_features"]),
            row["bias"] == "1",
            int(row["count"]),
        )
        for row in rows
    ]


def limit_rows(shapes: Iterable[LinearShape], max_rows: int) -> list[LinearShape]:
    """Give the same shapes with at most `max_rows` rows; equal ones become one."""
    counts: dict[LinearShape, int] = {}
    for shape in shapes:
        limited = replace(shape, rows=min(shape.rows, max_rows), count=0)
        counts[limited] = counts.get(limited, 0) + shape.count
    return [replace(shape, count=count) for shape, count in counts.items()]
