"""The adapter that adds low-rank updates to a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, dtype as DType, nn
from torch.nn.modules.module import _has_any_global_hook

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.adapters.lora.lora import LinearLora, Lora
from refiners.ops import lora_block_cache, lora_linear, prepare_lora_block


class LoraAdapter(fl.Sum, Adapter[fl.WeightedModule]):
    """Add any number of low-rank updates to a layer.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), equation 3. For a linear layer the sum is computed
    by one operator, `refiners.ops.lora_linear`; wherever the children are not the plain ones, or carry hooks, they are
    called one by one.

    Args:
        target: The layer.
        loras: The updates, each with its own name.
    """

    _scales: tuple[tuple[float, ...], Tensor] | None  # the multipliers, and the tensor that holds them

    def __init__(self, target: fl.WeightedModule, /, *loras: Lora[Any]) -> None:
        with self.setup_adapter(target):
            super().__init__(target, *loras)
        self.__dict__["_scales"] = None  # past torch's bookkeeping: sets have a thousand adapters

    def forward(self, *args: Any) -> Any:
        plain = _plain_parts(self) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if plain is None or not _fits(plain, args[0]):
            return super().forward(*args)
        x, weight, scale = args[0], plain.target.weight, self._scale_tensor(plain.scales, args[0])
        block = prepare_lora_block(weight, plain.ups)
        return lora_linear(x, weight, plain.target.bias, plain.downs, plain.ups, scale, block)

    def eject(self) -> None:
        super().eject()
        lora_block_cache.drop(self.target.weight)

    def _scale_tensor(self, scales: list[float | Tensor], x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        if any(isinstance(scale, Tensor) for scale in scales):
            return _stack_scales(scales, x, dtype)
        values = tuple(cast("list[float]", scales))
        # A tensor that is kept must be an ordinary one, and is changed in place only where no gradient refers to it.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor:
            return torch.tensor(values, device=x.device, dtype=dtype)
        kept = self._scales
        if kept is not None and kept[0] == values and kept[1].device == x.device and kept[1].dtype == dtype:
            return kept[1]
        with torch.inference_mode(False):
            tensor = torch.tensor(values, device=x.device, dtype=dtype)
            if kept is not None and kept[1].shape == tensor.shape and kept[1].device == x.device:
                tensor = kept[1].copy_(tensor)  # a captured graph reads this very tensor
            if type(tensor) is Tensor:
                self.__dict__["_scales"] = values, tensor
        return tensor

    @property
    def lora_layers(self) -> Iterator[Lora[Any]]:
        """The updates, those of adapters nested around the target included."""
        return cast("Iterator[Lora[Any]]", self.layers(Lora))

    @property
    def names(self) -> list[str]:
        """The names of the updates."""
        return [lora.name for lora in self.lora_layers]

    @property
    def loras(self) -> dict[str, Lora[Any]]:
        """The updates by name."""
        return {lora.name: lora for lora in self.lora_layers}

    @property
    def scales(self) -> dict[str, Any]:
        """The multipliers by name."""
        return {lora.name: lora.scale for lora in self.lora_layers}

    @property
    def scale(self) -> dict[str, Any]:
        """The multipliers by name. Assign a dict to change those it names; `KeyError` for an unknown name."""
        return self.scales

    @scale.setter
    def scale(self, values: Mapping[str, float | Tensor]) -> None:
        loras = self.loras
        for name in values:
            if name not in loras:
                raise KeyError(f"no LoRA is named {name!r}, there are: {', '.join(loras) or 'none'}")
        for name, value in values.items():
            loras[name].scale = value

    def add_lora(self, lora: Lora[Any], /) -> None:
        """Add an update; raise `AssertionError` if its name is taken, or if it is attached elsewhere."""
        if lora.name in self.names:
            raise AssertionError(f"LoRA layer with name {lora.name} already exists")
        if lora.parent is not None:
            raise AssertionError(f"LoRA {lora.name} already has parent {type(lora.parent).__name__}: remove it first")
        self.append(lora)

    def remove_lora(self, name: str, /) -> Lora[Any] | None:
        """Remove and return an update, or return `None` if there is none of that name."""
        lora = self.loras.get(name)
        if lora is not None:
            lora.ensure_parent.remove(lora)
        return lora


class _PlainParts(NamedTuple):
    """What the operator takes, where the adapter is still what its constructor made of a linear layer."""

    target: fl.Linear
    downs: list[Tensor]
    ups: list[Tensor]
    scales: list[float | Tensor]


def _fits(parts: _PlainParts, x: Tensor) -> bool:
    """Whether the operator computes what the children do: all is of one floating dtype, and nobody looks on."""
    if x.is_nested or not x.is_floating_point() or _has_any_global_hook():
        return False
    if x.dtype == torch.float64 and torch.is_autocast_enabled(x.device.type):
        return False
    return all(weight.dtype == x.dtype for weight in (parts.target.weight, *parts.downs, *parts.ups))


def _plain_parts(adapter: LoraAdapter) -> _PlainParts | None:
    if len(adapter._modules) < 2:
        return None
    target, *loras = adapter._modules.values()
    if type(target) is not fl.Linear or target is not adapter.target or _has_hooks(target):
        return None
    parts = _PlainParts(target, [], [], [])
    for lora in loras:
        if type(lora) is not LinearLora or len(lora._modules) != 3 or _has_hooks(lora):
            return None
        down, up, multiply = lora._modules.values()
        if not (_is_plain_linear(down) and _is_plain_linear(up) and _is_plain_scale(multiply, lora.scale)):
            return None
        parts.downs.append(down.weight)
        parts.ups.append(up.weight)
        parts.scales.append(lora.scale)
    return parts


def _is_plain_linear(layer: fl.Module) -> bool:
    return type(layer) is fl.Linear and layer._parameters["bias"] is None and not _has_hooks(layer)


def _is_plain_scale(layer: fl.Module, scale: float | Tensor) -> bool:
    if type(layer) is not fl.Multiply or layer.bias != 0 or _has_hooks(layer):
        return False
    return layer.scale is scale or (isinstance(scale, (int, float)) and bool(layer.scale == scale))


def _has_hooks(module: nn.Module) -> bool:
    own = module.__dict__  # read for each layer and call: attributes would cost a microsecond
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own  # replaced, as libraries that move weights around do
    )


def _stack_scales(scales: list[Any], x: Tensor, dtype: DType) -> Tensor:
    """Stack numbers and tensors of shape [], [batch] or [batch, tokens] into [adapters, batch (, tokens)]."""
    tensors = [torch.as_tensor(scale, device=x.device).to(dtype) for scale in scales]
    ndim = max(tensor.ndim for tensor in tensors)
    lead = x.shape[:ndim]
    return torch.stack(
        [tensor.reshape((*tensor.shape, *[1] * (ndim - tensor.ndim))).expand(lead) for tensor in tensors]
    )
