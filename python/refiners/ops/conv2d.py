"""A convolution with what stands after it in a residual block: additions and a SiLU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.flops import Shape, counts_flops
from refiners.ops.library import LIBRARY, native
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_autocast, is_transformed, requires_grad

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_PLAIN = (Tensor, torch.nn.Parameter)  # other classes may have a convolution of their own
_TOO_FAR = 1 << 31  # for padding and dilation
_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? add=None, Tensor? residual=None, int[2] stride=1, "
    "int[2] padding=0, int[2] dilation=1, int groups=1, bool silu=False)"
)
LIBRARY.define(f"conv2d{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"_conv2d_portable{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners.conv2d.default


def conv2d(
    x: Float[Tensor, "batch in_channels in_height in_width"],
    weight: Float[Tensor, "out_channels in_channels_of_group kernel_height kernel_width"],
    bias: Float[Tensor, "out_channels"] | None = None,
    add: Float[Tensor, "batch out_channels"] | None = None,
    residual: Float[Tensor, "batch out_channels out_height out_width"] | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    silu: bool = False,
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Compute `silu(conv(x) + bias + add + residual)`, with the convolution of `torch.nn.functional.conv2d`.

    On the CPU kernels of 3 x 3 with a stride of 1, between 16 channels or more, follow Winograd's algorithm, which
    takes 2.25 times fewer products: see [[arXiv:1509.09308] Fast Algorithms for Convolutional Neural
    Networks](https://arxiv.org/abs/1509.09308), algorithm 1. All is summed in float32 and rounded once. Nothing is
    kept between calls: weights are transformed in the cache, on their way into the products, from the order in which
    they lie. Differentiable in all tensors, any number of times.

    Args:
        x: The input.
        weight: The kernels.
        bias: The bias, if any.
        add: What is added to all pixels of a channel, as the embedding of a time step.
        residual: What is added to the result.
        stride: The step between two places of the kernel, in pixels; along height and width.
        padding: How many zeros are added on each side of height and width.
        dilation: The distance between two elements of the kernel, in pixels.
        groups: In how many independent groups the channels are divided.
        silu: Whether `x * sigmoid(x)` follows.

    Returns:
        A new tensor with the dtype and device of `x` (under autocast, with its dtype), in `torch.channels_last` where
            `x` or `weight` is.

    Raises:
        TypeError: If `stride`, `padding` or `dilation` are not one or two whole numbers.
        ValueError: If `add` or `residual` have another shape than the result has.
        RuntimeError: If the shapes of the others, or dtypes or devices disagree, as from torch.
    """
    steps, pads, gaps = _pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation)
    if is_autocast(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = (x, weight, bias, add, residual)
        if not native.has_kernel("conv2d", dtype) or not all(t is None or _may_cast(t) for t in tensors):
            return _portable(*tensors, steps, pads, gaps, groups, silu)
        x, weight = x.to(dtype), weight.to(dtype)
        bias, add, residual = (None if tensor is None else tensor.to(dtype) for tensor in (bias, add, residual))
    if not _has_kernel(x, weight, bias, add, residual) or is_transformed():
        return _portable(x, weight, bias, add, residual, steps, pads, gaps, groups, silu)
    shape = _result_shape(x, weight, bias, steps, pads, gaps, groups)
    if shape is None:
        return _portable(x, weight, bias, add, residual, steps, pads, gaps, groups, silu)
    _check_additions(shape, add, residual)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and requires_grad(x, weight, bias, add, residual)):
        return _OPERATOR(x, weight, bias, add, residual, steps, pads, gaps, groups, silu)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(x, weight, bias, add, residual, steps, pads, gaps, groups, silu)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    try:
        numbers = [index(each) for each in value] if isinstance(value, Sequence) else [index(value)]
    except TypeError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise TypeError(f"conv2d: {name} must be one or two whole numbers, got {value!r}")
    return numbers[0], numbers[-1]


def _may_cast(x: Tensor) -> bool:
    """Whether autocast casts a tensor, and a kernel may take the result."""
    return x.is_cpu and type(x) in _PLAIN and x.is_floating_point() and x.dtype != torch.float64


def _result_shape(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, ...] | None:
    """Give the shape of the result, or None for arguments that disagree, of which torch says how."""
    if x.dim() != 4 or weight.dim() != 4 or groups < 1:
        return None
    batch, channels, *sides = x.shape
    out_channels, depth, *kernel = weight.shape
    if 0 in (channels, out_channels, *sides, *kernel):
        return None
    if channels != depth * groups or out_channels % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    shape = [batch, out_channels]
    for side, size, step, pad, gap in zip(sides, kernel, stride, padding, dilation, strict=True):
        room = side + 2 * pad - gap * (size - 1) - 1
        if room < 0 or step < 1 or not 0 <= pad < _TOO_FAR or not 1 <= gap < _TOO_FAR:
            return None
        shape.append(room // step + 1)
    return tuple(shape)


def _has_kernel(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel takes the tensors; torch's functions take dtypes that differ, too."""
    if not x.is_cpu or type(x) not in _PLAIN or not native.has_kernel("conv2d", x.dtype):
        return False
    return all(
        other is None or (other.dtype == x.dtype and other.is_cpu and type(other) in _PLAIN)
        for other in (weight, *others)
    )


@register_portable("conv2d")
def _portable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    silu: bool = False,
) -> Tensor:
    y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    if (add is not None or residual is not None) and x.dim() != 4:
        raise ValueError(f"conv2d: x must be a batch of images, got {tuple(x.shape)}")
    _check_additions(y.shape, add, residual)
    if add is not None:
        y = y + add[:, :, None, None].to(y.dtype)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return F.silu(y) if silu else y


def _check_additions(shape: Sequence[int], add: Tensor | None, residual: Tensor | None) -> None:
    for name, value, expected in (("add", add, shape[:2]), ("residual", residual, shape)):
        if value is not None and tuple(value.shape) != tuple(expected):
            raise ValueError(f"conv2d: {name} must be {tuple(expected)}, got {tuple(value.shape)}")


@torch.library.register_fake("refiners::conv2d", lib=LIBRARY)
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    silu: bool = False,
) -> Tensor:
    """Give the shape and the memory format that torch gives."""
    return torch.empty_like(F.conv2d(x, weight, None, tuple(stride), tuple(padding), tuple(dilation), groups))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    defaults = (None, None, None, None, None, (1, 1), (0, 0), (1, 1), 1, False)
    x, weight, bias, add, residual, *ctx.geometry, ctx.silu = (*inputs, *defaults[len(inputs) :])
    # Where nothing is computed again, the gradient of the input is made of the weight alone.
    is_input_needed = ctx.silu or ctx.needs_input_grad[1]
    ctx.shape, ctx.dtype = inputs[0].shape, inputs[0].dtype
    saved = (bias, add, residual) if ctx.silu else (None, None, None)
    ctx.save_for_backward(x if is_input_needed else None, weight, *saved)
    ctx.arguments = len(inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Give the gradients in differentiable functions, in float32 at least, where 16 bits are not slow."""
    x, weight, bias, add, residual = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.geometry
    dtype, wide = ctx.dtype, torch.promote_types(ctx.dtype, torch.float32)
    x = grad.new_empty(1, dtype=dtype).expand(ctx.shape) if x is None else x  # only its shape is read
    needs_x, needs_weight, *needs_others = [*ctx.needs_input_grad, False, False, False]
    needs_bias, needs_add, needs_residual = needs_others[:3]
    with torch.autocast(grad.device.type, enabled=False):  # what was saved has been cast already
        x, weight, grad = x.to(wide), weight.to(wide), grad.to(wide)
        if ctx.silu:
            others = [None if t is None else t.to(wide) for t in (bias, add, residual)]
            y = _OPERATOR(x, weight, *others, stride, padding, dilation, groups)
            sigmoid = y.sigmoid()
            grad = grad * sigmoid * (1 + y * (1 - sigmoid))
        grads: list[Tensor | None] = [None, None, None]
        if needs_x or needs_weight:
            mask = [needs_x, needs_weight, False]
            grads = list(
                torch.ops.aten.convolution_backward(
                    grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
                )
            )
        grads[2] = grad.sum((0, 2, 3)) if needs_bias else None
        grads.append(grad.sum((2, 3)) if needs_add else None)
        grads.append(grad if needs_residual else None)
    given = [None if value is None else value.to(dtype) for value in grads]
    return (*given, None, None, None, None, None)[: ctx.arguments]


torch.library.register_autograd("refiners::conv2d", _backward, setup_context=_save_for_backward, lib=LIBRARY)


@counts_flops("conv2d")
def _flops(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])
