"""Updates of the layers of a tree that are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.adapter import LoraAdapter
from refiners.fluxion.adapters.lora.attach import MERGED, attach_loras
from refiners.fluxion.adapters.lora.places import Place, find_places, updates_around
from refiners.fluxion.adapters.lora.training.frozen import Frozen
from refiners.fluxion.adapters.lora.training.trainable import TrainableLora
from refiners.fluxion.adapters.lora.update import LayerUpdate
from refiners.fluxion.bulk import collections_paused


class TrainableLoras:
    """Updates of the layers of a tree that are trained together; `add_trainable_loras` makes them.

    While they are attached, every other parameter of the tree is frozen, those of other updates included.

    Attributes:
        name: The name of each update.
        target: The tree.
        loras: The updates by the paths of their layers in the tree without adapters.
    """

    def __init__(
        self,
        name: str,
        target: fl.Chain,
        loras: Mapping[str, TrainableLora[Any]],
        layers: Mapping[str, fl.WeightedModule],
    ) -> None:
        self.name = name
        self.target = target
        self.loras = dict(loras)
        self._layers = dict(layers)
        self._frozen: Frozen | None = None

    @property
    def adapters(self) -> list[LoraAdapter]:
        """The adapters that hold the updates."""
        return [lora.parent for lora in self.loras.values() if isinstance(lora.parent, LoraAdapter)]

    def parameters(self) -> list[nn.Parameter]:
        """List what an optimiser is to train, layer by layer: `down`, then `up`."""
        return [parameter for lora in self.loras.values() for parameter in lora.parameters()]

    def __repr__(self) -> str:
        state = "not attached to" if self._frozen is None else "attached to"
        count = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"TrainableLoras({self.name!r}, {len(self.loras)} of {count} numbers, {state} {type(self.target).__name__})"
        )

    def inject(self) -> TrainableLoras:
        """Attach the updates, all or none, and freeze what else is in the tree.

        Returns:
            The updates themselves.

        Raises:
            RuntimeError: If they are attached.
            ValueError: If a layer is in no chain any more, or has an update of this name. In either case nothing has
                changed.
        """
        if self._frozen is not None:
            raise RuntimeError(f"the updates {self.name!r} are attached already: eject them first")
        attach_loras(zip(self.loras.values(), self.find_places(), strict=True))
        self._frozen = Frozen(self.target, but=self.loras.values())
        return self

    def eject(self) -> None:
        """Take the updates out of the tree, which is then what it was, with every `requires_grad` as it was.

        They can be injected again.

        Raises:
            RuntimeError: If they are not attached.
            ValueError: If one of them is merged. In either case nothing has changed.
        """
        if self._frozen is None:
            raise RuntimeError(f"the updates {self.name!r} are not attached: inject them first")
        own = {id(lora) for lora in self.loras.values()}
        for layer in self.target.modules():
            merged = layer.__dict__.get(MERGED)
            if merged is not None and any(id(update) in own for update in merged.updates):
                raise ValueError(f"the updates {self.name!r} are merged: unmerge them first")
        with collections_paused():
            for lora in self.loras.values():
                adapter = lora.parent
                if isinstance(adapter, LoraAdapter):
                    if adapter._is_injected and not _others(adapter, lora):
                        adapter.eject()
                    adapter.remove(lora)
        self._frozen.release()
        self._frozen = None

    def state_dict(self) -> dict[str, Tensor]:
        """Give all that training goes on from, by paths: the weights themselves, not copies.

        For each layer `<path>.down`, `<path>.up` and `<path>.alpha`, the multiplier times the rank; with a start that
        is not zero also `<path>.start_down` and `<path>.start_up`.
        """
        tensors: dict[str, Tensor] = {}
        for path, lora in self.loras.items():
            found = {"down": lora.down.weight.detach(), "up": lora.up.weight.detach(), **lora._buffers}
            found["alpha"] = torch.tensor(lora.multiplier * lora.rank, dtype=torch.float64)
            tensors |= {f"{path}.{role}": tensor for role, tensor in found.items() if tensor is not None}
        return tensors

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Write what `state_dict` gave into the updates; they must be made by the same arguments.

        Raises:
            ValueError: If names, shapes or multipliers differ, or numbers are not finite; nothing was written.
        """
        own = self.state_dict()
        problems = [f"{key} is missing" for key in own if key not in tensors]
        problems += [f"{key} is not expected" for key in tensors if key not in own]
        for key in (each for each in own if each in tensors):
            if own[key].shape != tensors[key].shape:
                problems.append(f"{key} must have shape {tuple(own[key].shape)}, got {tuple(tensors[key].shape)}")
            elif key.endswith(".alpha") and own[key].item() != tensors[key].item():
                problems.append(f"{key} must be {own[key].item()}, got {tensors[key].item()}")
            elif not tensors[key].is_meta and not torch.isfinite(tensors[key]).all():
                problems.append(f"{key} must be finite numbers")
        if problems:
            lines = "\n  ".join([*problems[:10], *([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])])
            raise ValueError(f"tensors do not fit ({len(problems)}), nothing was loaded:\n  {lines}")
        for key, tensor in own.items():
            if not key.endswith(".alpha"):
                tensor.copy_(tensors[key])

    def find_places(self) -> list[Place]:
        """Find the layers of the updates in the tree as it is now.

        Raises:
            ValueError: If one is in no chain any more, or has an update of this name.
        """
        places = find_places(self.target)
        by_layer = {id(place.layer): place for place in places.values() if place.parent is not None}
        found: list[Place] = []
        for path, layer in self._layers.items():
            at_path = places.get(path)
            is_there = at_path is not None and at_path.layer is layer and at_path.parent is not None
            place = at_path if is_there else by_layer.get(id(layer))  # numbers in paths change with the tree
            if place is None:
                raise ValueError(f"{path}: the layer is in no chain of {type(self.target).__name__} any more: {layer}")
            if any(each.name == self.name for each in updates_around(place)):
                raise ValueError(f"{path}: the layer has an update of the name {self.name!r}")
            found.append(place)
        return found


def _others(adapter: LoraAdapter, lora: LayerUpdate) -> list[LayerUpdate]:
    return [each for each in adapter if isinstance(each, LayerUpdate) and each is not lora]
