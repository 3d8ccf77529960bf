"""Attaching low-rank updates to their layers, whole sets or none: by shape and order, or to layers that are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora, Lora
from refiners.fluxion.adapters.lora.places import Place
from refiners.fluxion.adapters.lora.search import MERGED
from refiners.fluxion.adapters.lora.update import LayerUpdate
from refiners.fluxion.bulk import collections_paused


class _Slot:
    """A layer that updates can be attached to."""

    __slots__ = ("adapter", "layer", "names", "parent", "path")

    def __init__(self, layer: fl.WeightedModule, parent: fl.Chain) -> None:
        self.layer = layer
        self.parent = parent
        self.path = ""  # known where it is asked for
        self.adapter = parent if isinstance(parent, LoraAdapter) else None
        self.names = set(self.adapter.names) if self.adapter is not None else set[str]()

    def accepts(self, lora: Lora[Any]) -> bool:
        """Whether the layer is of the kind and shape of the update, and has none of its name."""
        is_free = isinstance(self.layer, type(lora.up)) and lora.name not in self.names
        return is_free and lora.is_compatible(self.layer)

    def attach(self, lora: LayerUpdate) -> LoraAdapter:
        """Add the update to the adapter of the layer, or make one, which is not injected yet."""
        if isinstance(lora, Conv2dLora) and isinstance(self.layer, fl.Conv2d):
            # The layer and its update must give results of one size.
            lora.down.stride = self.layer.stride
            lora.stride = (self.layer.stride[0], lora.stride[1])
        if lora.uses_weight and MERGED in self.layer.__dict__:
            raise ValueError(
                f"LoRA {lora.name!r} is made of the weight of {self.layer}, in which others are merged: unmerge them"
            )
        self.names.add(lora.name)
        if self.adapter is not None:
            self.adapter.add_lora(lora)
            return self.adapter
        self.adapter = LoraAdapter(self.layer, lora)
        return self.adapter


def _walk_slots(target: fl.Chain, include: list[str] | None, exclude: list[str] | None) -> Iterator[_Slot]:
    """Yield the layers below a chain in the order of `walk`, with an included and without an excluded ancestor."""
    included, excluded = set(include or ()), set(exclude or ())
    above = {type(chain).__name__ for chain in target.get_parents()}
    if above & excluded:
        return
    to_do: list[tuple[fl.Module, fl.Chain | None, bool]] = [(target, None, include is None or bool(above & included))]
    while to_do:
        module, parent, is_included = to_do.pop()
        if isinstance(module, fl.Chain):
            name = type(module).__name__
            if name not in excluded and not isinstance(module, LayerUpdate):
                is_included = is_included or name in included
                to_do.extend([(child, module, is_included) for child in reversed(module._modules.values())])
        elif is_included and parent is not None and isinstance(module, fl.WeightedModule):
            yield _Slot(module, parent)


def _shape_of(module: fl.Module) -> Hashable:
    """Return what a layer and its update have in common; `None` for updates that decide in a way of their own."""
    if isinstance(module, fl.Linear) or type(module) is LinearLora:
        return fl.Linear, module.in_features, module.out_features
    if isinstance(module, fl.Conv2d) or type(module) is Conv2dLora:
        return fl.Conv2d, module.in_channels, module.out_channels
    return None


class _Slots:
    """The free layers of a tree, found in one walk: by shape, and in the order of the tree within a shape."""

    def __init__(self, target: fl.Chain, include: list[str] | None, exclude: list[str] | None) -> None:
        self.all = list(_walk_slots(target, include, exclude))
        self.by_shape: defaultdict[Hashable, list[_Slot]] = defaultdict(list)
        for slot in self.all:
            self.by_shape[_shape_of(slot.layer)].append(slot)
        self.next_free: defaultdict[tuple[Hashable, str], int] = defaultdict(int)

    def take(self, lora: Lora[Any]) -> _Slot | None:
        """Return the first layer of the shape of an update that has none of its name, and pass over it from then on."""
        shape = _shape_of(lora)
        if shape is None:
            return next((slot for slot in self.all if slot.accepts(lora)), None)
        slots = self.by_shape[shape]
        key = shape, lora.name
        for index in range(self.next_free[key], len(slots)):
            if lora.name not in slots[index].names:
                self.next_free[key] = index + 1
                return slots[index]
        self.next_free[key] = len(slots)
        return None


def attach_first(
    lora: Lora[Any], target: fl.Chain, include: list[str] | None, exclude: list[str] | None
) -> tuple[LoraAdapter, fl.Chain | None] | None:
    """Attach one update to the first free layer that it fits; see `Lora.auto_attach`."""
    for slot in _walk_slots(target, include, exclude):
        if slot.accepts(lora):
            parent = None if slot.adapter is not None else slot.parent
            return slot.attach(lora), parent
    return None


def auto_attach_loras(
    loras: dict[str, Lora[Any]],
    target: fl.Chain,
    /,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    sanity_check: bool = True,
    debug_map: list[tuple[str, str]] | None = None,
) -> list[str]:
    """Attach updates to the layers below a chain: the n-th of a shape goes to the n-th free layer of that shape.

    Keys play no part, so the updates must come in the order of the tree. One walk serves the whole set.

    Args:
        loras: The updates by key.
        target: Where to look for layers.
        include: If given, only layers with an ancestor of one of these class names.
        exclude: No layers with an ancestor of one of these class names.
        sanity_check: Whether each update must find a layer, and each layer of a shape an update.
        debug_map: Extended with the key and the path of the layer (or of its adapter, if it had one) of each update, as
            the tree was before.

    Returns:
        The keys that found no layer.

    Raises:
        ValueError: If the sanity check fails; the tree is as it was.
    """
    attached: list[_Attachment] = []
    with collections_paused():
        slots = _Slots(target, include, exclude)
        if debug_map is not None:  # attaching numbers the layers anew
            for slot in slots.all:
                slot.path = slot.layer.get_path(slot.parent)
        try:
            failed = [key for key, lora in loras.items() if not _attach(key, lora, slots, attached, debug_map)]
            if sanity_check:
                _check_one_to_one(loras, slots, failed)
        except BaseException:
            _detach(attached)
            raise
    return failed


def attach_loras(loras: Iterable[tuple[LayerUpdate, Place]]) -> None:
    """Attach updates to layers that are known; `find_places` knows them.

    Args:
        loras: The updates, each with its place.

    Raises:
        ValueError: If a layer is in no chain, or an update is not for a layer of its kind and shape.
        AssertionError: If a layer has an update of that name. In either case the tree is as it was.
    """
    attached: list[_Attachment] = []
    with collections_paused():
        try:
            for lora, place in loras:
                if place.parent is None or not lora.is_compatible(place.layer):
                    raise ValueError(f"loras: the update {lora} does not fit the layer {place.layer}")
                attached.append(_attach_to(_Slot(place.layer, place.parent), lora))
        except BaseException:
            _detach(attached)
            raise


class _Attachment(NamedTuple):
    lora: LayerUpdate
    adapter: LoraAdapter
    is_new: bool  # the adapter was made for this update
    strides: tuple[Any, Any] | None  # of a convolution before it was attached


def _attach(
    key: str,
    lora: Lora[Any],
    slots: _Slots,
    attached: list[_Attachment],
    debug_map: list[tuple[str, str]] | None,
) -> bool:
    slot = slots.take(lora)
    if slot is None:
        return False
    if debug_map is not None:
        debug_map.append((key, slot.path if slot.adapter is None else slot.adapter.get_path()))
    attached.append(_attach_to(slot, lora))
    return True


def _attach_to(slot: _Slot, lora: LayerUpdate) -> _Attachment:
    is_new = slot.adapter is None
    strides = (lora.stride, lora.down.stride) if isinstance(lora, Conv2dLora) else None
    adapter = slot.attach(lora)
    if is_new:
        adapter.inject(slot.parent)
    return _Attachment(lora, adapter, is_new, strides)


def _check_one_to_one(loras: dict[str, Lora[Any]], slots: _Slots, failed: list[str]) -> None:
    total = len(loras)
    if failed:
        raise ValueError(
            f"sanity check failed: {total - len(failed)} / {total} LoRA layers attached, {len(failed)} failed"
        )
    twice = sum(slots.take(lora) is not None for lora in loras.values())
    if twice:
        raise ValueError(f"sanity check failed: {twice} / {total} LoRA layers attached twice, {total - twice} skipped")


def _detach(attached: list[_Attachment]) -> None:
    for lora, adapter, is_new, strides in reversed(attached):
        if is_new:
            adapter.eject()
        adapter.remove(lora)
        if isinstance(lora, Conv2dLora) and strides is not None:
            lora.stride, lora.down.stride = strides
