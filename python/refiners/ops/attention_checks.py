"""What `attention` refuses, and in which words."""

from __future__ import annotations

import torch
from torch import Tensor


def check_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    row_bias: Tensor | None,
    column_bias: Tensor | None,
    second_key: Tensor | None,
    second_value: Tensor | None,
    second_scale: Tensor | None,
    second_mask: Tensor | None,
    num_heads: int,
) -> None:
    """Raise `ValueError` or `TypeError` unless all shapes, dtypes and devices agree."""
    if num_heads < 1:
        raise ValueError(f"attention: num_heads must be at least 1, got {num_heads}")
    if query.dim() != 3:
        raise ValueError(f"attention: query must be (batch, queries, features), got {tuple(query.shape)}")
    if not query.is_floating_point():
        raise TypeError(f"attention: query must be floating, got {query.dtype}")
    batch, queries, features = query.shape
    _check_tokens(query, "query", query, num_heads, features=features)
    _check_tokens(query, "key", key, num_heads, features=features)
    keys = key.shape[1]
    _check_tokens(query, "value", value, num_heads, tokens=keys)
    scores = (batch, num_heads, queries, keys)
    _check_bias(query, "mask", mask, scores, may_be_bool=True)
    _check_bias(query, "bias", bias, scores)
    _check_grid(query, row_bias, column_bias, scores)
    if second_key is None or second_value is None:
        for name, given in (("second_key", second_key), ("second_value", second_value)):
            if given is not None:
                raise ValueError(f"attention: {name} needs the other of second_key and second_value")
        for name, given in (("second_scale", second_scale), ("second_mask", second_mask)):
            if given is not None:
                raise ValueError(f"attention: {name} needs second_key and second_value")
        return
    _check_tokens(query, "second_key", second_key, num_heads, features=features)
    second_keys = second_key.shape[1]
    _check_tokens(query, "second_value", second_value, num_heads, tokens=second_keys, features=value.shape[2])
    _check_bias(query, "second_mask", second_mask, (batch, num_heads, queries, second_keys), may_be_bool=True)
    _check_second_scale(query, second_scale)


def _check_tokens(
    query: Tensor, name: str, x: Tensor, num_heads: int, tokens: int | None = None, features: int | None = None
) -> None:
    batch = query.shape[0]
    if x.dim() != 3 or x.shape[0] != batch or tokens not in (None, x.shape[1]) or features not in (None, x.shape[2]):
        expected = f"({batch}, {'*' if tokens is None else tokens}, {'*' if features is None else features})"
        raise ValueError(f"attention: {name} must be {expected}, got {tuple(x.shape)}")
    if x.shape[2] % num_heads:
        raise ValueError(f"attention: num_heads must divide the {x.shape[2]} features of {name}, got {num_heads}")
    _check_kind(query, name, x)


def _check_kind(query: Tensor, name: str, x: Tensor, may_be_bool: bool = False) -> None:
    if x.dtype != query.dtype and not (may_be_bool and x.dtype == torch.bool):
        expected = f"torch.bool or {query.dtype}" if may_be_bool else f"{query.dtype}"
        raise TypeError(f"attention: {name} must be {expected}, got {x.dtype}")
    if x.device != query.device:
        raise ValueError(f"attention: {name} must be on {query.device}, got {x.device}")


def _check_bias(
    query: Tensor, name: str, bias: Tensor | None, scores: tuple[int, int, int, int], may_be_bool: bool = False
) -> None:
    if bias is None:
        return
    fits = bias.dim() <= 4
    for position, (size, whole) in enumerate(zip(reversed(bias.shape), reversed(scores))):
        divides = position == 3 and size > 0 and whole % size == 0
        fits = fits and (size in (1, whole) or divides)
    if not fits:
        raise ValueError(f"attention: {name} must be broadcastable to {scores}, got {tuple(bias.shape)}")
    _check_kind(query, name, bias, may_be_bool)


def _check_grid(
    query: Tensor, row_bias: Tensor | None, column_bias: Tensor | None, scores: tuple[int, int, int, int]
) -> None:
    if row_bias is None and column_bias is None:
        return
    if row_bias is None or column_bias is None:
        name = "column_bias" if row_bias is None else "row_bias"
        raise ValueError(f"attention: {name} needs the other of row_bias and column_bias")
    *lead, keys = scores
    for name, bias in (("row_bias", row_bias), ("column_bias", column_bias)):
        if bias.dim() != 4:
            raise ValueError(f"attention: {name} must have 4 dimensions, got {tuple(bias.shape)}")
        _check_bias(query, name, bias, (lead[0], lead[1], lead[2], bias.shape[3]))
    rows, columns = row_bias.shape[3], column_bias.shape[3]
    if rows * columns != keys:
        raise ValueError(f"attention: row_bias and column_bias must be of {keys} keys in all, got {rows} * {columns}")


def _check_second_scale(query: Tensor, second_scale: Tensor | None) -> None:
    if second_scale is None:
        return
    if not second_scale.is_floating_point():
        raise TypeError(f"attention: second_scale must be floating, got {second_scale.dtype}")
    batch = query.shape[0]
    if second_scale.shape not in ((), (1,), (batch,)):
        raise ValueError(f"attention: second_scale must be () or ({batch},), got {tuple(second_scale.shape)}")
    if second_scale.device != query.device:
        raise ValueError(f"attention: second_scale must be on {query.device}, got {second_scale.device}")
