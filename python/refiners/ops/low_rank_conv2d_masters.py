"""Two convolutions with weights in float32, applied to an image in 16 bits: the master weights of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.library import LIBRARY

_ARGUMENTS = "(Tensor x, Tensor down, Tensor up, int[2] stride, int[2] padding, int[2] dilation)"
LIBRARY.define(f"_low_rank_conv2d_masters{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners._low_rank_conv2d_masters.default


def low_rank_conv2d_masters(
    x: Float[Tensor, "batch in_channels in_height in_width"],
    down: Float[Tensor, "rank in_channels kernel_height kernel_width"],
    up: Float[Tensor, "out_channels rank 1 1"],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Compute `up(down(x))` with both rounded to the dtype of `x`, and their gradients in their own.

    As `refiners.ops.lora_linear_masters` does for linear layers. Saved are the arguments: what is between the two
    convolutions is computed again, in float32.

    Args:
        x: The input, in 16 bits.
        down: The kernels of the first convolution, in float32.
        up: Those of the second one, in float32.
        stride: The steps of the first one, in pixels; along height and width.
        padding: The zeros on each side of height and width.
        dilation: The distances between two elements of a kernel.

    Returns:
        A new tensor with the dtype and device of `x`.

    Raises:
        RuntimeError: If shapes or devices disagree, as from torch.
    """
    return _OPERATOR(x, down, up, stride, padding, dilation)


@torch.library.impl(LIBRARY, "_low_rank_conv2d_masters", "CompositeExplicitAutograd")
def _compute(
    x: Tensor, down: Tensor, up: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    conv2d = torch.ops.refiners.conv2d.default
    inner = conv2d(x, down.to(x.dtype), None, None, None, stride, padding, dilation)
    return conv2d(inner, up.to(x.dtype))


@torch.library.register_fake("refiners::_low_rank_conv2d_masters", lib=LIBRARY)
def _fake(
    x: Tensor, down: Tensor, up: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    return _compute(x, down, up, stride, padding, dilation)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, down, up, *ctx.geometry = inputs
    ctx.save_for_backward(x, down, up)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Give the gradients in differentiable functions, so that they have gradients of their own."""
    x, down, up = ctx.saved_tensors
    needs_x, needs_down, needs_up, *_ = ctx.needs_input_grad
    stride, padding, dilation = ctx.geometry
    grad_x = grad_down = grad_up = None
    with torch.autocast(grad.device.type, enabled=False):
        wide_x, wide_grad = x.to(down.dtype), grad.to(up.dtype)
        if needs_up:
            inner = F.conv2d(wide_x, down, None, tuple(stride), tuple(padding), tuple(dilation))
            grad_up = torch.einsum("nohw,nrhw->or", wide_grad, inner)[:, :, None, None]
        if needs_x or needs_down:
            grad_inner = F.conv2d(wide_grad, up.transpose(0, 1))
            mask = [needs_x, needs_down, False]
            grad_x, grad_down, _ = torch.ops.aten.convolution_backward(
                grad_inner, wide_x, down, None, stride, padding, dilation, False, [0, 0], 1, mask
            )
    return None if grad_x is None or not needs_x else grad_x.to(x.dtype), grad_down, grad_up, None, None, None


torch.library.register_autograd(
    "refiners::_low_rank_conv2d_masters", _backward, setup_context=_save_for_backward, lib=LIBRARY
)
