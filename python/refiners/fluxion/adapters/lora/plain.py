"""The adapters that one operator computes: those that are still what their constructor made of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.lora import Conv2dLora, LinearLora
from refiners.fluxion.adapters.lora.region import Region
from refiners.fluxion.adapters.lora.update import LayerUpdate
from refiners.fluxion.layers.watched import has_global_hooks, is_watched, is_watched_state
from refiners.ops.lora_linear_masters import are_master_weights

if TYPE_CHECKING:
    from typing import TypeGuard

    from refiners.fluxion.adapters.lora.adapter import LoraAdapter


class PlainParts(NamedTuple):
    """What the operator takes."""

    layer: fl.Linear | fl.Conv2d
    weight: Tensor
    bias: Tensor | None
    downs: list[Tensor]
    ups: list[Tensor]
    scales: list[float | Tensor | Region]

    def fit(self, x: Tensor) -> bool:
        """Whether the operator computes what the children do, since dtypes agree and nobody looks on."""
        dtype = x.dtype
        if x.is_nested or not dtype.is_floating_point or has_global_hooks():
            return False
        if dtype == torch.float64 and torch.is_autocast_enabled(x.device.type):
            return False
        is_image = type(self.layer) is fl.Conv2d
        if self.weight.dtype != dtype or (is_image and x.ndim != 4):
            return False
        for down, up in zip(self.downs, self.ups):
            if (down.dtype != dtype or up.dtype != dtype) and (is_image or not are_master_weights(down, up, dtype)):
                return False
        return True

    @property
    def are_idle(self) -> bool:
        """Whether all multipliers are the number 0, and no gradients are recorded: the layer alone gives the result."""
        if torch.is_grad_enabled():
            return False
        for scale in self.scales:  # noqa: SIM110 (as above)
            if not _is_number(scale) or scale != 0:
                return False
        return True


def find_plain_parts(adapter: LoraAdapter) -> PlainParts | None:
    """Give what the operator takes, or `None` where a child is not the plain one, or carries a hook.

    This runs in each call of each adapter, so it is written for time: the states of modules are read once, and as
    dicts, since an attribute of a module costs several times as much.
    """
    children = iter(adapter._modules.values())
    target = next(children, None)
    kind = type(target)
    if (kind is not fl.Linear and kind is not fl.Conv2d) or target is not adapter.target:
        return None
    layer = cast("fl.Linear | fl.Conv2d", target)
    state = layer.__dict__
    parameters = state["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if not _is_plain(weight) or "bias" not in parameters or is_watched_state(state):
        return None
    if kind is fl.Conv2d and (
        state["groups"] != 1 or state["padding_mode"] != "zeros" or isinstance(state["padding"], str)
    ):
        return None
    expected = LinearLora if kind is fl.Linear else Conv2dLora
    parts = PlainParts(layer, weight, bias, [], [], [])
    for lora in children:
        is_plain = type(lora) is expected
        if not (_add_lora(parts, lora.__dict__) if is_plain else _add_operands(parts, lora)):
            return None
    return parts if parts.downs else None


def _add_lora(parts: PlainParts, state: Mapping[str, Any]) -> bool:
    if len(state["_modules"]) != 3 or is_watched_state(state):
        return False
    down, up, multiply = state["_modules"].values()
    kind = type(parts.layer)
    if type(down) is not kind or type(up) is not kind or type(multiply) is not fl.Multiply:
        return False
    down_state, up_state, last = down.__dict__, up.__dict__, multiply.__dict__
    if is_watched_state(down_state) or is_watched_state(up_state) or is_watched_state(last):
        return False
    if kind is fl.Conv2d and not _are_alike(parts.layer.__dict__, down_state, up_state):
        return False
    down_parameters, up_parameters = down_state["_parameters"], up_state["_parameters"]
    down_weight, up_weight = down_parameters.get("weight"), up_parameters.get("weight")
    if not _is_plain(down_weight) or down_parameters.get("bias", ...) is not None:
        return False
    if not _is_plain(up_weight) or up_parameters.get("bias", ...) is not None:
        return False
    scale = last.get("scale")
    if last["bias"] != 0 or not (_is_number(scale) or isinstance(scale, (Tensor, Region))):
        return False
    parts.downs.append(down_weight)
    parts.ups.append(up_weight)
    parts.scales.append(scale)
    return True


def _add_operands(parts: PlainParts, lora: fl.Module) -> bool:
    if not isinstance(lora, LinearLora) or not isinstance(parts.layer, fl.Linear):
        return False
    operands = lora.operands(parts.weight.dtype)
    if operands is None or not all(_is_plain(factor) for factor in operands):
        return False
    parts.downs.append(operands[0])
    parts.ups.append(operands[1])
    parts.scales.append(lora.total_scale)
    return True


def _are_alike(layer: Mapping[str, Any], down: Mapping[str, Any], up: Mapping[str, Any]) -> bool:
    """Whether two convolutions are those of `lora_conv2d`: the larger pads like the layer, the first has its stride."""
    large, small = (down, up) if up["kernel_size"] == (1, 1) else (up, down)
    return (
        small["kernel_size"] == (1, 1)
        and small["padding"] == (0, 0)
        and large["padding"] == layer["padding"]
        and large["dilation"] == layer["dilation"]
        and down["stride"] == layer["stride"]
        and up["stride"] == (1, 1)
        and all(each["groups"] == 1 and each["padding_mode"] == "zeros" for each in (down, up))
    )


def is_simple(children: Sequence[fl.Module], layer: fl.Module) -> bool:
    """Whether children are a layer and updates of it, and can be called past their hooks, since there are none."""
    first, *updates = children if children else (None,)
    if first is not layer or type(layer) not in (fl.Linear, fl.Conv2d) or is_watched(layer):
        return False
    return all(
        isinstance(update, LayerUpdate) and not any(is_watched(each) for each in (update, *update.children()))
        for update in updates
    )


def is_idle(update: LayerUpdate) -> bool:
    """Whether an update is multiplied by the number 0, and no gradients are recorded of it."""
    last = next(reversed(update._modules.values()), None)
    return (
        type(last) is fl.Multiply
        and _is_number(last.scale)
        and last.scale == 0
        and last.bias == 0
        and not torch.is_grad_enabled()
    )


def _is_plain(weight: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a weight is an ordinary one: subclasses may have a linear layer of their own."""
    return type(weight) is nn.Parameter or type(weight) is Tensor


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float))
