"""A gated linear unit whose gate is the Gaussian error linear unit, in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from refiners.ops.library import LIBRARY, native
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_transformed

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
LIBRARY.define("geglu(Tensor x, bool tanh=False) -> Tensor")
LIBRARY.define("_geglu_portable(Tensor x, bool tanh=False) -> Tensor")
_OPERATOR = torch.ops.refiners.geglu.default


def geglu(x: Float[Tensor, "*batch features"], tanh: bool = False) -> Float[Tensor, "*batch features//2"]:
    """Multiply the first half of the features by the GeLU of the second half.

    See [[arXiv:2002.05202] GLU Variants Improve Transformer](https://arxiv.org/abs/2002.05202), equation 6. Kernels
    compute in float32 and round once. Differentiable, any number of times.

    Args:
        x: The features and their gates, one after the other.
        tanh: Whether to approximate the GeLU by `0.5 * x * (1 + tanh(√(2 / π) * (x + 0.044715 * x³)))`.

    Returns:
        A new tensor with the dtype and device of `x`.

    Raises:
        ValueError: If the number of features is odd, or `x` has no dimension.
    """
    if x.dim() == 0 or x.shape[-1] % 2 != 0:
        raise ValueError(f"geglu: x must have an even number of features, got shape {tuple(x.shape)}")
    if not _has_kernel(x) or is_transformed():
        return _portable(x, tanh)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return _OPERATOR(x, tanh)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(x, tanh)


def _has_kernel(x: Tensor) -> bool:
    return x.is_cpu and type(x) is Tensor and not x.is_nested and native.has_kernel("geglu", x.dtype)


@register_portable("geglu")
def _portable(x: Tensor, tanh: bool = False) -> Tensor:
    values, gates = x.chunk(2, dim=-1)
    return values * F.gelu(gates, approximate=_approximate(tanh))


def _approximate(tanh: bool) -> str:
    return "tanh" if tanh else "none"


@torch.library.register_fake("refiners::geglu", lib=LIBRARY)
def _fake(x: Tensor, tanh: bool = False) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, *tanh = inputs
    ctx.save_for_backward(x)
    ctx.tanh = tanh == [True]
    ctx.arguments = len(inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    values, gates = x.chunk(2, dim=-1)
    approximate = _approximate(ctx.tanh)
    to_values = grad * F.gelu(gates, approximate=approximate)
    to_gates = torch.ops.aten.gelu_backward(grad * values, gates, approximate=approximate)
    return (torch.cat([to_values, to_gates], dim=-1), None)[: ctx.arguments]


torch.library.register_autograd("refiners::geglu", _backward, setup_context=_save_for_backward, lib=LIBRARY)
