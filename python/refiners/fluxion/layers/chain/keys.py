"""The keys of a chain's children: the class name, numbered from 1 where it occurs more than once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from refiners.fluxion.layers.module import Module


def generate_unique_names(modules: Iterable[Module]) -> dict[str, Module]:
    """Map keys to modules: `Linear_1`, `ReLU`, `Linear_2` for two linears around an activation."""
    modules = tuple(modules)
    names = [type(module).__name__ for module in modules]
    if len(set(names)) == len(names):
        return dict(zip(names, modules))
    total: dict[str, int] = {}
    for name in names:
        total[name] = total.get(name, 0) + 1
    numbers = dict.fromkeys(total, 0)
    keyed: dict[str, Module] = {}
    for name, module in zip(names, modules):
        if total[name] > 1:
            numbers[name] += 1
            name = f"{name}_{numbers[name]}"
        keyed[name] = module
    return keyed


def appended(keyed: Mapping[str, Module], module: Module) -> dict[str, Module]:
    """Return the keys with one more module at the end, as `generate_unique_names` gives them.

    The third and later modules of a name change no key before them: they cost one copy of the table and a few lookups.
    """
    name = type(module).__name__
    if name in keyed:
        return generate_unique_names((*keyed.values(), module))
    result = dict(keyed)
    result[f"{name}_{_last_number(keyed, name) + 1}" if f"{name}_1" in keyed else name] = module
    return result


def _last_number(keyed: Mapping[str, Module], name: str) -> int:
    low, high = 1, 2
    while f"{name}_{high}" in keyed:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if f"{name}_{middle}" in keyed else (low, middle)
    return low
