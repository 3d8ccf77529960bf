"""The gradient of `lora_linear`: only the inputs are saved, what is small is computed again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.ops.transforms import is_autocast


def per_row(scale: Tensor, x: Tensor) -> Tensor:
    """Give the multipliers of one update the dtype and as many dimensions as `x`."""
    return scale.to(x.dtype).reshape(*scale.shape, *[1] * (x.dim() - scale.dim()))


def any_requires_grad(*arguments: Tensor | Sequence[Tensor] | None) -> bool:
    """Whether a gradient is asked of one of the arguments of an operator."""
    return any(
        argument.requires_grad
        if isinstance(argument, Tensor)
        else any(tensor.requires_grad for tensor in argument or ())
        for argument in arguments
    )


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradient needs; `block` repeats `weight` and `ups`."""
    x, weight, _, downs, ups, scale, *_ = inputs
    ctx.save_for_backward(x, weight, scale, *downs, *ups)


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Give the gradient of each argument, in differentiable functions, so that it has a gradient of its own."""
    if is_autocast(grad):  # what was saved has been cast already
        with torch.autocast(grad.device.type, enabled=False):
            return _gradients(ctx, grad)
    return _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, weight, scale, *matrices = ctx.saved_tensors
    downs, ups = matrices[: len(matrices) // 2], matrices[len(matrices) // 2 :]
    needs_x, needs_weight, needs_bias, needs_downs, needs_ups, needs_scale, *_ = ctx.needs_input_grad
    grad_x = _grad_x(grad, weight, downs, ups, scale) if needs_x else None
    grad_weight = _rows(grad).t() @ _rows(x) if needs_weight else None
    grad_bias = _rows(grad).sum(0) if needs_bias else None
    grad_downs: list[Tensor | None] = [None] * len(downs)
    grad_ups: list[Tensor | None] = [None] * len(ups)
    grad_scale: list[Tensor] = []
    for i, (down, up, multiplier) in enumerate(zip(downs, ups, scale.unbind(), strict=True)):
        if not (needs_downs[i] or needs_ups[i] or needs_scale):
            continue
        wide_x, wide_grad = x.to(down.dtype), grad.to(up.dtype)  # master weights are wider
        row_scale = per_row(multiplier, wide_x)
        if needs_downs[i]:
            grad_downs[i] = _rows(F.linear(wide_grad, up.t()) * row_scale).t() @ _rows(wide_x)
        if needs_ups[i]:
            grad_ups[i] = _rows(wide_grad).t() @ _rows(F.linear(wide_x, down) * row_scale)
        if needs_scale:
            products = F.linear(wide_grad, up.t()) * F.linear(wide_x, down)
            grad_scale.append(products.to(scale.dtype).sum(tuple(range(multiplier.dim(), x.dim()))))
    scales = _stack(grad_scale, scale) if needs_scale else None
    grads = grad_x, grad_weight, grad_bias, grad_downs, grad_ups, scales, None
    return grads[: len(ctx.needs_input_grad)]  # the dispatcher drops a `block` that is None


def _grad_x(grad: Tensor, weight: Tensor, downs: list[Tensor], ups: list[Tensor], scale: Tensor) -> Tensor:
    """The same operator, transposed."""
    lora_linear, dtype = torch.ops.refiners.lora_linear.default, grad.dtype
    turned_ups, turned_downs = [up.t().to(dtype) for up in ups], [down.t().to(dtype) for down in downs]
    return lora_linear(grad, weight.t(), None, turned_ups, turned_downs, scale)


def _stack(grads: list[Tensor], scale: Tensor) -> Tensor:
    return torch.stack(grads) if grads else torch.zeros_like(scale)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
