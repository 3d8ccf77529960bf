"""The adapter that adds low-rank updates to a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.adapters.lora.factors import apply_weight, per_channel
from refiners.fluxion.adapters.lora.plain import find_plain_parts, shares_base
from refiners.fluxion.adapters.lora.update import LayerUpdate, WeightUpdate
from refiners.ops import lora_block_cache, lora_linear, prepare_lora_block
from refiners.ops.lora_linear_masters import lora_linear_masters
from refiners.ops.transforms import is_transformed


class LoraAdapter(fl.Sum, Adapter[fl.WeightedModule]):
    """Add any number of low-rank updates to a layer.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), equation 3. For a linear layer the sum is computed
    by one operator, `refiners.ops.lora_linear`; wherever the children are not the plain ones, or carry hooks, they are
    called one by one.

    Args:
        target: The layer.
        loras: The updates, each with its own name.
    """

    # The multipliers, and the tensor that holds them. Where gradients are recorded (True) it is never changed in place.
    _scales: dict[bool, tuple[tuple[float, ...], Tensor]]

    def __init__(self, target: fl.WeightedModule, /, *loras: LayerUpdate) -> None:
        with self.setup_adapter(target):
            super().__init__(target, *loras)
        self.__dict__["_scales"] = {}  # past torch's bookkeeping: sets have a thousand adapters

    def forward(self, *args: Any) -> Any:
        plain = find_plain_parts(self) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if plain is None or not plain.fit(args[0]):
            return self._from_base(*args) if shares_base(self) and len(args) == 1 else super().forward(*args)
        x, (weight, bias, downs, ups, scales) = args[0], plain
        scale = self._scale_tensor(scales, x)
        if any(up.dtype != x.dtype for up in ups):
            return lora_linear_masters(x, weight, bias, downs, ups, scale)
        return lora_linear(x, weight, bias, downs, ups, scale, prepare_lora_block(weight, ups))

    def _from_base(self, x: Tensor) -> Tensor:
        """Compute the layer once, for itself and for the updates that are made of what it returns."""
        layer = cast("fl.Linear | fl.Conv2d", self.target)
        base = apply_weight(layer, x, layer.weight)
        y = base if layer.bias is None else base + per_channel(layer, layer.bias)
        for update in list(self)[1:]:
            is_based = isinstance(update, WeightUpdate) and update.uses_base
            y = y + (update.from_base(x, base) if is_based else update(x))
        return y

    def eject(self) -> None:
        super().eject()
        lora_block_cache.drop(self.target.weight)

    def _scale_tensor(self, scales: list[float | Tensor], x: Tensor) -> Tensor:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        for scale in scales:
            if isinstance(scale, Tensor):
                return _stack_scales(scales, x, dtype)
        values = tuple(cast("list[float]", scales))
        if torch.compiler.is_compiling() or type(x) is not Tensor or is_transformed():
            return torch.tensor(values, device=x.device, dtype=dtype)
        records = torch.is_grad_enabled()
        kept_values, kept = self._scales.get(records, ((), None))
        if kept is not None and (kept.device != x.device or kept.dtype != dtype):
            kept = None
        if kept is not None and kept_values == values:
            return kept
        with torch.inference_mode(False):
            tensor = torch.tensor(values, device=x.device, dtype=dtype)
            if kept is not None and not records and kept.shape == tensor.shape:
                tensor = kept.copy_(tensor)  # a captured graph reads this very tensor
            if type(tensor) is Tensor:
                self._scales[records] = values, tensor
        return tensor

    def _post_structural_copy(self, source: Adapter[fl.WeightedModule]) -> None:
        super()._post_structural_copy(source)
        self.__dict__["_scales"] = {}  # each copy has scales of its own

    @property
    def lora_layers(self) -> Iterator[LayerUpdate]:
        """The updates, those of adapters nested around the target included."""
        return self.layers(LayerUpdate)

    @property
    def names(self) -> list[str]:
        """The names of the updates."""
        return [lora.name for lora in self.lora_layers]

    @property
    def loras(self) -> dict[str, LayerUpdate]:
        """The updates by name."""
        return {lora.name: lora for lora in self.lora_layers}

    @property
    def scales(self) -> dict[str, Any]:
        """The multipliers by name."""
        return {lora.name: lora.scale for lora in self.lora_layers}

    @property
    def scale(self) -> dict[str, Any]:
        """The multipliers by name. Assign a dict to change those it names.

        Raises:
            KeyError: If a name is unknown; nothing has changed.
            TypeError: If the value is no dict, or a multiplier neither a number nor a tensor.
        """
        return self.scales

    @scale.setter
    def scale(self, values: Mapping[str, float | Tensor]) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"scale must be a dict of multipliers by name, got {type(values).__name__}")
        loras = self.loras
        for name, value in values.items():
            if not isinstance(value, (int, float, Tensor)):
                raise TypeError(f"the scale of {name!r} must be a number or a tensor, got {type(value).__name__}")
            if name not in loras:
                raise KeyError(f"no LoRA is named {name!r}, there are: {', '.join(loras) or 'none'}")
        for name, value in values.items():
            loras[name].scale = value

    def add_lora(self, lora: LayerUpdate, /) -> None:
        """Add an update; raise `AssertionError` if its name is taken, or if it is attached elsewhere."""
        if lora.name in self.names:
            raise AssertionError(f"LoRA layer with name {lora.name} already exists")
        if lora.parent is not None:
            raise AssertionError(f"LoRA {lora.name} already has parent {type(lora.parent).__name__}: remove it first")
        self.append(lora)

    def remove_lora(self, name: str, /) -> LayerUpdate | None:
        """Remove and return an update, or return `None` if there is none of that name."""
        lora = self.loras.get(name)
        if lora is not None:
            lora.ensure_parent.remove(lora)
        return lora


def _stack_scales(scales: list[Any], x: Tensor, dtype: DType) -> Tensor:
    """Stack numbers and tensors of shape [], [batch] or [batch, tokens] into [adapters, batch (, tokens)]."""
    tensors = [torch.as_tensor(scale, device=x.device).to(dtype) for scale in scales]
    ndim = max(tensor.ndim for tensor in tensors)
    lead = x.shape[:ndim]
    return torch.stack(
        [tensor.reshape((*tensor.shape, *[1] * (ndim - tensor.ndim))).expand(lead) for tensor in tensors]
    )
