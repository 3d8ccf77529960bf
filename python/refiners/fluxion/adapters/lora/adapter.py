"""The adapter that adds low-rank updates to a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.adapter import Adapter
from refiners.fluxion.adapters.lora.checks import check_scale
from refiners.fluxion.adapters.lora.factors import apply_weight, per_channel
from refiners.fluxion.adapters.lora.multipliers import Multipliers, count_samples
from refiners.fluxion.adapters.lora.plain import find_plain_parts, is_idle, is_simple
from refiners.fluxion.adapters.lora.update import LayerUpdate, WeightUpdate
from refiners.ops import lora_block_cache, lora_conv2d, lora_linear, prepare_lora_block
from refiners.ops.lora_linear_masters import lora_linear_masters


class LoraAdapter(fl.Sum, Adapter[fl.WeightedModule]):
    """Add any number of low-rank updates to a layer.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), equation 3. The sum is computed by one operator,
    `refiners.ops.lora_linear` or `refiners.ops.lora_conv2d`; wherever the children are not the plain ones, or carry
    hooks, they are called one by one. Where no gradients are recorded, updates of a scale of 0 cost nothing.

    Args:
        target: The layer.
        loras: The updates, each with its own name.

    Raises:
        ValueError: If an update is not for a layer of this kind and shape.
    """

    _multipliers: Multipliers

    def __init__(self, target: fl.WeightedModule, /, *loras: LayerUpdate) -> None:
        for lora in loras:
            _check_fit(lora, target)
        with self.setup_adapter(target):
            super().__init__(target, *loras)
        self.__dict__["_multipliers"] = Multipliers()  # past torch's bookkeeping: sets have a thousand adapters

    def forward(self, *args: Any) -> Any:
        plain = find_plain_parts(self) if len(args) == 1 and isinstance(args[0], Tensor) else None
        if plain is None or not plain.fit(args[0]):
            return self._from_children(*args)
        x, (layer, weight, bias, downs, ups, scales) = args[0], plain
        if plain.are_idle:
            return layer(x)
        if x.shape[0] == 1 and (count := count_samples(scales)) > 1:  # what all samples share, such as the timestep
            x = x.expand(count, *x.shape[1:])
        if isinstance(layer, fl.Linear):
            scale = self._multipliers.of(scales, x, x.shape[:-1])
            if any(up.dtype != x.dtype for up in ups):
                return lora_linear_masters(x, weight, bias, downs, ups, scale)
            return lora_linear(x, weight, bias, downs, ups, scale, prepare_lora_block(weight, ups))
        stride, padding, dilation = layer.stride, cast("tuple[int, int]", layer.padding), layer.dilation
        sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation)
        sides = (1 + (side + 2 * pad - gap * (size - 1) - 1) // step for side, size, step, pad, gap in sizes)
        scale = self._multipliers.of(scales, x, (x.shape[0], *sides))
        return lora_conv2d(x, weight, bias, downs, ups, scale, stride, padding, dilation)

    def _from_children(self, *args: Any) -> Any:
        """Call the children one by one, those alone that change something, and the layer once for all of them."""
        children = list(self)
        if len(args) != 1 or not is_simple(children, self.target):
            return super().forward(*args)
        layer, *updates = children
        updates = [update for update in cast("list[LayerUpdate]", updates) if not is_idle(update)]
        if any(isinstance(update, WeightUpdate) and update.uses_base for update in updates):
            return self._from_base(cast("fl.Linear | fl.Conv2d", layer), args[0], updates)
        return sum((update(*args) for update in updates), start=layer(*args))

    def _from_base(self, layer: fl.Linear | fl.Conv2d, x: Tensor, updates: Iterable[LayerUpdate]) -> Tensor:
        """Compute the layer once, for itself and for the updates that are made of what it returns."""
        base = apply_weight(layer, x, layer.weight)
        y = base if layer.bias is None else base + per_channel(layer, layer.bias)
        for update in updates:
            is_based = isinstance(update, WeightUpdate) and update.uses_base
            y = y + (update.from_base(x, base) if is_based else update(x))
        return y.to(base.dtype)  # under autocast sums are wider than what layers return

    def eject(self) -> None:
        super().eject()
        lora_block_cache.drop(self.target.weight)

    def _post_structural_copy(self, source: Adapter[fl.WeightedModule]) -> None:
        super()._post_structural_copy(source)
        self.__dict__["_multipliers"] = Multipliers()  # each copy has scales of its own

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
            TypeError: If the value is no dict, or a multiplier neither a number nor a tensor; nothing has changed.
            ValueError: If a multiplier is not finite; nothing has changed.
        """
        return self.scales

    @scale.setter
    def scale(self, values: Mapping[str, float | Tensor]) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"scale must be a dict of multipliers by name, got {type(values).__name__}")
        loras = self.loras
        for name, value in values.items():
            check_scale(name, value)
            if name not in loras:
                raise KeyError(f"no LoRA is named {name!r}, there are: {', '.join(loras) or 'none'}")
        for name, value in values.items():
            loras[name].scale = value

    def add_lora(self, lora: LayerUpdate, /) -> None:
        """Add an update.

        Raises:
            AssertionError: If its name is taken, or if it is attached elsewhere.
            ValueError: If it is not for a layer of this kind and shape.
        """
        if lora.name in self.names:
            raise AssertionError(f"LoRA layer with name {lora.name} already exists")
        if lora.parent is not None:
            raise AssertionError(f"LoRA {lora.name} already has parent {type(lora.parent).__name__}: remove it first")
        _check_fit(lora, self.target)
        self.append(lora)

    def remove_lora(self, name: str, /) -> LayerUpdate | None:
        """Remove and return an update, or return `None` if there is none of that name."""
        lora = self.loras.get(name)
        if lora is not None:
            lora.ensure_parent.remove(lora)
        return lora


def _check_fit(update: LayerUpdate, layer: fl.WeightedModule) -> None:
    """Raise unless an update is for a layer. What other layers than these take is for those to know who made them."""
    is_known = isinstance(layer, (fl.Linear, fl.Conv2d)) or isinstance(update, WeightUpdate)
    if is_known and isinstance(update, LayerUpdate) and not update.is_compatible(layer):
        raise ValueError(f"LoRA {update.name!r} must be for {layer}, got {_shown(update)}")


def _shown(update: LayerUpdate) -> str:
    return (
        f"{type(update).__name__} of {', '.join(str(layer) for layer in update if not isinstance(layer, fl.Multiply))}"
    )
