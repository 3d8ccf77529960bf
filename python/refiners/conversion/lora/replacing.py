"""The values of another file, written into the updates of a LoRA where they are alike: nothing is attached anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from refiners.conversion.checkpoint import Checkpoint, StateDict, TensorSource
from refiners.conversion.lora.keys import Role, split_keys
from refiners.conversion.lora.kinds import LOW_RANK
from refiners.conversion.lora.loading import Scope, plan_for
from refiners.conversion.lora.names import Part
from refiners.conversion.lora.no_lora import check_is_no_pipeline
from refiners.conversion.lora.plan import LoraPlan, Update
from refiners.conversion.lora.reading import check_finite, read_tensors, sum_of
from refiners.conversion.lora.targets import Targets
from refiners.fluxion.adapters.lora import Conv2dLora, LayerUpdate, LinearLora, LoraAdapter
from refiners.fluxion.bulk import collections_paused
from refiners.foundationals.latent_diffusion.model import LatentDiffusionModel


def replace_lora(
    model: LatentDiffusionModel,
    updates: Collection[LayerUpdate],
    source: Path | str | Mapping[str, Tensor] | TensorSource,
    *,
    scopes: Mapping[Part, Scope] | None = None,
    partial: bool = False,
) -> LoraPlan | None:
    """Write the values of a file into the updates of a LoRA, if it has one of the same shapes for each of them.

    The updates stay where and what they are, with their multipliers: the parameters are the same, with other values.

    Args:
        model: The model.
        updates: All updates of the LoRA, attached to layers of the model.
        source: A file, a folder of PEFT, or tensors by their keys.
        scopes: Where in each network there may be updates; others of the file are left out.
        partial: Whether to leave out what fits no layer.

    Returns:
        What became of each update; `None` if they are not alike, or something does not fit the model, and nothing was
        written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is not finite; nothing was written.
    """
    if isinstance(source, (str, Path)):
        check_is_no_pipeline(source)
        with collections_paused(), Checkpoint(source) as opened:
            return replace_lora(model, updates, opened, scopes=scopes, partial=partial)
    tensors = StateDict(source) if isinstance(source, Mapping) else source
    with collections_paused():
        split = split_keys(tensors.infos)
        if not split[0]:
            return None
        plan, targets = plan_for(model, tensors, scopes or {}, split)
        slots = _slots(plan, tensors, targets, updates) if partial or plan.is_whole else None
        if slots is None:
            return None
        values = [value for slot in slots for value in _values(slot, tensors)]
        check_finite((sum_of(value) for value in values), plan, tensors, targets)
        parameters = [parameter for slot in slots for parameter in slot.parameters.values()]
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value.view(parameter.shape))
    return plan


class _Slot(NamedTuple):
    update: Update
    parameters: Mapping[Role, Tensor]


def _slots(
    plan: LoraPlan, source: TensorSource, targets: Targets, updates: Collection[LayerUpdate]
) -> list[_Slot] | None:
    """Find the parameters for each update of a plan; `None` if there are not just those that there must be."""
    by_layer = {id(each.parent.target): each for each in updates if isinstance(each.parent, LoraAdapter)}
    fitting = plan.of_status("fits")
    if not len(fitting) == len(by_layer) == len(updates):
        return None
    slots: list[_Slot] = []
    for update in fitting:
        assert update.part is not None
        lora = by_layer.get(id(targets.places[update.part][update.path].layer))
        if type(lora) not in (LinearLora, Conv2dLora) or plan.kinds[update.name] is not LOW_RANK:
            return None
        assert isinstance(lora, (LinearLora, Conv2dLora))
        slot = _Slot(update, {"down": lora.down.weight, "up": lora.up.weight})
        if not all(_takes(parameter, source, update.keys.get(role)) for role, parameter in slot.parameters.items()):
            return None
        if "mid" in update.keys:
            return None
        slots.append(slot)
    return slots


def _takes(parameter: Tensor, source: TensorSource, key: str | None) -> bool:
    """Whether a parameter can take the values of a tensor, and has a number for each finite one."""
    if key is None or parameter.is_inference():
        return False
    info = source.infos[key]
    is_like = info.shape[:2] == parameter.shape[:2] and info.shape.numel() == parameter.numel()
    return is_like and torch.finfo(info.dtype).max <= torch.finfo(parameter.dtype).max


def _values(slot: _Slot, source: TensorSource) -> list[Tensor]:
    """Give the values of the parameters, those of the file in the memory of the file where they are just these."""
    if slot.update.scale == 1:
        return [source.view(slot.update.keys[role]) for role in slot.parameters]
    weight = slot.parameters["up"]
    tensors = read_tensors(slot.update, LOW_RANK, source, weight.device, weight.dtype)
    return [tensors[role] for role in slot.parameters]
