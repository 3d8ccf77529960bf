"""Where plain attention is better left to torch's fused function."""

from __future__ import annotations

import torch
from torch import Tensor

from refiners.ops.library import native
from refiners.ops.transforms import is_autocast

_PLAIN = (Tensor, torch.nn.Parameter)


SMALLEST = 1 << 21  # products of queries and keys: with fewer, what a call costs in Python is more than what it saves


def choose_attention(isa: str, dtype: torch.dtype, is_recorded: bool, products: int = SMALLEST) -> tuple[bool, str]:
    """Tell whether the kernels of attention are faster than torch's function, as measured, and why.

    Args:
        isa: The instruction set that kernels use.
        dtype: The dtype of the queries.
        is_recorded: Whether a gradient is recorded.
        products: How many numbers are multiplied for the scores.
    """
    if isa != "avx2":
        return False, "torch's function: the kernels were measured with AVX2 only"
    if dtype == torch.float32 and is_recorded:
        return False, "torch's function: it keeps what the gradient needs"
    if products < SMALLEST:
        return False, "torch's function: there is too little to gain"
    return True, "the kernels: faster with AVX2"


def is_faster_than_torch(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` takes these tensors, and is faster than torch's function without biases."""
    tensors = (query, key, value)
    if not query.is_cpu or not all(type(x) in _PLAIN and x.dtype == query.dtype for x in tensors):
        return False
    if key.shape[::2] != query.shape[::2] or value.shape[:2] != key.shape[:2]:
        return False  # of what disagrees torch says how, and what can be expanded it expands
    dtype = torch.get_autocast_dtype("cpu") if is_autocast(query) else query.dtype
    is_recorded = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if not native.has_kernel("attention", dtype):
        return False
    # a compiled graph serves all sizes, and pays for no Python
    products = SMALLEST if torch.compiler.is_compiling() else query.numel() * key.shape[1]
    return choose_attention(native.isa, dtype, is_recorded, products)[0]
