"""Changes of the direction of a weight, and of its magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refiners.fluxion.adapters.lora.factors import (
    ChannelChange,
    LowRankFactors,
    WeightFactors,
    apply_weight,
    per_channel,
)
from refiners.fluxion.kept import Kept


class Decomposition(ChannelChange):
    """Turn each row of a weight and set its length: from `W` to `m · (W + D) / ‖W + D‖`.

    See [[arXiv:2402.09353] DoRA](https://arxiv.org/abs/2402.09353), equation 5; as in its section 4.3, the lengths
    `‖W + D‖` are constants in the backward pass. They are kept while weight and factors stay as they are, where no
    gradient is asked for, and `W + D` is not made for them if D is of low rank:
    `‖W + B·A‖² = ‖W‖² + 2⟨W, B·A⟩ + ‖B·A‖²`.

    Args:
        factors: The change D of the weight.
        magnitude: The lengths m: shape [out] of rows, or [in] of columns.
        of_inputs: Whether they are those of columns, one for each input, as in some files of LyCORIS.
    """

    magnitude: Tensor
    factors: WeightFactors

    def __init__(self, factors: WeightFactors, magnitude: Float[Tensor, " channels"], of_inputs: bool = False) -> None:
        super().__init__(factors.layer, of_inputs)
        self.factors = factors
        self.magnitude = nn.Parameter(magnitude)
        self._kept = Kept()

    def from_inputs(self, x: Tensor) -> Tensor:
        ratio = per_channel(self.layer, self.ratio())
        return apply_weight(self.layer, x * (ratio - 1), self.layer.weight) + self.factors(x * ratio)

    def from_base(self, x: Tensor, base: Tensor) -> Tensor:
        ratio = per_channel(self.layer, self.ratio())
        return torch.addcmul(self.factors(x) * ratio, base, ratio - 1)

    def differences(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weight = parameters["weight"]
        changed = weight + self.factors.difference(weight.dtype)
        ratio = self.magnitude.to(weight.dtype) * self._sum(changed.square()).rsqrt()
        return {"weight": ratio.view(-1, *[1] * (weight.ndim - 1 - self.of_inputs)) * changed - weight}

    def ratio(self) -> Float[Tensor, " channels"]:
        """Give `m / ‖W + D‖`."""
        tensors = [self.layer.weight, self.magnitude, *self.factors.parameters()]
        found = self._kept.find(self._ratio, tensors)
        return self._ratio() if found is None else found

    def _ratio(self) -> Tensor:
        with torch.no_grad(), torch.autocast(self.magnitude.device.type, enabled=False):
            squares = self._squared_lengths()
        return (self.magnitude.to(squares.dtype) * squares.rsqrt()).to(self.magnitude.dtype)

    def _squared_lengths(self) -> Float[Tensor, " channels"]:
        weight, factors = self.layer.weight, self.factors
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if not isinstance(factors, LowRankFactors):
            return self._sum((weight.to(dtype) + factors.difference().to(dtype)).square())
        rows = weight.transpose(0, 1).flatten(1) if self.of_inputs else weight.flatten(1)
        own = cast(Tensor, torch.linalg.vector_norm(rows, dim=1, dtype=dtype)).square()
        down, up = factors.down.flatten(1).to(dtype), factors.up.to(dtype)
        if self.of_inputs:
            turned = up.T @ weight.flatten(1).to(dtype)
            change = (2 * turned + up.T @ up @ down) * down
            squares = own + change.view(factors.down.shape).transpose(0, 1).flatten(1).sum(dim=1)
        else:
            turned = weight.flatten(1).to(dtype) @ down.T
            squares = own + ((2 * turned + up @ (down @ down.T)) * up).sum(dim=1)
        return torch.maximum(squares, torch.finfo(dtype).eps * own)  # no negative ones by rounding

    def _sum(self, squares: Tensor) -> Tensor:
        return (squares.transpose(0, 1) if self.of_inputs else squares).flatten(1).sum(dim=1)
