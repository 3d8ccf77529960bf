"""The adapters that one operator computes: those that are still what their constructor made of a linear layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.lora import LinearLora

if TYPE_CHECKING:
    from refiners.fluxion.adapters.lora.adapter import LoraAdapter


class PlainParts(NamedTuple):
    """What the operator takes."""

    weight: Tensor
    bias: Tensor | None
    downs: list[Tensor]
    ups: list[Tensor]
    scales: list[float | Tensor]

    def fit(self, x: Tensor) -> bool:
        """Whether the operator computes what the children do: all is of one floating dtype, and nobody looks on."""
        dtype = x.dtype
        if x.is_nested or not dtype.is_floating_point or _has_any_global_hook():
            return False
        if dtype == torch.float64 and torch.is_autocast_enabled(x.device.type):
            return False
        if self.weight.dtype != dtype:
            return False
        for down, up in zip(self.downs, self.ups):  # noqa: SIM110 (a generator would double the time)
            if down.dtype != dtype or up.dtype != dtype:
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
    weight, bias = state["_parameters"].get("weight"), state["_parameters"].get("bias")
    if weight is None or _is_watched(state):
        return None
    parts = PlainParts(weight, bias, [], [], [])
    for lora in children:
        if type(lora) is not LinearLora or not _add_lora(parts, lora.__dict__):
            return None
    return parts if parts.downs else None


def _add_lora(parts: PlainParts, state: Mapping[str, Any]) -> bool:
    if len(state["_modules"]) != 3 or _is_watched(state):
        return False
    down, up, multiply = state["_modules"].values()
    if type(down) is not fl.Linear or type(up) is not fl.Linear or type(multiply) is not fl.Multiply:
        return False
    down_state, up_state, last = down.__dict__, up.__dict__, multiply.__dict__
    if _is_watched(down_state) or _is_watched(up_state) or _is_watched(last):
        return False
    down_parameters, up_parameters = down_state["_parameters"], up_state["_parameters"]
    down_weight, up_weight, scale = down_parameters.get("weight"), up_parameters.get("weight"), state["_scale"]
    if down_weight is None or down_parameters["bias"] is not None:
        return False
    if up_weight is None or up_parameters["bias"] is not None:
        return False
    if last["bias"] != 0 or not (
        last["scale"] is scale or (isinstance(scale, (int, float)) and bool(last["scale"] == scale))
    ):
        return False
    parts.downs.append(down_weight)
    parts.ups.append(up_weight)
    parts.scales.append(scale)
    return True


def _is_watched(state: Mapping[str, Any]) -> bool:
    """Whether a module has hooks, or a `forward` of its own, as libraries set that move weights around."""
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )
