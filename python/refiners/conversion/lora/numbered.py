"""Our own files, in which the layers that were adapted are numbered within their chain.

A key such as `SD1UNet.DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1.1.Conv2d.down.weight` names the first layer,
of those that are adapted, of the class `Conv2d`, in the chain `DownBlocks.Chain_2.CLIPLCrossAttention.Chain_1`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

from torch import Size

_MOST_WAYS = 10_000  # that are tried to place the updates of one chain
_NUMBERED = re.compile(r"(\w+?)(?:\.(.+))?\.([1-9][0-9]{0,5})\.(\w+)")


class Numbered(NamedTuple):
    """A name with the number of an adapted layer.

    Attributes:
        root: The class of the network.
        parent: The path of the chain that holds the layer.
        number: Which of the adapted layers of the chain, from 1.
        class_name: The class of the layer.
    """

    root: str
    parent: str
    number: int
    class_name: str

    @classmethod
    def read(cls, name: str) -> Numbered | None:
        """Take a name apart; `None` if it is no such name."""
        found = _NUMBERED.fullmatch(name)
        return None if found is None else cls(found[1], found[2] or "", int(found[3]), found[4])


def place_numbered(
    names: Mapping[Numbered, tuple[int, int]], layers: Mapping[str, Size | None]
) -> dict[Numbered, list[str]]:
    """Find the layers of a network that such names may mean: one where all of a chain are adapted, or sizes tell them.

    Args:
        names: The names in one network, with the input and output size of each update.
        layers: The paths of the layers, with the shapes of their weights where they are known.
    """
    by_parent: defaultdict[str, list[Numbered]] = defaultdict(list)
    for name in sorted(names, key=lambda each: each.number):
        by_parent[name.parent].append(name)
    children: defaultdict[str, list[str]] = defaultdict(list)
    for path in layers:
        parent, _, own = path.rpartition(".")
        if parent in by_parent and own.partition("_")[0] in ("Linear", "Conv2d"):
            children[parent].append(path)
    placed: dict[Numbered, list[str]] = {}
    for parent, group in by_parent.items():
        is_small = math.comb(len(children[parent]), len(group)) <= _MOST_WAYS
        ways = [
            way
            for way in (combinations(children[parent], len(group)) if is_small else ())
            if all(_fits(name, names[name], path, layers[path]) for name, path in zip(group, way))
        ]
        is_counted = [name.number for name in group] == list(range(1, len(group) + 1))
        for index, name in enumerate(group):
            placed[name] = list(dict.fromkeys(way[index] for way in ways)) if is_counted else []
    return placed


def _fits(name: Numbered, sizes: tuple[int, int], path: str, shape: Size | None) -> bool:
    is_class = path.rpartition(".")[2].partition("_")[0] == name.class_name
    return is_class and (shape is None or (shape[1], shape[0]) == sizes)
