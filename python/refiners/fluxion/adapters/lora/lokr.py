"""Kronecker products."""

from __future__ import annotations

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.factors import Factors, WeightFactors
from refiners.ops import conv2d, linear


class KroneckerFactors(WeightFactors):
    """`w1 ⊗ w2`, each of them whole or in factors.

    See [[arXiv:2309.14859] LyCORIS](https://arxiv.org/abs/2309.14859), section 3.3. The product is not made: with the
    features in rows, `(w1 ⊗ w2) · x` is `w1 · X · w2ᵀ`, two small multiplications.

    Args:
        layer: The layer.
        w1: Shape [out_1, in_1].
        w2: Shape [out_2, in_2], or [out_2, in_2, height, width] of a convolution, where `out_1 * out_2` is the number
            of outputs of the layer, and `in_1 * in_2` that of its inputs. If it is `None`, it is made of the following.
        w1_a: Shape [out_1, rank], a factor of `w1`, which is `None` then.
        w1_b: Shape [rank, in_1], the other one.
        w2_a: Shape [out_2, rank]; with `t2`, [rank, out_2].
        w2_b: Shape [rank, in_2], the kernel of a convolution flattened into `in_2`; with `t2`, [rank, in_2].
        t2: The core of a Tucker decomposition, shape [rank, rank, height, width].
    """

    w1: Tensor | None
    w2: Tensor | None
    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t2: Tensor | None

    def __init__(
        self,
        layer: fl.Linear | fl.Conv2d,
        w1: Tensor | None = None,
        w2: Tensor | None = None,
        w1_a: Tensor | None = None,
        w1_b: Tensor | None = None,
        w2_a: Tensor | None = None,
        w2_b: Tensor | None = None,
        t2: Tensor | None = None,
    ) -> None:
        super().__init__(layer, w1=w1, w2=w2, w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, t2=t2)

    def product(self, factors: Factors) -> Tensor:
        small, large = self._matrices(factors)
        return torch.kron(small.view(*small.shape, *[1] * (large.ndim - 2)), large.contiguous())

    def _matrices(self, factors: Factors) -> tuple[Tensor, Tensor]:
        """Give `w1`, and `w2` in two dimensions for a linear layer and in four for a convolution."""
        kernel = self.layer.weight.shape[2:]
        small = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
        if "w2" in factors:
            large = factors["w2"]
        elif "t2" in factors:
            large = torch.einsum("ijhw,io,jc->ochw", factors["t2"], factors["w2_a"], factors["w2_b"])
        else:
            large = factors["w2_a"] @ factors["w2_b"]
        if large.ndim == 2 and kernel:
            large = large.view(large.shape[0], -1, *kernel)
        return small, large.reshape(*large.shape[:2], *kernel)

    def forward(self, x: Tensor) -> Tensor:
        small, large = self._matrices(dict(self.named_parameters()))
        layer = self.layer
        if isinstance(layer, fl.Linear):
            rows = x.reshape(*x.shape[:-1], small.shape[1], large.shape[1])
            return torch.matmul(small, linear(rows, large)).flatten(-2)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or x.ndim != 4:
            return super().forward(x)
        groups = x.reshape(x.shape[0] * small.shape[1], large.shape[1], *x.shape[2:])
        y = conv2d(groups, large, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)
        return torch.einsum("ji,bichw->bjchw", small, y.view(x.shape[0], small.shape[1], *y.shape[1:])).flatten(1, 2)
