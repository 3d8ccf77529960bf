"""Changes of the channels of a layer by a factor each."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

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

    Raises:
        ValueError: If there is not one factor for each channel.
    """

    factors: Tensor

    def __init__(
        self,
        layer: fl.Linear | fl.Conv2d,
        factors: Float[Tensor, " channels"],
        of_inputs: bool = False,
        with_bias: bool = False,
    ) -> None:
        channels = layer.weight.shape[int(of_inputs)]
        if factors.shape != (channels,):
            side = "inputs" if of_inputs else "outputs"
            raise ValueError(
                f"factors must be ({channels},), one for each of the {side} of {layer}, got {tuple(factors.shape)}"
            )
        super().__init__(layer, of_inputs)
        self.factors = nn.Parameter(factors)
        self.with_bias = with_bias

    def from_inputs(self, x: Tensor) -> Tensor:
        return apply_weight(self.layer, x * per_channel(self.layer, self.factors), self.layer.weight)

    def from_base(self, x: Tensor, base: Tensor) -> Tensor:
        if self.with_bias and self.layer.bias is not None:
            base = base + per_channel(self.layer, self.layer.bias)
        return base * per_channel(self.layer, self.factors)

    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight, bias = parameters["weight"], parameters.get("bias")
        factors = self.factors.to(weight.dtype)
        found = {"weight": weight * factors.view(-1, *[1] * (weight.ndim - 1 - self.of_inputs))}
        if self.with_bias and bias is not None and not self.of_inputs:
            found["bias"] = bias * factors
        return found
