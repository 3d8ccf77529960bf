"""The updates in a tree, found fast: those who manage sets of them look for them whenever they are asked anything."""

from __future__ import annotations

from collections import Counter
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
    """Find the updates of the layers below some chains, each once, also where an adapter does without its target.

    It reads the tables of children, in a tenth of the time of torch's walk.
    """
    found = Found([], [])
    seen = set[int]()
    to_do: list[nn.Module] = [*reversed(list(roots))]
    while to_do:
        module = to_do.pop()
        if isinstance(module, LayerUpdate):
            if id(module) not in seen:
                seen.add(id(module))
                found.attached.append(module)
            continue
        state = module.__dict__
        if MERGED in state and id(module) not in seen:
            seen.add(id(module))
            assert isinstance(module, fl.WeightedModule)
            found.layers.append(module)
        if "_target" in state and (left_out := _left_out(module)) is not None:
            to_do.append(left_out)
        if children := state["_modules"]:
            to_do.extend(reversed(children.values()))
    return found


class Places:
    """In how many places the modules and parameters below some chains are.

    Attributes:
        counts: The number of places of each module, and of modules of each parameter, by `id`.
        roots: The chains, and the targets that adapters below them do without.
    """

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self.counts: Counter[int] = Counter()
        self.roots = list(roots)
        to_do = list(self.roots)
        while to_do:
            module = to_do.pop()
            state = module.__dict__
            self.counts[id(module)] += 1
            if self.counts[id(module)] == 1:
                self.counts.update(id(each) for each in state["_parameters"].values() if each is not None)
                to_do.extend(state["_modules"].values())
                if "_target" in state and (left_out := _left_out(module)) is not None:
                    self.roots.append(left_out)


def _left_out(adapter: nn.Module) -> nn.Module | None:
    """Give the target of an adapter that does without it."""
    target = adapter.__dict__["_target"][0]
    for child in adapter.__dict__["_modules"].values():  # as a rule it is among them
        if child is target:
            return None
    if not isinstance(adapter, fl.Chain) or adapter.find_parent(target) is not None:
        return None
    return target


def updates_in(layer: fl.WeightedModule) -> tuple[LayerUpdate, ...]:
    """Give the updates that are merged into a layer."""
    merged: Merged | None = layer.__dict__.get(MERGED)
    return () if merged is None else merged.updates
