"""Elementwise products of two matrices of low rank."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.factors import Factors, WeightFactors, apply_low_rank


class HadamardFactors(WeightFactors):
    """`(w1_a · w1_b) ⊙ (w2_a · w2_b)`, or the same of two Tucker decompositions.

    See [[arXiv:2108.06098] FedPara](https://arxiv.org/abs/2108.06098), section 2.2, equation 1, and for convolutions
    proposition 3. Of ranks r₁ and r₂ it is a product of rank r₁·r₂, whose factors are those of all pairs of ranks:
    where these take less time than the matrix, it is computed in that way.

    Args:
        layer: The layer.
        w1_a: Shape [out, rank_1]; with `t1`, [rank_1, out].
        w1_b: Shape [rank_1, in], the kernel of a convolution flattened into `in`; with `t1`, [rank_1, in].
        w2_a: As `w1_a`, of the second factor.
        w2_b: As `w1_b`, of the second factor.
        t1: The core of a Tucker decomposition, shape [rank_1, rank_1, height, width].
        t2: The core of the second one.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None
    t2: Tensor | None

    def __init__(
        self,
        layer: fl.Linear | fl.Conv2d,
        w1_a: Tensor,
        w1_b: Tensor,
        w2_a: Tensor,
        w2_b: Tensor,
        t1: Tensor | None = None,
        t2: Tensor | None = None,
    ) -> None:
        super().__init__(layer, w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, t1=t1, t2=t2)

    def product(self, factors: Factors) -> Tensor:
        shape = self.layer.weight.shape
        one, other = (
            _product(factors[f"w{i}_a"], factors[f"w{i}_b"], factors.get(f"t{i}")).reshape(shape) for i in (1, 2)
        )
        return one * other

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        rank = self.w1_b.shape[0] * self.w2_b.shape[0]
        if self.t1 is not None or rank * (weight.shape[0] + weight[0].numel()) > weight.numel():
            return super().forward(x)
        down = _pairs(self.w1_b, self.w2_b).view(rank, *weight.shape[1:])
        up = _pairs(self.w1_a.T, self.w2_a.T).T
        return apply_low_rank(self.layer, x, down, up)


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    return a @ b if core is None else torch.einsum("ijhw,io,jc->ochw", core, a, b)


def _pairs(one: Float[Tensor, "rank_1 columns"], other: Float[Tensor, "rank_2 columns"]) -> Tensor:
    """Multiply each row by each other row."""
    return (one[:, None] * other[None]).flatten(0, 1)
