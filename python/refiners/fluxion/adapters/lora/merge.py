"""Updates as parts of the weights of their layers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, device as Device, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.attach import attach_loras
from refiners.fluxion.adapters.lora.bulk import collections_paused
from refiners.fluxion.adapters.lora.places import Place, find_places
from refiners.fluxion.adapters.lora.update import LayerUpdate


@dataclass
class _Layer:
    """A layer with updates in its weights."""

    layer: fl.WeightedModule
    pristine: dict[str, Tensor]
    updates: list[LayerUpdate] = field(default_factory=list[LayerUpdate])


class MergedLoras:
    """Put updates into the weights of their layers, so that they cost nothing, and take them out again.

    A merged weight is made of the pristine one and of all updates that are merged, in float32 at least, and rounded
    once; whatever is merged and taken out meanwhile, in the end the pristine weight is back, bit for bit. A merged
    update is no part of the tree: it comes back where it was when it is taken out.

    Where an update is made of the weight itself, as DoRA is, all updates of the layer are merged together or none.
    While updates are merged, the weights of their layers are not to be replaced by others: the pristine ones would come
    back. A move or a cast of the model is no such change.

    Args:
        roots: The chains with the layers.
        keep_on: Where pristine weights are kept (default: on the device of each); `"cpu"` saves memory of a GPU.
    """

    def __init__(self, *roots: fl.Chain, keep_on: Device | str | None = None) -> None:
        self.roots = roots
        self.keep_on = keep_on
        self._layers: dict[int, _Layer] = {}

    @property
    def names(self) -> list[str]:
        """The names of the updates that are merged."""
        return list(dict.fromkeys(update.name for each in self._layers.values() for update in each.updates))

    @property
    def updates(self) -> list[LayerUpdate]:
        """The updates that are merged."""
        return [update for each in self._layers.values() for update in each.updates]

    def merge(self, names: Collection[str]) -> None:
        """Put the attached updates of some names into the weights.

        Raises:
            ValueError: If a multiplier is a tensor, a weight is no ordinary one, an update is none of a weight, or one
                that is made of the weight would stay; nothing was changed.
        """
        found = [(adapter, update) for adapter, update in self._attached() if update.name in names]
        for adapter, update in found:
            _check(adapter.target, update)
            _check_others(adapter, names)
        try:
            with collections_paused(), torch.no_grad():
                for adapter, update in found:
                    layer = adapter.target
                    entry = self._layers.setdefault(id(layer), _Layer(layer, self._copy(layer)))
                    entry.updates.append(update)
                    adapter.remove(update)
                    if not any(isinstance(child, LayerUpdate) for child in adapter):
                        adapter.eject()
                self._write({id(adapter.target) for adapter, _ in found})
        except BaseException:
            self._take_out([update for _, update in found])
            raise

    def unmerge(self, names: Collection[str]) -> None:
        """Take the updates of some names out of the weights, and attach them again.

        Raises:
            ValueError: If a layer is no part of the model any more; nothing was changed.
        """
        self._take_out([update for update in self.updates if update.name in names])

    def _take_out(self, updates: list[LayerUpdate]) -> None:
        places = {id(place.layer): place for root in self.roots for place in find_places(root).values()}
        attached: list[tuple[LayerUpdate, Place]] = []
        changed: dict[int, _Layer] = {}
        for key, each in self._layers.items():
            out = [update for update in each.updates if any(update is one for one in updates)]
            if out and (key not in places or places[key].parent is None):
                raise ValueError(f"the layer {each.layer} has updates merged and is no part of the model any more")
            if out:
                attached += [(update, places[key]) for update in out]
                changed[key] = each
        attach_loras(attached)
        for each in changed.values():
            each.updates = [update for update in each.updates if not any(update is one for one in updates)]
        with torch.no_grad():
            self._write(changed)
        self._layers = {key: each for key, each in self._layers.items() if each.updates}

    def refresh(self, names: Collection[str]) -> None:
        """Make the weights with updates of some names anew, after a change of their multipliers or matrices."""
        for update in self.updates:
            if update.name in names:
                check_mergeable(update.name, update.scale)
        with torch.no_grad():
            self._write({key for key, each in self._layers.items() if any(one.name in names for one in each.updates)})

    def _attached(self) -> Iterator[tuple[LoraAdapter, LayerUpdate]]:
        for root in self.roots:
            for adapter in list(root.layers(LoraAdapter, recurse=True)):
                for update in [child for child in adapter if isinstance(child, LayerUpdate)]:
                    yield adapter, update

    def _copy(self, layer: fl.WeightedModule) -> dict[str, Tensor]:
        parameters = layer.named_parameters(recurse=False)
        return {name: value.detach().to(self.keep_on or value.device, copy=True) for name, value in parameters}

    def _write(self, keys: Collection[int]) -> None:
        """Make weights of the pristine ones and the updates."""
        for key in keys:
            each = self._layers[key]
            for name, pristine in each.pristine.items():
                each.layer.get_parameter(name).copy_(pristine)
            wide = torch.float64 if each.layer.weight.dtype == torch.float64 else torch.float32
            changes: dict[str, Tensor] = {}
            for update in each.updates:
                for name, change in update.differences(wide).items():
                    changes[name] = torch.add(
                        changes.get(name, torch.zeros_like(change)), change, alpha=float(update.scale)
                    )
            for name, change in changes.items():
                parameter = each.layer.get_parameter(name)
                parameter.copy_(parameter.to(wide) + change)


def check_mergeable(name: str, scale: float | Tensor) -> None:
    """Raise `ValueError` if a multiplier is none for all samples alike."""
    if isinstance(scale, Tensor) and scale.ndim > 0:
        raise ValueError(
            f"LoRA {name!r} has a multiplier for each sample, of shape {tuple(scale.shape)}: it cannot be merged"
        )


def _check(layer: fl.WeightedModule, update: LayerUpdate) -> None:
    check_mergeable(update.name, update.scale)
    for name, parameter in layer.named_parameters(recurse=False):
        if type(parameter) is not nn.Parameter or not parameter.dtype.is_floating_point:
            raise ValueError(
                f"LoRA {update.name!r} cannot be merged: {name} of {layer} is a {type(parameter).__name__} of"
                f" {parameter.dtype}, expected ordinary floating-point numbers"
            )


def _check_others(adapter: LoraAdapter, names: Collection[str]) -> None:
    for other in adapter.lora_layers:
        if other.uses_weight and other.name not in names:
            raise ValueError(
                f"LoRA {other.name!r} is made of the weight of {adapter.target}: merge it together with the others"
            )
