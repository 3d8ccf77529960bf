"""A linear layer in 16 bits, fast on CPUs that have no instructions for them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.flops import Shape, counts_flops
from refiners.ops.library import LIBRARY, native
from refiners.ops.transforms import is_autocast, is_transformed, requires_grad

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_PLAIN = (Tensor, torch.nn.Parameter)  # other classes may have a linear layer of their own
_SHORT_DTYPES = (torch.bfloat16, torch.float16)
LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor")
_OPERATOR = torch.ops.refiners.linear.default


def linear(
    x: Float[Tensor, "*batch in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, "out_features"] | None = None,
) -> Float[Tensor, "*batch out_features"]:
    """Compute `x @ weight.T + bias`, as `torch.nn.functional.linear`, which it calls wherever that is fast.

    Without instructions for bfloat16 or float16 torch multiplies numbers of these types several times slower than
    those of float32. There own kernels widen them on their way into the cache, sum in float32 and round once.
    Differentiable in all arguments, any number of times.

    Args:
        x: The input.
        weight: The weight.
        bias: The bias, if any.

    Returns:
        A new tensor with the dtype and device of `x` (under autocast, with its dtype).

    Raises:
        RuntimeError: If shapes, dtypes or devices disagree, as from torch.
    """
    if is_autocast(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        if not _has_kernel(dtype, x) or type(weight) not in _PLAIN:
            return F.linear(x, weight, bias)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    elif not _has_kernel(x.dtype, x) or type(weight) not in _PLAIN:
        return F.linear(x, weight, bias)
    if is_transformed() or _disagree(x, weight, bias):
        return F.linear(x, weight, bias)  # of arguments that disagree torch says how
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and requires_grad(x, weight, bias)):
        return _OPERATOR(x, weight, bias)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(x, weight, bias)


def _has_kernel(dtype: torch.dtype, x: Tensor) -> bool:
    return (
        dtype in _SHORT_DTYPES
        and x.is_cpu
        and type(x) in _PLAIN
        and not x.is_nested
        and native.has_kernel("linear", dtype)
    )


def _disagree(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if weight.dtype != x.dtype or weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        return True
    return bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1])


@torch.library.impl(LIBRARY, "linear", "CompositeExplicitAutograd")  # any device without a kernel of its own
def _portable(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


@torch.library.register_fake("refiners::linear", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *_ = inputs
    needs_x, needs_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)  # each is for the other's gradient


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, *needs_bias = ctx.needs_input_grad
    with torch.autocast(grad.device.type, enabled=False):  # what was saved has been cast already
        grad_x = _OPERATOR(grad, weight.t()) if needs_x else None
        grad_weight = _OPERATOR(_rows(grad).t(), _rows(x).t()) if needs_weight else None
        grad_bias = _rows(grad).sum(0) if needs_bias and needs_bias[0] else None
    return (grad_x, grad_weight, grad_bias)[: len(ctx.needs_input_grad)]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


torch.library.register_autograd("refiners::linear", _backward, setup_context=_save_for_backward, lib=LIBRARY)


@counts_flops("linear")
def _flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]
