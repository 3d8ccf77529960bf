"""Print what building needs besides torch, one requirement a line, from pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
    requirements: list[str] = tomllib.load(file)["build-system"]["requires"]
print(*(r for r in requirements if not r.startswith("torch")), sep="\n")
