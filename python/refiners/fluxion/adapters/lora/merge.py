"""Updates as parts of the weights of their layers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, device as Device, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.attach import attach_loras
from refiners.fluxion.adapters.lora.places import Place, find_places
from refiners.fluxion.adapters.lora.region import Region
from refiners.fluxion.adapters.lora.search import MERGED, Merged, Places, find_updates, updates_in
from refiners.fluxion.adapters.lora.update import LayerUpdate, Scale
from refiners.fluxion.bulk import collections_paused
from refiners.fluxion.layers.shared import is_in_other_trees

_ORDINARY = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class MergedLoras:
    """Put updates into the weights of their layers, so that they cost nothing, and take them out again.

    A merged weight is made of the pristine one and of all updates that are merged, in float32 at least, and rounded
    once; whatever is merged and taken out meanwhile, in the end the pristine weight is back, bit for bit. A merged
    update is no part of the tree; taken out, it is attached again, after the others of its layer. What is merged is
    known to the layers: all who ask see the same.

    Where an update is made of the weight itself, as DoRA is, all updates of the layer are merged together or none.
    While updates are merged, the weights of their layers are not to be replaced by others: the pristine ones would come
    back. A move or a cast of the model is no such change. Nor are structural copies to be made: they share the layers,
    and what is taken out of these is attached in one tree only.

    Args:
        roots: The chains with the layers.
        keep_on: Where pristine weights are kept (default: on the device of each); `"cpu"` saves memory of a GPU.
    """

    def __init__(self, *roots: fl.Chain, keep_on: Device | str | None = None) -> None:
        self.roots = roots
        self.keep_on = keep_on

    @property
    def updates(self) -> list[LayerUpdate]:
        """The updates that are merged."""
        return find_updates(self.roots).merged

    @property
    def names(self) -> list[str]:
        """The names of the updates that are merged."""
        return list(dict.fromkeys(update.name for update in self.updates))

    def merge(self, names: Iterable[str]) -> None:
        """Put the attached updates of some names into the weights.

        Raises:
            ValueError: If a multiplier is a tensor, a weight is no ordinary one or is shared with something else, an
                update is none of a weight, or one that is made of the weight would stay; nothing was changed.
        """
        wanted = _as_set(names)
        places = Places(self.roots)
        found: list[tuple[LoraAdapter, LayerUpdate]] = []
        before: dict[fl.WeightedModule, tuple[LayerUpdate, ...]] = {}
        after: dict[fl.WeightedModule, tuple[LayerUpdate, ...]] = {}
        for adapter in self._adapters():
            chosen = [update for update in _children(adapter) if update.name in wanted]
            if chosen:
                _check(adapter.target, chosen)
                _check_is_alone(adapter.target, chosen[0].name, places)
                _check_others(adapter.target, [each for each in adapter.lora_layers if each.name not in wanted])
                found += [(adapter, update) for update in chosen]
                before[adapter.target] = updates_in(adapter.target)
                after[adapter.target] = (*after.get(adapter.target, before[adapter.target]), *chosen)
        with self._undone(before, found), collections_paused():
            for layer, updates in after.items():
                self._write(layer, updates)
            for adapter, update in found:
                adapter.remove(update)
                if not _children(adapter):
                    adapter.eject()

    def unmerge(self, names: Iterable[str]) -> None:
        """Take the updates of some names out of the weights, and attach them again.

        Raises:
            ValueError: If a layer is no part of the model any more, or an update that is made of the weight would be
                separated from the others; nothing was changed.
        """
        wanted = _as_set(names)
        places = {id(place.layer): place for root in self.roots for place in find_places(root).values()}
        before: dict[fl.WeightedModule, tuple[LayerUpdate, ...]] = {}
        for layer in self._layers():
            updates = updates_in(layer)
            if any(update.name in wanted for update in updates):
                before[layer] = updates
                if id(layer) not in places or places[id(layer)].parent is None:
                    raise ValueError(f"the layer {layer} has updates merged and is in no chain any more")
                if any(update.name not in wanted for update in updates):
                    _check_others(layer, [update for update in updates if update.name in wanted])
        dtypes = {layer: layer.__dict__[MERGED].pristine["weight"].dtype for layer in before}
        with self._undone(before):
            for layer, updates in before.items():
                self._write(layer, tuple(update for update in updates if update.name not in wanted))
            out = [(layer, update) for layer, each in before.items() for update in each if update.name in wanted]
            for layer, update in out:
                is_cast = layer.dtype != dtypes[layer]  # master weights of training stay what they are
                update.to(device=layer.device, dtype=layer.dtype if is_cast else None).train(layer.training)
            attach_loras(_placed(out, places))

    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Change the multipliers of updates that are merged, and the weights with them.

        Raises:
            ValueError: If a multiplier is not one for all samples and places; nothing was changed.
        """
        changed = [update for update in self.updates if update.name in scales]
        for update in changed:
            check_mergeable(update.name, scales[update.name])
        self._rescale([(update, scales[update.name], update.factor) for update in changed])

    def set_factors(self, factors: Mapping[LayerUpdate, float]) -> None:
        """Change the second multipliers of updates; those that are merged, and their weights with them, are."""
        self._rescale([(update, update.scale, factors[update]) for update in self.updates if update in factors])

    def _rescale(self, changes: Sequence[tuple[LayerUpdate, Scale, float]]) -> None:
        changed = {update for update, _, _ in changes}
        layers = [layer for layer in self._layers() if any(update in changed for update in updates_in(layer))]
        before = [(update, update.scale, update.factor) for update, _, _ in changes]
        try:
            _set(changes)
            for layer in layers:
                self._write(layer, updates_in(layer))
        except BaseException:
            _set(before)
            for layer in layers:
                self._write(layer, updates_in(layer))
            raise

    def _layers(self) -> list[fl.WeightedModule]:
        return find_updates(self.roots).layers

    def _adapters(self) -> Iterator[LoraAdapter]:
        yield from {
            id(each.parent): each.parent
            for each in find_updates(self.roots).attached
            if isinstance(each.parent, LoraAdapter)
        }.values()

    @contextmanager
    def _undone(
        self,
        before: Mapping[fl.WeightedModule, tuple[LayerUpdate, ...]],
        attached: Iterable[tuple[LoraAdapter, LayerUpdate]] = (),
    ) -> Generator[None]:
        """Give layers their weights back, and adapters their updates, if what is done within fails."""
        try:
            yield
        except BaseException:
            for layer, updates in before.items():
                self._write(layer, updates)
            places = {id(place.layer): place for root in self.roots for place in find_places(root).values()}
            attach_loras(_placed([(a.target, update) for a, update in attached if update.parent is None], places))
            raise

    @torch.no_grad()
    def _write(self, layer: fl.WeightedModule, updates: tuple[LayerUpdate, ...]) -> None:
        """Make the weights of a layer of its pristine ones and some updates: computed first, then written."""
        parameters = dict(layer.named_parameters(recurse=False))
        merged: Merged | None = layer.__dict__.get(MERGED)
        if merged is None:
            pristine = {name: p.detach().to(self.keep_on or p.device, copy=True) for name, p in parameters.items()}
        else:
            pristine = merged.pristine
        values = _values(layer, {name: value.to(layer.device) for name, value in pristine.items()}, updates)
        for name, parameter in parameters.items():
            parameter.copy_(values.get(name, pristine[name]))
        if updates:
            layer.__dict__[MERGED] = Merged(pristine, updates)
        else:
            layer.__dict__.pop(MERGED, None)


def _set(multipliers: Iterable[tuple[LayerUpdate, Scale, float]]) -> None:
    for update, scale, factor in multipliers:
        update.scale, update.factor = scale, factor


def _placed(
    updates: Iterable[tuple[fl.WeightedModule, LayerUpdate]], places: Mapping[int, Place]
) -> Iterator[tuple[LayerUpdate, Place]]:
    """Give updates with the places of their layers, which move into an adapter when the first is attached."""
    parents: dict[int, fl.Chain | None] = {}
    for layer, update in updates:
        yield update, Place(layer, parents.get(id(layer), places[id(layer)].parent))
        parents[id(layer)] = update.parent


def _values(
    layer: fl.WeightedModule, pristine: Mapping[str, Tensor], updates: Iterable[LayerUpdate]
) -> dict[str, Tensor]:
    """Compute the parameters of a layer that updates change, from its pristine ones."""
    dtype = torch.float64 if layer.dtype == torch.float64 else torch.float32
    wide = {name: value.to(dtype) for name, value in pristine.items()}
    values: dict[str, Tensor] = {}
    with torch.autocast(layer.device.type, enabled=False):
        for update in updates:
            update.to(device=layer.device)
            for name, change in update.differences(wide).items():
                if name not in wide or change.shape != wide[name].shape:
                    raise ValueError(f"LoRA {update.name!r} cannot be merged: it has no {name} for {layer}")
                values[name] = torch.add(
                    values.get(name, wide[name]), change, alpha=float(cast("float", update.total_scale))
                )
    return values


def _children(adapter: LoraAdapter) -> list[LayerUpdate]:
    return [child for child in adapter if isinstance(child, LayerUpdate)]


def _as_set(names: Iterable[str]) -> set[str]:
    return {names} if isinstance(names, str) else set(names)


def check_mergeable(name: str, scale: Scale) -> None:
    """Raise `ValueError` if a multiplier is none for all samples and places alike."""
    if isinstance(scale, Region):
        raise ValueError(f"LoRA {name!r} has a multiplier for each place, {scale}: it cannot be merged")
    if isinstance(scale, Tensor) and scale.ndim > 0:
        raise ValueError(
            f"LoRA {name!r} has a multiplier for each sample, of shape {tuple(scale.shape)}: it cannot be merged"
        )


def _check(layer: fl.WeightedModule, updates: Iterable[LayerUpdate]) -> None:
    for update in updates:
        check_mergeable(update.name, update.total_scale)
        update.check_mergeable(layer)
        for name, parameter in layer.named_parameters(recurse=False):
            if type(parameter) is not nn.Parameter or parameter.dtype not in _ORDINARY:
                raise ValueError(
                    f"LoRA {update.name!r} cannot be merged: {name} of {layer} is a {type(parameter).__name__} of"
                    f" {parameter.dtype}, expected one of float16, bfloat16, float32 or float64"
                )


def _check_is_alone(layer: fl.WeightedModule, name: str, places: Places) -> None:
    """Raise `ValueError` if a change of the weights of a layer would change something else."""
    where = ""
    if places.counts[id(layer)] > 1:
        where = "is in several places of the model"
    elif any(places.counts[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
        where = "shares a weight with another one"
    elif is_in_other_trees(layer, places.roots):
        where = "is also that of a structural copy"
    if where:
        raise ValueError(f"LoRA {name!r} cannot be merged: the layer {layer} {where}, which would change as well")


def _check_others(layer: fl.WeightedModule, others: Iterable[LayerUpdate]) -> None:
    """Raise if updates that stay attached, or come to be, while others are merged, are made of the weight."""
    for other in others:
        if other.uses_weight:
            raise ValueError(
                f"LoRA {other.name!r} is made of the weight of {layer}: merge or unmerge it together with the others"
            )
