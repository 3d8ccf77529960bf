"""The adapters that one operator computes: those that are still what their constructor made of a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.lora import LinearLora
from refiners.fluxion.adapters.lora.update import LayerUpdate, WeightUpdate
from refiners.fluxion.layers.watched import has_global_hooks, is_watched, is_watched_state
from refiners.ops.lora_linear_masters import are_master_weights

if TYPE_CHECKING:
    from typing import TypeGuard

    from refiners.fluxion.adapters.lora.adapter import LoraAdapter


class PlainParts(NamedTuple):
    """What the operator takes."""

    weight: Tensor
    bias: Tensor | None
    downs: list[Tensor]
    ups: list[Tensor]
    scales: list[float | Tensor]

    def fit(self, x: Tensor) -> bool:
        """Whether the operator computes what the children do, since dtypes agree and nobody looks on."""
        dtype = x.dtype
        if x.is_nested or not dtype.is_floating_point or has_global_hooks():
            return False
        if dtype == torch.float64 and torch.is_autocast_enabled(x.device.type):
            return False
        if self.weight.dtype != dtype:
            return False
        for down, up in zip(self.downs, self.ups):
            if (down.dtype != dtype or up.dtype != dtype) and not are_master_weights(down, up, dtype):
                return False
        return True


def find_plain_parts(adapter: LoraAdapter) -> PlainParts | None:
    """Give what the operator takes, or `None` where a child is not the plain one, or carries a hook.

    This runs in each call of each adapter, so it is written for time: the states of modules are read once, and as
    dicts, since an attribute of a module costs several times as much.
    """
    children = iter(adapter._modules.values())
    target = next(children, None)
    if type(target) is not fl.Linear or target is not adapter.target:
        return None
    state = target.__dict__
    parameters = state["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if not _is_plain(weight) or "bias" not in parameters or is_watched_state(state):
        return None
    parts = PlainParts(weight, bias, [], [], [])
    for lora in children:
        is_plain = type(lora) is LinearLora
        if not (_add_lora(parts, lora.__dict__) if is_plain else _add_operands(parts, lora)):
            return None
    return parts if parts.downs else None


def _add_lora(parts: PlainParts, state: Mapping[str, Any]) -> bool:
    if len(state["_modules"]) != 3 or is_watched_state(state):
        return False
    down, up, multiply = state["_modules"].values()
    if type(down) is not fl.Linear or type(up) is not fl.Linear or type(multiply) is not fl.Multiply:
        return False
    down_state, up_state, last = down.__dict__, up.__dict__, multiply.__dict__
    if is_watched_state(down_state) or is_watched_state(up_state) or is_watched_state(last):
        return False
    down_parameters, up_parameters = down_state["_parameters"], up_state["_parameters"]
    down_weight, up_weight = down_parameters.get("weight"), up_parameters.get("weight")
    if not _is_plain(down_weight) or down_parameters.get("bias", ...) is not None:
        return False
    if not _is_plain(up_weight) or up_parameters.get("bias", ...) is not None:
        return False
    scale, factor = state["_scale"], last.get("scale")
    if last["bias"] != 0 or not (factor is scale or (_is_number(scale) and _is_number(factor) and factor == scale)):
        return False
    parts.downs.append(down_weight)
    parts.ups.append(up_weight)
    parts.scales.append(scale)
    return True


def _add_operands(parts: PlainParts, lora: fl.Module) -> bool:
    operands = lora.operands(parts.weight.dtype) if isinstance(lora, LinearLora) else None
    if operands is None or not all(_is_plain(factor) for factor in operands):
        return False
    parts.downs.append(operands[0])
    parts.ups.append(operands[1])
    parts.scales.append(cast(LinearLora, lora).scale)
    return True


def shares_base(adapter: LoraAdapter) -> bool:
    """Whether an update is made of what the layer returns, and layer and updates can be called past their hooks."""
    layer = adapter.target
    if type(layer) not in (fl.Linear, fl.Conv2d) or len(adapter) == 0 or adapter[0] is not layer:
        return False
    updates = [update for update in adapter if isinstance(update, LayerUpdate)]
    if len(updates) + 1 != len(adapter) or not any(
        isinstance(each, WeightUpdate) and each.uses_base for each in updates
    ):
        return False
    return not any(is_watched(each) for update in (layer, *updates) for each in (update, *update.children()))


def _is_plain(weight: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a weight is an ordinary one: subclasses may have a linear layer of their own."""
    return type(weight) is nn.Parameter or type(weight) is Tensor


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float))
