"""Changes of a layer that refer to it, and those of its weight that are kept in factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, dtype as DType, nn

import refiners.fluxion.layers as fl
from refiners.ops import conv2d, linear

Factors: TypeAlias = Mapping[str, Tensor]


class LayerChange(fl.Module, ABC):
    """A change of what a layer returns, but for its bias.

    Args:
        layer: The layer. It is referred to and no child: its weights belong to the tree that it is in.
    """

    def __init__(self, layer: fl.Linear | fl.Conv2d) -> None:
        super().__init__()
        self._layer = (layer,)  # torch does not look for modules in tuples

    @property
    def layer(self) -> fl.Linear | fl.Conv2d:
        """The layer that is changed."""
        return self._layer[0]

    @property
    def uses_weight(self) -> bool:
        """Whether the change is made of the weight of the layer."""
        return True

    @property
    def uses_base(self) -> bool:
        """Whether the change is made of what the layer returns."""
        return False

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out_shape"]:
        base = apply_weight(self.layer, x, self.layer.weight)
        return self.from_base(x, base).to(base.dtype)

    def from_base(self, x: Float[Tensor, "batch *shape"], base: Float[Tensor, "batch *out_shape"]) -> Tensor:
        """Compute the change by what the layer returns without its bias, if it is made of that."""
        raise NotImplementedError(f"{type(self).__name__} does not look at what the layer returns")

    @abstractmethod
    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the changes of the parameters of the layer by their names; see `LayerUpdate.differences`."""

    def __str__(self) -> str:
        shapes = (f"{name}={tuple(value.shape)}" for name, value in self.named_parameters(recurse=False))
        return f"{type(self).__name__}({', '.join(shapes)})"


class ChannelChange(LayerChange):
    """A change by numbers, one for each channel that the layer returns or takes.

    Args:
        layer: The layer.
        of_inputs: Whether they are for what the layer takes.
    """

    def __init__(self, layer: fl.Linear | fl.Conv2d, of_inputs: bool) -> None:
        super().__init__(layer)
        self.of_inputs = of_inputs

    @property
    def uses_base(self) -> bool:
        return not self.of_inputs

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out_shape"]:
        return super().forward(x) if self.uses_base else self.from_inputs(x)

    @abstractmethod
    def from_inputs(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out_shape"]:
        """Compute the change, if the numbers are for what the layer takes."""


class WeightFactors(LayerChange):
    """A change of a layer's weight, made of factors that take less memory than the weight.

    Args:
        layer: The layer.
        factors: The factors by their names.

    Raises:
        ValueError: If the layer is a convolution of several groups.
    """

    def __init__(self, layer: fl.Linear | fl.Conv2d, **factors: Tensor | None) -> None:
        if isinstance(layer, fl.Conv2d) and layer.groups != 1:
            raise ValueError(f"layer must be a convolution of one group, got {layer}")
        super().__init__(layer)
        for name, factor in factors.items():
            self.register_parameter(name, None if factor is None else nn.Parameter(factor))

    @property
    def uses_weight(self) -> bool:
        return False

    @abstractmethod
    def product(self, factors: Factors) -> Float[Tensor, "out_features in_features *kernel"]:
        """Multiply factors, by their names: a change of the weight, in its shape."""

    def difference(self, dtype: DType | None = None) -> Float[Tensor, "out_features in_features *kernel"]:
        """Give the change of the weight, computed in the dtype of the factors or another one."""
        factors = {name: factor for name, factor in self._parameters.items() if factor is not None}
        return self.product({name: factor.to(dtype or factor.dtype) for name, factor in factors.items()})

    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": self.difference(parameters["weight"].dtype)}

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *out_shape"]:
        return apply_weight(self.layer, x, self.difference())


class LowRankFactors(WeightFactors):
    """`up · down`, as of [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), section 4.1.

    Args:
        layer: The layer.
        down: Shape [rank, in], or [rank, in, height, width] of a convolution.
        up: Shape [out, rank].
    """

    down: Tensor
    up: Tensor

    def __init__(self, layer: fl.Linear | fl.Conv2d, down: Tensor, up: Tensor) -> None:
        super().__init__(layer, down=down, up=up)

    def product(self, factors: Factors) -> Tensor:
        return (factors["up"] @ factors["down"].flatten(1)).view(self.layer.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return apply_low_rank(self.layer, x, self.down, self.up)


def apply_weight(layer: fl.Linear | fl.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Compute what a layer would return with another weight, and without a bias."""
    return linear(x, weight) if isinstance(layer, fl.Linear) else layer._conv_forward(x, weight, None)


def apply_low_rank(layer: fl.Linear | fl.Conv2d, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Compute what a layer would return with the weight `up · down`, and without a bias, in two steps."""
    inner = apply_weight(layer, x, down)
    return linear(inner, up) if isinstance(layer, fl.Linear) else conv2d(inner, up[:, :, None, None])


def per_channel(layer: fl.Linear | fl.Conv2d, values: Float[Tensor, " channels"]) -> Tensor:
    """Shape numbers, one for each channel of a layer, so that they multiply what it takes or returns."""
    return values if isinstance(layer, fl.Linear) else values[:, None, None]
