"""A convolution with any number of low-rank updates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refiners.ops.conv2d import conv2d

_POINT = (1, 1)


def lora_conv2d(
    x: Float[Tensor, "batch in_channels in_height in_width"],
    weight: Float[Tensor, "out_channels in_channels kernel_height kernel_width"],
    bias: Float[Tensor, "out_channels"] | None,
    downs: Sequence[Float[Tensor, "rank in_channels down_height down_width"]],
    ups: Sequence[Float[Tensor, "out_channels rank up_height up_width"]],
    scale: Float[Tensor, "adapters *lead"],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Apply a convolution and its low-rank updates: `conv(x, weight) + bias + Σᵢ scale[i] · conv(conv(x, Aᵢ), Bᵢ)`.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), equation 3, with convolutions as the products. Of
    the kernels of A and B one is that of the layer, as a rule, and the other is a point. The larger one has the padding
    and the dilation of the layer; the stride is that of A.

    All updates of one shape of kernels are two convolutions, however many they are, and what they give is added to the
    result of the layer as that is written, so that it is rounded once. Differentiable in all tensors, any number of
    times; nothing but `x`, the weights and what A makes of `x` is kept for the gradients.

    Args:
        x: The input.
        weight: The kernels of the layer.
        bias: The bias of the layer, if any.
        downs: The kernels A, one for each update. The ranks may differ.
        ups: The kernels B, in the same order.
        scale: The multipliers (dimensionless): `[adapters]`, one for each sample too as `[adapters, batch]`, or one for
            each pixel of the result as `[adapters, batch, out_height, out_width]`.
        stride: See `conv2d`, as for the following.
        padding: See there.
        dilation: See there.

    Returns:
        A new tensor with the dtype and device of `x` (under autocast, with its dtype).

    Raises:
        ValueError: If there are not as many of `downs`, `ups` and `scale`, or a multiplier has another shape.
        RuntimeError: If other shapes, dtypes or devices disagree, as from torch.
    """
    if not len(downs) == len(ups) == len(scale):
        raise ValueError(
            f"lora_conv2d: downs, ups and scale must be as many, got {len(downs)}, {len(ups)} and {len(scale)}"
        )
    if scale.ndim not in (1, 2, 4):
        raise ValueError(
            "lora_conv2d: scale must be (adapters), (adapters, batch) or (adapters, batch, height, width), got"
            f" {tuple(scale.shape)}"
        )
    if scale.ndim > 1 and scale.shape[1] != x.shape[0]:
        raise ValueError(f"lora_conv2d: scale must have {x.shape[0]} samples, as x, got {tuple(scale.shape)}")
    groups: defaultdict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, (down, up) in enumerate(zip(downs, ups, strict=True)):
        groups[_group(index, down, up, scale)].append(index)
    update: Tensor | None = None
    for members in groups.values():
        down, up = _cat([downs[i] for i in members], 0), _cat([ups[i] for i in members], 1)
        is_point = tuple(up.shape[2:]) == _POINT
        inner = conv2d(x, down, None, None, None, stride, *((padding, dilation) if is_point else (0, 1)))
        outer = (0, 1) if is_point else (padding, dilation)
        if is_point or scale.ndim < 4:
            inner = inner * _per_channel(scale, members, downs).to(inner.dtype)
            update = conv2d(inner, up, None, None, update, 1, *outer)
        else:  # a kernel would mix the multipliers of neighbours
            own = conv2d(inner, up, None, None, None, 1, *outer) * scale[members[0], :, None].to(inner.dtype)
            update = own if update is None else update + own
    return conv2d(x, weight, bias, None, update, stride, padding, dilation)


def _group(index: int, down: Tensor, up: Tensor, scale: Tensor) -> tuple[object, ...]:
    """Tell which updates can be computed together."""
    is_apart = scale.ndim == 4 and tuple(up.shape[2:]) != _POINT
    return (down.shape[2:], up.shape[2:], index if is_apart else None)


def _cat(tensors: list[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _per_channel(scale: Tensor, members: list[int], downs: Sequence[Tensor]) -> Tensor:
    """Give the multipliers of the inner channels, shaped to be multiplied with them."""
    if scale.ndim == 1:
        return _cat([scale[i].expand(downs[i].shape[0]) for i in members], 0)[:, None, None]
    lead = scale.shape[1:]
    rows = [scale[i][:, None].expand(lead[0], downs[i].shape[0], *lead[1:]) for i in members]
    return _cat(rows, 1) if scale.ndim == 4 else _cat(rows, 1)[:, :, None, None]
