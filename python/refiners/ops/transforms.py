"""What else may be looking at a computation: gradients, function transforms, and autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # one call, for the most frequent answer
_SEEN = ("cpu", "cuda", "xpu")  # the devices that it knows of
_functorch: Any = getattr(torch._C, "_functorch")  # noqa: B009 (unknown to type checkers)


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp, ...) or forward-mode differentiation follows what is computed now.

    They see through functions of torch, not through an operator with kernels of its own.
    """
    if torch.compiler.is_compiling():
        return False  # the compiler traces transforms itself
    level: int = getattr(forward_ad, "_current_level")  # noqa: B009 (of no known type)
    return level >= 0 or _functorch.peek_interpreter_stack() is not None


def is_autocast(x: Tensor) -> bool:
    """Whether autocast changes the dtype of products with `x`. It leaves float64 alone, and knows no meta tensors."""
    device = x.device.type
    if x.dtype == torch.float64 or (device in _SEEN and not _is_any_autocast_enabled()):
        return False
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def requires_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient of one of the tensors is wanted, where gradients are recorded."""
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)
