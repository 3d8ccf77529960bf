"""A linear layer with any number of low-rank updates, in one operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.flops import Shape, counts_flops
from refiners.ops.library import LIBRARY
from refiners.ops.lora_linear_backward import any_requires_grad, backward, per_row, save_for_backward
from refiners.ops.lora_linear_checks import check_lora_linear
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_autocast, is_transformed

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_ARGUMENTS = "(Tensor x, Tensor weight, Tensor? bias, Tensor[] downs, Tensor[] ups, Tensor scale, Tensor? block=None)"
LIBRARY.define(f"lora_linear{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"_lora_linear_portable{_ARGUMENTS} -> Tensor")  # what a kernel calls that refuses its arguments
_OPERATOR = torch.ops.refiners.lora_linear.default


def lora_linear(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, "out_features"] | None,
    downs: Sequence[Float[Tensor, "rank in_features"]],
    ups: Sequence[Float[Tensor, "out_features rank"]],
    scale: Float[Tensor, "adapters *lead"],
    block: Float[Tensor, "out_features in_features+rank"] | None = None,
) -> Float[Tensor, "*batch out_features"]:
    """Apply a linear layer and its low-rank updates: `x @ weight.T + bias + Σᵢ scale[i] · (x @ downs[i].T) @ ups[i].T`.

    See [[arXiv:2106.09685] LoRA](https://arxiv.org/abs/2106.09685), equation 3. `scale` is a tensor, so that a compiled
    or captured graph sees it change. Its dimensions after the first are a prefix of those of the batch: `[adapters]`
    is one multiplier per update, `[adapters, batch]` one per sample too, `[adapters, batch, tokens]` one per row, so
    that one batch can mix updates (0 switches one off).

    Differentiable in everything but `block`, any number of times. All products are summed in float32 at least; which of
    them are rounded to the dtype of `x` on the way depends on the path (`python -m refiners doctor` names it). Under
    autocast all arguments but `scale` are cast to its dtype first. Under the transforms of `torch.func` and in
    forward-mode differentiation the formula is computed by torch's functions.

    Args:
        x: The input.
        weight: The weight of the layer.
        bias: The bias of the layer, if any.
        downs: The matrices A of the paper, one for each update. The ranks may differ.
        ups: The matrices B of the paper, in the same order.
        scale: The multipliers (dimensionless, `alpha / rank` in the paper), of any floating dtype.
        block: What `prepare_lora_block` made of `weight` and `ups`; it must be current. Optional: it changes the
            speed and not the result.

    Returns:
        A new tensor with the dtype and device of `x`.

    Raises:
        ValueError: If shapes, lengths or devices disagree; the message names the argument, what it should be and is.
        TypeError: If a dtype differs from that of `x`, or is not a floating one.
    """
    if is_autocast(x):
        x, weight, bias, downs, ups, block = _autocast(x, weight, bias, downs, ups, block)
    check_lora_linear(x, weight, bias, downs, ups, scale, block)
    if is_transformed():
        return portable(x, weight, bias, downs, ups, scale)
    if torch.compiler.is_compiling() or (
        torch.is_grad_enabled() and any_requires_grad(x, weight, bias, downs, ups, scale)
    ):
        return _OPERATOR(x, weight, bias, downs, ups, scale, block)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(x, weight, bias, downs, ups, scale, block)


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None, downs: Sequence[Tensor], ups: Sequence[Tensor], block: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor], list[Tensor], Tensor | None]:
    dtype = torch.get_autocast_dtype(x.device.type)
    current = block if block is not None and block.dtype == dtype else None
    cast_bias = None if bias is None else bias.to(dtype)
    return x.to(dtype), weight.to(dtype), cast_bias, [d.to(dtype) for d in downs], [u.to(dtype) for u in ups], current


@register_portable("lora_linear")
def portable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: Tensor,
    block: Tensor | None = None,
) -> Tensor:
    """Compute the operator by torch's own functions."""
    x = x.contiguous()  # one copy, not one for each multiplication
    y = F.linear(x, weight, bias)
    for multiplier, down, up in zip(scale.unbind(), downs, ups, strict=True):
        y = y + F.linear(F.linear(x, down) * per_row(multiplier, x), up)
    return y


@torch.library.register_fake("refiners::lora_linear", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


torch.library.register_autograd("refiners::lora_linear", backward, setup_context=save_for_backward, lib=LIBRARY)


@counts_flops("lora_linear")
def _flops(
    x: Shape, weight: Shape, bias: Shape | None, downs: Sequence[Shape], ups: Sequence[Shape], *_: Any, **__: Any
) -> int:
    return 2 * math.prod(x[:-1]) * sum(math.prod(each) for each in (weight, *downs, *ups))
