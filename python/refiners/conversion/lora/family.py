"""The model that a LoRA file is for, told by the names of its layers and by their sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from refiners.conversion.diffusion import Family
from refiners.conversion.lora.keys import Entry
from refiners.conversion.lora.names import LayerNames, Networks
from refiners.conversion.lora.targets import PUBLISHED
from refiners.conversion.tensor_info import TensorInfo

_TEXT_DIMS: Mapping[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
_FROM_TEXT = re.compile(r"Residual_2\.Attention\.Distribute\.Linear_[23]$")  # keys and values of the prompt


class Told(NamedTuple):
    """What a file looks like.

    Attributes:
        family: The model that it is for; `None` where the names fit several, or most of them none.
        networks: The networks of the published model whose names are nearest.
        libraries: Whose names of these are used.
        is_of_several: Whether several published models have its names, and sizes do not tell.
    """

    family: Family | None
    networks: Networks
    libraries: tuple[str, ...]
    is_of_several: bool


def tell_family(entries: Sequence[Entry], infos: Mapping[str, TensorInfo]) -> Told:
    """Compare with the names of the published models; where both have them, sizes tell."""
    found: dict[Family, int] = {}
    libraries: dict[Family, dict[str, None]] = {}
    dims: dict[Family, set[Family | None]] = {}
    for family in PUBLISHED:
        names, roots = _names(family)
        found[family], libraries[family], dims[family] = 0, {}, set()
        for entry in entries:
            known = names.find(entry.name)
            is_numbered = not known and entry.name.partition(".")[0] in roots
            found[family] += is_numbered or bool(known)
            libraries[family].update(dict.fromkeys(["refiners"] if is_numbered else [each.library for each in known]))
            if len(known) == 1 and _FROM_TEXT.search(known[0].path):
                dims[family].update(_TEXT_DIMS.get(width) for width in _widths(entry, infos))
    best = max(found, key=lambda family: found[family])
    by_size = next(iter(dims[best])) if len(dims[best]) == 1 else None
    told: Family | None = by_size
    if len(set(found.values())) > 1:
        told = "sd2" if best == "sd1" and by_size == "sd2" else best
    is_named = found[best] > 0 and 2 * found[best] >= len(entries)  # other models may have a text encoder of ours
    networks = PUBLISHED.get(told or best, PUBLISHED[best])
    return Told(told if is_named else None, networks, tuple(libraries[best]), is_named and told is None)


@cache
def _names(family: Family) -> tuple[LayerNames, frozenset[str]]:
    """Give the names of the layers of a published model, and those with which our own names begin."""
    names = LayerNames(PUBLISHED[family])
    return names, frozenset(root for each in names.roots.values() for root in each)


def _widths(entry: Entry, infos: Mapping[str, TensorInfo]) -> Iterator[int]:
    """Give the width of what a layer receives, by its first matrix."""
    if "down" in entry.keys and len(shape := infos[entry.keys["down"]].shape) > 1:
        yield shape[1]
