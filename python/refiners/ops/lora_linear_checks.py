"""What `lora_linear` accepts."""

from __future__ import annotations

from collections.abc import Sequence

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
    if not x.is_floating_point():
        raise TypeError(f"lora_linear: x must be of a floating dtype, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError("lora_linear: x must have at least one dimension, got shape ()")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"lora_linear: weight must be (out_features, {x.shape[-1]}), got {tuple(weight.shape)}")
    if len(downs) != len(ups):
        raise ValueError(f"lora_linear: ups must be as many as downs ({len(downs)}), got {len(ups)}")
    out_features, in_features = weight.shape
    _check_like("weight", weight, x)
    if bias is not None:
        _check("bias", bias, (out_features,), x)
    for i, (down, up) in enumerate(zip(downs, ups, strict=True)):
        if down.dim() != 2:
            raise ValueError(f"lora_linear: downs[{i}] must be (rank, {in_features}), got {tuple(down.shape)}")
        _check(f"downs[{i}]", down, (down.shape[0], in_features), x)
        _check(f"ups[{i}]", up, (out_features, down.shape[0]), x)
    _check_scale(scale, len(downs), x)
    if block is not None:
        _check("block", block, (out_features, in_features + padded_rank(ups)), x)


def _check_scale(scale: Tensor, adapters: int, x: Tensor) -> None:
    if not scale.is_floating_point():
        raise TypeError(f"lora_linear: scale must be of a floating dtype, got {scale.dtype}")
    if scale.device != x.device:
        raise ValueError(f"lora_linear: scale must be on {x.device}, the device of x, got {scale.device}")
    lead = scale.shape[1:]
    if scale.dim() < 1 or scale.shape[0] != adapters or len(lead) >= x.dim() or lead != x.shape[: len(lead)]:
        batch = "".join(f", {size}" for size in x.shape[:-1])
        expected = f"({adapters}{batch or ','}) or a beginning of it" if batch else f"({adapters},)"
        raise ValueError(f"lora_linear: scale must be {expected}, got {tuple(scale.shape)}")


def _check(name: str, value: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if value.shape != shape:
        raise ValueError(f"lora_linear: {name} must be {shape}, got {tuple(value.shape)}")
    _check_like(name, value, x)


def _check_like(name: str, value: Tensor, x: Tensor) -> None:
    if value.dtype != x.dtype:
        raise TypeError(f"lora_linear: {name} must be {x.dtype}, the dtype of x, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"lora_linear: {name} must be on {x.device}, the device of x, got {value.device}")
