"""What updates ask of the names and multipliers that they are given."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from refiners.fluxion.adapters.lora.region import Region
from refiners.ops.transforms import is_transformed


def check_name(name: object) -> None:
    """Raise `TypeError` unless the name of updates is a text that is not empty."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a text that is not empty, got {name!r}")


def check_scale(name: str, scale: object) -> None:
    """Raise unless the scale of a LoRA is a finite number or a tensor; one on another device than the CPU is not read.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is infinite, or no number.
    """
    if isinstance(scale, Tensor):
        is_known = scale.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed()
        if is_known and not bool(torch.isfinite(scale).all()):
            raise ValueError(f"the scale of {name!r} must be finite, got {scale}")
    elif isinstance(scale, Region):
        return  # it was checked when it was made
    elif isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"the scale of {name!r} must be a number or a tensor, got {type(scale).__name__}")
    elif not math.isfinite(scale):
        raise ValueError(f"the scale of {name!r} must be finite, got {scale}")
