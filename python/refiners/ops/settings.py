"""The environment variables that force a path: `REFINERS_DISABLE_NATIVE`, `REFINERS_CPU_ISA`, `REFINERS_CACHE_MIB`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

ISAS = ("portable", "avx2", "avx512", "amx")  # in the order of enum CpuIsa, csrc/common/cpu_features.h
OPERATORS = ("attention", "conv2d", "geglu", "group_norm", "linear", "lora_linear", "weighted_sum")
_PREFIX = "REFINERS_"
VARIABLES = (  # all that anything of this project reads: the library, its build, its tests
    "REFINERS_ALL_CASES",
    "REFINERS_BUILD_CUDA",
    "REFINERS_BUILD_NATIVE",
    "REFINERS_CACHE_MIB",
    "REFINERS_CPU_ISA",
    "REFINERS_DISABLE_NATIVE",
    "REFINERS_HUB_PATH",
    "REFINERS_PARITY",
    "REFINERS_PARITY_DIR",
    "REFINERS_PARITY_TABLE",
)


class Settings(NamedTuple):
    """What the environment asks for, and what of it is not understood."""

    disabled: frozenset[str] = frozenset()
    isa: str | None = None
    cache_mib: int | None = None
    problems: tuple[str, ...] = ()


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables; a value that is not understood is named in `problems` and otherwise ignored."""
    problems: list[str] = []
    disabled = {name.strip() for name in environment.get("REFINERS_DISABLE_NATIVE", "").split(",")} - {""}
    if unknown := sorted(disabled - {"all", *OPERATORS}):
        problems.append(f"REFINERS_DISABLE_NATIVE: choose from all, {', '.join(OPERATORS)}; got {', '.join(unknown)}")
    isa = environment.get("REFINERS_CPU_ISA", "").strip() or None
    if isa is not None and isa not in ISAS:
        problems.append(f"REFINERS_CPU_ISA: choose from {', '.join(ISAS)}; got {isa}")
        isa = None
    cache = environment.get("REFINERS_CACHE_MIB", "").strip() or None
    if cache is not None and not cache.isdecimal():
        problems.append(f"REFINERS_CACHE_MIB: give a whole number of MiB, 0 for no cache; got {cache}")
        cache = None
    named = frozenset(OPERATORS) if "all" in disabled else frozenset(disabled) & frozenset(OPERATORS)
    return Settings(named, isa, None if cache is None else int(cache), tuple(problems))


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Name the variables that begin like ours and that nothing reads, each with what may be meant."""
    unknown = sorted(name for name in environment if name.startswith(_PREFIX) and name not in VARIABLES)
    return {name: _advice(name) for name in unknown}


def _advice(name: str) -> str:
    words = {known.removeprefix(_PREFIX): known for known in VARIABLES}  # all begin alike, which makes none alike
    close = get_close_matches(name.removeprefix(_PREFIX), words, n=1)
    hint = f"is {words[close[0]]} meant?" if close else f"there are {', '.join(VARIABLES)}"
    return f"nothing reads it; {hint}"
