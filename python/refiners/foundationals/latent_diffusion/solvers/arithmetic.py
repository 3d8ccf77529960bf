"""The dtype that sums are kept in from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, dtype as DType


def wide(*tensors: Tensor) -> DType:
    """Give the dtype to compute in: float64 if one of the tensors has it, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
