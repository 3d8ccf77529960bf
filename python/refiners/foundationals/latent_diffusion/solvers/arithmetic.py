"""Sums of tensors with numbers as factors."""

from __future__ import annotations

import torch
from torch import Tensor, dtype as DType


def wide(*tensors: Tensor) -> DType:
    """Give the dtype to compute in: float64 if one of the tensors has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def combine(*terms: tuple[float, Tensor], dtype: DType | None = None) -> Tensor:
    """Sum tensors times numbers: `a·x + b·y + ...`, rounded once.

    It is one call of torch per term, plus two for 16 bits. Terms with the factor 0 are not looked at.

    Args:
        terms: The factors and the tensors, of one shape.
        dtype: The dtype of the result (default: that of the first tensor).

    Returns:
        A new tensor.
    """
    first = terms[0][1]
    terms = tuple(term for term in terms if term[0] != 0)
    dtype = dtype or first.dtype
    if not terms:
        return torch.zeros_like(first, dtype=dtype)
    factor, tensor = terms[0]
    total = tensor.to(wide(*(tensor for _, tensor in terms)))
    if factor != 1:
        total = total * factor
    for factor, term in terms[1:]:
        total = torch.add(total, term, alpha=factor)
    total = total.to(dtype)
    return total.clone() if total is tensor else total
