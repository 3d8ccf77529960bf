"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType
from torch.nn import (
    GroupNorm as _GroupNorm,
    InstanceNorm2d as _InstanceNorm2d,
    LayerNorm as _LayerNorm,
    Parameter as _Parameter,
)

from refiners.fluxion.layers.activations import SiLU
from refiners.fluxion.layers.chain.joints import joint
from refiners.fluxion.layers.module import Module, WeightedModule
from refiners.fluxion.layers.watched import is_watched
from refiners.ops import group_norm


class LayerNorm(_LayerNorm, WeightedModule):
    """Layer normalization with weight and bias, as `torch.nn.LayerNorm`.

    See [[arXiv:1607.06450] Layer Normalization](https://arxiv.org/abs/1607.06450), section 3.

    Args:
        normalized_shape: The size of the last dimension, or the sizes of the last dimensions, to normalize together.
        eps: Added to the variance.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "*batch *normalized_shape"]): The input.

    Returns:
        Float[Tensor, "*batch *normalized_shape"]: The normalized input.
    """

    def __init__(
        self,
        normalized_shape: int | list[int],
        eps: float = 0.00001,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps=eps, elementwise_affine=True, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set the initial weights, unless they are on the meta device, where there is nothing to set."""
        if not self.weight.is_meta:
            super().reset_parameters()


class GroupNorm(_GroupNorm, WeightedModule):
    """Group normalization with weight and bias, as `torch.nn.GroupNorm`; mind the order of the arguments.

    It is computed by `refiners.ops.group_norm`.

    See [[arXiv:1803.08494] Group Normalization](https://arxiv.org/abs/1803.08494), equations 1, 2, 6 and 7.

    Args:
        channels: The number of channels.
        num_groups: In how many groups they are normalized.
        eps: Added to the variance.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels ..."]): The input.

    Returns:
        Float[Tensor, "batch channels ..."]: The normalized input.
    """

    def __init__(
        self,
        channels: int,
        num_groups: int,
        eps: float = 0.00001,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(num_groups, channels, eps=eps, affine=True, device=device, dtype=dtype)
        self.channels = channels

    def reset_parameters(self) -> None:
        """Set the initial weights, unless they are on the meta device, where there is nothing to set."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Float[Tensor, "batch channels *pixels"]) -> Float[Tensor, "batch channels *pixels"]:
        return group_norm(input, self.num_groups, self.weight, self.bias, eps=self.eps)


@joint(GroupNorm, SiLU)
def _activated_norm(norm: GroupNorm, activation: SiLU, x: Tensor) -> Tensor | None:
    if is_watched(norm) or is_watched(activation):
        return None
    return group_norm(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=True)


class LayerNorm2d(WeightedModule):
    """Layer normalization of the channels of each pixel, with the biased variance.

    Args:
        channels: The number of channels.
        eps: Added to the variance.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The input.

    Returns:
        Float[Tensor, "batch channels height width"]: The normalized input. Its channels are next to each other in
            memory (`torch.channels_last`): this takes one kernel for such an input, two for others.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-6,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__()
        self.weight = _Parameter(torch.ones(channels, device=device, dtype=dtype))
        self.bias = _Parameter(torch.zeros(channels, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class InstanceNorm2d(_InstanceNorm2d, Module):
    """Normalization of each channel of each image, without weights, as `torch.nn.InstanceNorm2d`.

    See [[arXiv:1607.08022] Instance Normalization](https://arxiv.org/abs/1607.08022), equation 4.

    Args:
        num_features: The number of channels.
        eps: Added to the variance.
        device: Unused: there is nothing to create.
        dtype: Unused likewise.

    Receives:
        x (Float[Tensor, "batch num_features height width"]): The input.

    Returns:
        Float[Tensor, "batch num_features height width"]: The normalized input.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 0.00001,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(num_features, eps=eps, device=device, dtype=dtype)
