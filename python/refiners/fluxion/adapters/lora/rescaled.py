"""Changes of the channels of a layer by a factor each."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, dtype as DType, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.factors import ChannelChange, apply_weight, per_channel


class ChannelFactors(ChannelChange):
    """Add to each channel that a layer returns, or takes, a multiple of it.

    See [[arXiv:2205.05638] IA³](https://arxiv.org/abs/2205.05638), section 3.3, where the channels are multiplied by
    learned numbers l: the factors here are l - 1.

    Args:
        layer: The layer.
        factors: Shape [out], or [in].
        of_inputs: Whether they are for what the layer takes.
        with_bias: Whether what the layer returns is multiplied with its bias.
    """

    factors: Tensor

    def __init__(
        self,
        layer: fl.Linear | fl.Conv2d,
        factors: Float[Tensor, " channels"],
        of_inputs: bool = False,
        with_bias: bool = False,
    ) -> None:
        super().__init__(layer, of_inputs)
        self.factors = nn.Parameter(factors)
        self.with_bias = with_bias

    def from_inputs(self, x: Tensor) -> Tensor:
        return apply_weight(self.layer, x * per_channel(self.layer, self.factors), self.layer.weight)

    def from_base(self, x: Tensor, base: Tensor) -> Tensor:
        if self.with_bias and self.layer.bias is not None:
            base = base + per_channel(self.layer, self.layer.bias)
        return base * per_channel(self.layer, self.factors)

    def differences(self, dtype: DType) -> dict[str, Tensor]:
        weight, bias, factors = self.layer.weight.to(dtype), self.layer.bias, self.factors.to(dtype)
        found = {"weight": weight * factors.view(-1, *[1] * (weight.ndim - 1 - self.of_inputs))}
        if self.with_bias and bias is not None and not self.of_inputs:
            found["bias"] = bias.to(dtype) * factors
        return found
