"""The updates in a tree, found fast: those who manage sets of them look for them whenever they are asked anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.update import LayerUpdate

MERGED = "_merged_updates"  # where a layer has the updates that are parts of its weights


@dataclass(frozen=True)
class Merged:
    """What the weights of a layer are made of.

    Attributes:
        pristine: The parameters of the layer without updates, by their names.
        updates: The updates in them.
    """

    pristine: dict[str, Any]
    updates: tuple[LayerUpdate, ...]


@dataclass(frozen=True)
class Found:
    """What there is below some chains, in the order of the tree.

    Attributes:
        attached: The updates in the tree.
        layers: The layers that have updates merged.
    """

    attached: list[LayerUpdate]
    layers: list[fl.WeightedModule]

    @property
    def merged(self) -> list[LayerUpdate]:
        """The updates that are merged."""
        return [update for layer in self.layers for update in updates_in(layer)]


def find_updates(roots: Iterable[nn.Module]) -> Found:
    """Find the updates of the layers below some chains, each once.

    It reads the tables of children, in a tenth of the time of torch's walk.
    """
    found = Found([], [])
    seen = set[int]()
    to_do: list[nn.Module] = [*reversed(list(roots))]
    while to_do:
        module = to_do.pop()
        if isinstance(module, LayerUpdate):
            found.attached.append(module)
            continue
        state = module.__dict__
        if MERGED in state and id(module) not in seen:
            seen.add(id(module))
            assert isinstance(module, fl.WeightedModule)
            found.layers.append(module)
        if children := state["_modules"]:
            to_do.extend(reversed(children.values()))
    return found


def updates_in(layer: fl.WeightedModule) -> tuple[LayerUpdate, ...]:
    """Give the updates that are merged into a layer."""
    merged: Merged | None = layer.__dict__.get(MERGED)
    return () if merged is None else merged.updates
