"""Group normalization with what stands around it in a residual block: an addition before, a SiLU after."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.library import LIBRARY, native
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_autocast, is_transformed, requires_grad

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_ARGUMENTS = (
    "(Tensor x, int groups, Tensor? weight=None, Tensor? bias=None, Tensor? add=None, float eps=1e-05, bool silu=False)"
)
LIBRARY.define(f"group_norm{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"_group_norm_portable{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners.group_norm.default


def group_norm(
    x: Float[Tensor, "batch channels *pixels"],
    groups: int,
    weight: Float[Tensor, "channels"] | None = None,
    bias: Float[Tensor, "channels"] | None = None,
    add: Float[Tensor, "batch channels"] | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Float[Tensor, "batch channels *pixels"]:
    """Normalize groups of channels: `silu((x + add - mean) / √(variance + eps) * weight + bias)`.

    See [[arXiv:1803.08494] Group Normalization](https://arxiv.org/abs/1803.08494), equations 1, 2, 6 and 7. Kernels
    compute in float32, round once, and read channels in any order: a tensor in `torch.channels_last` stays so.
    Differentiable, any number of times.

    Args:
        x: The input.
        groups: In how many groups the channels are normalized.
        weight: The factors of the channels (1 without).
        bias: The offsets of the channels (0 without).
        add: What is added to all pixels of a channel first, as the embedding of a time step.
        eps: Added to the variance.
        silu: Whether `x * sigmoid(x)` follows.

    Returns:
        A new tensor with the dtype, device and memory format of `x`.

    Raises:
        ValueError: If shapes disagree; the message names the argument.
    """
    _check(x, groups, weight, bias, add)
    if not _has_kernel(x, weight, bias, add) or is_autocast(x) or is_transformed():
        return _portable(x, groups, weight, bias, add, eps, silu)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and requires_grad(x, weight, bias, add)):
        return _OPERATOR(x, groups, weight, bias, add, eps, silu)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(x, groups, weight, bias, add, eps, silu)


def _check(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, add: Tensor | None) -> None:
    if x.dim() < 2:
        raise ValueError(f"group_norm: x must be (batch, channels, ...), got {tuple(x.shape)}")
    batch, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(f"group_norm: groups must divide the {channels} channels of x, got {groups}")
    for name, value, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("add", add, (batch, channels)),
    ):
        if value is not None and value.shape != shape:
            raise ValueError(f"group_norm: {name} must be {shape}, got {tuple(value.shape)}")


def _has_kernel(x: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel takes the tensors; torch's functions take dtypes that differ, too."""
    if not x.is_cpu or type(x) is not Tensor or x.is_nested or not native.has_kernel("group_norm", x.dtype):
        return False
    return all(other is None or (other.dtype == x.dtype and other.is_cpu) for other in others)


@register_portable("group_norm")
def _portable(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    if add is not None:
        x = x + add.reshape(*add.shape, *[1] * (x.dim() - 2))
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y


@torch.library.register_fake("refiners::group_norm", lib=LIBRARY)
def _fake(x: Tensor, groups: int, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    defaults = (None, None, None, None, None, 1e-5, False)
    x, ctx.groups, weight, bias, add, ctx.eps, ctx.silu = (*inputs, *defaults[len(inputs) :])
    ctx.save_for_backward(x, weight, bias, add)
    ctx.arguments = len(inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Give the gradients in differentiable functions, in float32 at least: nothing but the inputs was saved."""
    x, weight, bias, add = ctx.saved_tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    batch, channels, *pixels = x.shape
    per_channel = (channels, *[1] * len(pixels))
    values = x.to(wide) if add is None else x.to(wide) + add.to(wide).reshape(batch, *per_channel)
    grouped = values.reshape(batch, ctx.groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    scale = (variance + ctx.eps).rsqrt()
    normal = ((grouped - mean) * scale).reshape(x.shape)
    factor = None if weight is None else weight.to(wide).reshape(per_channel)
    grad = grad.to(wide)
    if ctx.silu:
        y = normal if factor is None else normal * factor
        y = y if bias is None else y + bias.to(wide).reshape(per_channel)
        sigmoid = y.sigmoid()
        grad = grad * sigmoid * (1 + y * (1 - sigmoid))
    others = [0, *range(2, x.dim())]
    grad_weight = None if weight is None else (grad * normal).sum(others).to(x.dtype)
    grad_bias = None if bias is None else grad.sum(others).to(x.dtype)
    to_normal = (grad if factor is None else grad * factor).reshape(grouped.shape)
    normal = normal.reshape(grouped.shape)
    centred = to_normal - to_normal.mean(2, keepdim=True) - normal * (to_normal * normal).mean(2, keepdim=True)
    grad_x = (scale * centred).reshape(x.shape)
    grad_add = None if add is None else grad_x.flatten(2).sum(2).to(x.dtype)
    grads = grad_x.to(x.dtype), None, grad_weight, grad_bias, grad_add, None, None
    return grads[: ctx.arguments]


torch.library.register_autograd("refiners::group_norm", _backward, setup_context=_save_for_backward, lib=LIBRARY)
