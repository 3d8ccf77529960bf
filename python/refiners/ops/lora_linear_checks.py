"""What `lora_linear` accepts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def padded_rank(ups: Sequence[Tensor]) -> int:
    """Give the columns that a block adds to the weight: the sum of the ranks, rounded up to 8 for aligned rows."""
    return -(-sum(up.shape[1] for up in ups) // 8) * 8


def check_lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: Tensor,
    block: Tensor | None,
) -> None:
    """Raise where the arguments of `lora_linear` disagree, and name the one that does."""
    dtype, device, shape = x.dtype, x.device, x.shape
    if not dtype.is_floating_point:
        raise TypeError(f"lora_linear: x must be of a floating dtype, got {dtype}")
    if not shape:
        raise ValueError("lora_linear: x must have at least one dimension, got shape ()")
    if weight.dim() != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(f"lora_linear: weight must be (out_features, {shape[-1]}), got {tuple(weight.shape)}")
    if len(downs) != len(ups):
        raise ValueError(f"lora_linear: ups must be as many as downs ({len(downs)}), got {len(ups)}")
    out_features, in_features = weight.shape
    _check("weight", weight, (out_features, in_features), dtype, device)
    if bias is not None:
        _check("bias", bias, (out_features,), dtype, device)
    for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
        rank = down.shape[0] if down.dim() == 2 else "rank"
        _check(f"downs[{i}]", down, (rank, in_features), dtype, device)
        _check(f"ups[{i}]", up, (out_features, rank), dtype, device)
    _check_scale(scale, len(downs), x)
    if block is not None:
        _check("block", block, (out_features, in_features + padded_rank(ups)), dtype, device)


def _check_scale(scale: Tensor, adapters: int, x: Tensor) -> None:
    if not scale.is_floating_point():
        raise TypeError(f"lora_linear: scale must be of a floating dtype, got {scale.dtype}")
    if scale.device != x.device:
        raise ValueError(f"lora_linear: scale must be on {x.device}, the device of x, got {scale.device}")
    shape, full = scale.shape, (adapters, *x.shape[:-1])
    if not shape or len(shape) > len(full) or tuple(shape) != full[: len(shape)]:
        allowed = " or ".join(str(full[:size]) for size in range(1, len(full) + 1))
        raise ValueError(f"lora_linear: scale must be {allowed}, got {tuple(shape)}")


def _check(name: str, value: Tensor, shape: tuple[int | str, ...], dtype: torch.dtype, device: torch.device) -> None:
    if value.shape != shape:
        expected = str(shape).replace("'", "")
        raise ValueError(f"lora_linear: {name} must be {expected}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise TypeError(f"lora_linear: {name} must be {dtype}, the dtype of x, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"lora_linear: {name} must be on {device}, the device of x, got {value.device}")
