"""A sum of tensors times numbers, in one pass over memory: what a step of a diffusion solver is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, dtype as DType

from refiners.ops.library import LIBRARY, native
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_transformed, requires_grad

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_ARGUMENTS = "(Tensor[] tensors, float[] factors, ScalarType? dtype=None)"
LIBRARY.define(f"weighted_sum{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"_weighted_sum_portable{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners.weighted_sum.default


def weighted_sum(
    tensors: Sequence[Float[Tensor, "*shape"]], factors: Sequence[float], dtype: DType | None = None
) -> Float[Tensor, "*shape"]:
    """Sum tensors times numbers: `Σᵢ factors[i] · tensors[i]`.

    Computed in float32, or in float64 if a tensor has it, and rounded once. Kernels take up to six terms of float32,
    bfloat16 and float16, also mixed, and read and write memory once; the factors travel with the call, so that a GPU is
    not waited for. Differentiable in the tensors, any number of times.

    Args:
        tensors: The tensors, of one shape and on one device. Those with the factor 0 are not looked at: a NaN in them
            stays there.
        factors: A number for each.
        dtype: The dtype of the result (default: that of the first tensor).

    Returns:
        A new tensor, in memory format like the first one.

    Raises:
        ValueError: If there is no tensor, the numbers of tensors and factors differ, or shapes or devices do.
        TypeError: If a dtype is not a floating one.
    """
    _check(tensors, factors, dtype)
    if not _has_kernel(tensors, dtype) or is_transformed():
        return _portable(tensors, factors, dtype)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and requires_grad(*tensors)):
        return _OPERATOR(tensors, factors, dtype)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as the sum, also where none is recorded
        return _OPERATOR(tensors, factors, dtype)


def _check(tensors: Sequence[Tensor], factors: Sequence[float], dtype: DType | None) -> None:
    if not tensors:
        raise ValueError("weighted_sum: tensors must not be empty")
    if len(factors) != len(tensors):
        raise ValueError(
            f"weighted_sum: factors must be {len(tensors)} numbers, one for each tensor, got {len(factors)}"
        )
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"weighted_sum: dtype must be a floating one, got {dtype}")
    first = tensors[0]
    for i, tensor in enumerate(tensors):
        if not tensor.is_floating_point():
            raise TypeError(f"weighted_sum: tensors[{i}] must have a floating dtype, got {tensor.dtype}")
        if tensor.shape != first.shape:
            shapes = f"{tuple(first.shape)}, got {tuple(tensor.shape)}"
            raise ValueError(f"weighted_sum: tensors[{i}] must have the shape of the first, {shapes}")
        if tensor.device != first.device:
            raise ValueError(
                f"weighted_sum: tensors[{i}] must be on the device of the first, {first.device}, got {tensor.device}"
            )


def _has_kernel(tensors: Sequence[Tensor], dtype: DType | None) -> bool:
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.is_nested:
            return False
        if not native.has_kernel_on("weighted_sum", tensor.dtype, tensor.device.type):
            return False
    return dtype is None or native.has_kernel_on("weighted_sum", dtype, tensors[0].device.type)


@register_portable("weighted_sum")
def _portable(tensors: Sequence[Tensor], factors: Sequence[float], dtype: DType | None = None) -> Tensor:
    first = tensors[0]
    dtype = dtype or first.dtype
    terms = [(factor, tensor) for factor, tensor in zip(factors, tensors, strict=True) if factor != 0]
    if not terms:
        return torch.zeros_like(first, dtype=dtype)
    factor, tensor = terms[0]
    total = tensor.to(torch.float64 if any(term.dtype == torch.float64 for _, term in terms) else torch.float32)
    if factor != 1:
        total = total * factor
    for factor, term in terms[1:]:
        total = torch.add(total, term, alpha=factor)
    if tensor is not first:  # whose order in memory the result has
        return torch.empty_like(first, dtype=dtype).copy_(total)
    total = total.to(dtype)
    return total.clone() if total is tensor else total


@torch.library.register_fake("refiners::weighted_sum", lib=LIBRARY)
def _fake(tensors: Sequence[Tensor], factors: Sequence[float], dtype: DType | None = None) -> Tensor:
    return torch.empty_like(tensors[0], dtype=dtype)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, factors, *_ = inputs
    ctx.factors = list(factors)
    ctx.dtypes = [tensor.dtype for tensor in tensors]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads = [
        _OPERATOR([grad], [factor], dtype) if is_needed else None
        for factor, dtype, is_needed in zip(ctx.factors, ctx.dtypes, ctx.needs_input_grad[0], strict=True)
    ]
    return (grads, None, None)[: len(ctx.needs_input_grad)]  # the dispatcher drops a `dtype` that is None


torch.library.register_autograd("refiners::weighted_sum", _backward, setup_context=_save_for_backward, lib=LIBRARY)
