"""The places that low-rank updates can be attached to, by names that adapters do not change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.update import LayerUpdate
from refiners.fluxion.layers.chain import generate_unique_names


class Place(NamedTuple):
    """A layer in a tree.

    Attributes:
        layer: The layer.
        parent: The chain that holds it; `None` where an adapter does without the layer that it replaced.
    """

    layer: fl.WeightedModule
    parent: fl.Chain | None

    @property
    def class_names(self) -> set[str]:
        """The classes of all chains above the layer, up to the root of the tree."""
        chains = () if self.parent is None else (self.parent, *self.parent.get_parents())
        return {type(chain).__name__ for chain in chains}


def find_places(root: fl.Chain) -> dict[str, Place]:
    """Find the layers with weights below a chain, in the order of the tree, by their paths without adapters.

    A path is the layer's key in the state dict of the chain as it was before anything was injected into it: where an
    adapter stands, its target is meant, and what else the adapter holds has no place.

    Args:
        root: The chain.
    """
    found: dict[str, Place] = {}
    _collect(root, "", True, found)
    return found


def _collect(chain: fl.Chain, prefix: str, is_present: bool, found: dict[str, Place]) -> None:
    for key, child, parent in _children(chain):
        present = is_present and parent is not None
        if isinstance(child, fl.Chain):
            _collect(child, f"{prefix}{key}.", present, found)
        elif isinstance(child, fl.WeightedModule):
            found[prefix + key] = Place(child, parent if present else None)


def _children(chain: fl.Chain) -> Iterable[tuple[str, fl.Module, fl.Chain | None]]:
    """List the children with their keys and parents, the targets of adapters in the places of these."""
    modules = chain._modules
    if not any(isinstance(child, Adapter) for child in modules.values()):
        return [(key, child, chain) for key, child in modules.items()]
    found = [_behind(child, chain) for child in modules.values()]
    keyed = generate_unique_names([child for child, _ in found])
    return [(key, child, parent) for key, (child, parent) in zip(keyed, found, strict=True)]


def _behind(module: fl.Module, parent: fl.Chain | None) -> tuple[fl.Module, fl.Chain | None]:
    while isinstance(module, Adapter) and not module.is_built_in:
        adapter, target = cast("fl.Chain", module), cast("Adapter[Any]", module).target
        module, parent = target, adapter.find_parent(target)
    return module, parent


def updates_around(place: Place) -> list[LayerUpdate]:
    """List the updates of a layer, those of the innermost adapter first."""
    chains = () if place.parent is None else (place.parent, *place.parent.get_parents())
    adapters = (chain for chain in chains if isinstance(chain, LoraAdapter))  # which are around layers alone
    return [update for adapter in adapters for update in adapter if isinstance(update, LayerUpdate)]
