"""Who holds the layers that structural copies share."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

if TYPE_CHECKING:
    from refiners.fluxion.layers.chain import Chain

_holders: WeakKeyDictionary[nn.Module, WeakSet[Chain]] = WeakKeyDictionary()


def share(leaves: Iterable[nn.Module], original: Chain, copy: Chain) -> None:
    """Note that two chains hold the same layers."""
    for leaf in leaves:
        if leaf._parameters:
            holders = _holders.get(leaf)
            if holders is None:
                holders = _holders[leaf] = WeakSet()
            holders.update((original, copy))


def is_in_other_trees(leaf: nn.Module, roots: Iterable[nn.Module]) -> bool:
    """Whether a structural copy that is still alive has a layer in common with trees.

    Args:
        leaf: The layer.
        roots: The roots of the trees.
    """
    own = {id(_root_of(root)) for root in roots}
    if not _are_others(leaf, own):
        return False
    gc.collect()  # chains know their parents: a copy that nobody holds lives on until now
    return _are_others(leaf, own)


def _are_others(leaf: nn.Module, own: set[int]) -> bool:
    others = [root for holder in _holders.get(leaf, ()) if id(root := _root_of(holder)) not in own]
    return any(module is leaf for root in others for module in root.modules())


def _root_of(module: nn.Module) -> nn.Module:
    parents: list[Chain] = getattr(module, "get_parents", list)()
    return parents[-1] if parents else module
