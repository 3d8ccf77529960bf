"""The keys of a chain's children: the class name, numbered from 1 where it occurs more than once.

A class whose name is the key of another child, `Linear_1` beside two `Linear`, is numbered even if alone: `Linear_1_1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from refiners.fluxion.layers.module import Module


def generate_unique_names(modules: Iterable[Module]) -> dict[str, Module]:
    """Map keys to modules: `Linear_1`, `ReLU`, `Linear_2` for two linears around an activation."""
    modules = tuple(modules)
    return dict(zip(_keys_of(tuple([type(module).__name__ for module in modules])), modules))


@lru_cache(maxsize=1024)
def _keys_of(names: tuple[str, ...]) -> Sequence[str]:
    """Number the names; a model has thousands of chains, and few sequences of classes."""
    keys: Sequence[str] = names
    numbers: dict[str, int] = {}
    # The names that occur twice are numbered; then those, if any, that are the key of a numbered child; and so on.
    while len(set(keys)) < len(names):
        numbers = dict.fromkeys((*numbers, *_repeated(keys)), 0)
        numbered: list[str] = []
        for name in names:
            if name in numbers:
                numbers[name] += 1
                name = f"{name}_{numbers[name]}"
            numbered.append(name)
        keys = numbered
    return keys


def _repeated(keys: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    repeated: list[str] = []
    for key in keys:
        if key in seen:
            repeated.append(key)
        else:
            seen.add(key)
    return repeated


def appended(keyed: Mapping[str, Module], module: Module) -> dict[str, Module]:
    """Return the keys with one more module at the end, as `generate_unique_names` gives them.

    The third and later modules of a name change no key before them: they cost one copy of the table and a few lookups.
    """
    name = type(module).__name__
    number = _last_number(keyed, name)
    key = f"{name}_{number + 1}" if number else name
    if key in keyed:
        return generate_unique_names((*keyed.values(), module))
    return {**keyed, key: module}


def popped(keyed: Mapping[str, Module], index: int) -> dict[str, Module]:
    """Return the keys without the module at an index, as `generate_unique_names` gives them.

    The last module changes no key before it, and costs one copy of the table, unless it is the second of its name or
    its key had been the name of another.
    """
    kept = dict(keyed)
    if index not in (-1, len(keyed) - 1):
        modules = list(keyed.values())
        del modules[index]
        return generate_unique_names(modules)
    key, module = kept.popitem()
    name = type(module).__name__
    if key == name or (key not in (f"{name}_1", f"{name}_2") and f"{key}_1" not in kept):
        return kept
    return generate_unique_names(kept.values())


def _last_number(keyed: Mapping[str, Module], name: str) -> int:
    """Return how many modules have the name and a number; by bisection, as their numbers leave none out."""

    def has(number: int) -> bool:
        module = keyed.get(f"{name}_{number}")
        return module is not None and type(module).__name__ == name

    if not has(1):
        return 0
    low, high = 1, 2
    while has(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if has(middle) else (low, middle)
    return low
