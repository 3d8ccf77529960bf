"""Attention by torch's own functions: on any device, in any dtype."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def portable(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    is_causal: bool = False,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    row_bias: Tensor | None = None,
    column_bias: Tensor | None = None,
    second_key: Tensor | None = None,
    second_value: Tensor | None = None,
    second_scale: Tensor | None = None,
    second_mask: Tensor | None = None,
) -> Tensor:
    """Compute the operator by torch's fused function, one call for each set of keys."""
    q, k, v = (split_heads(x, num_heads) for x in (query, key, value))
    if row_bias is not None and column_bias is not None:
        merged = _merge(mask, bias, is_causal, q, k)
        y = _attend_on_grid(q, k, v, merged, scale, row_bias, column_bias)
    elif mask is None and bias is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=_merge(mask, bias, is_causal, q, k), scale=scale)
    if second_key is not None and second_value is not None:
        k, v = split_heads(second_key, num_heads), split_heads(second_value, num_heads)
        merged = None if second_mask is None else in_four_dimensions(second_mask, q)
        second = F.scaled_dot_product_attention(q, k, v, attn_mask=merged, scale=scale)
        if second_scale is not None:
            second = second * second_scale.to(second.dtype).reshape(-1, 1, 1, 1)
        y = y + second
    return y.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Give a view [batch, heads, tokens, features of a head]."""
    return torch.unflatten(x, -1, (num_heads, x.shape[-1] // num_heads)).transpose(1, 2)


def in_four_dimensions(bias: Tensor, query: Tensor) -> Tensor:
    """Give a bias that is broadcastable to the scores, with its samples repeated where the batch is a multiple."""
    bias = bias.reshape(*[1] * (4 - bias.dim()), *bias.shape)
    samples, batch = bias.shape[0], query.shape[0]
    return bias if samples in (1, batch) else bias.repeat(batch // samples, 1, 1, 1)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Tell which keys each query sees where it sees those up to itself."""
    return torch.arange(keys, device=device) <= torch.arange(queries, device=device).unsqueeze(1)


def _merge(mask: Tensor | None, bias: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    seen = [causal_mask(query.shape[2], key.shape[2], query.device)] * is_causal
    added: list[Tensor] = []
    for given in (mask, bias):
        if given is not None:
            (seen if given.dtype == torch.bool else added).append(in_four_dimensions(given, query))
    merged = seen[0] if seen else None
    for other in seen[1:]:
        merged = other if merged is None else merged & other
    if not added:
        return merged
    total = sum(added[1:], added[0])
    return total if merged is None else torch.where(merged, total, -math.inf)


def _attend_on_grid(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    row_bias: Tensor,
    column_bias: Tensor,
) -> Tensor:
    """Fold the biases into the features, exactly: those of a query times unit vectors, for a key's row and column."""
    features, value_features = query.shape[-1], value.shape[-1]
    rows, columns = row_bias.shape[-1], column_bias.shape[-1]
    factor = 1 / math.sqrt(features) if scale is None else scale
    biases = [in_four_dimensions(x, query).expand(*query.shape[:3], -1) for x in (row_bias, column_bias)]
    token = torch.arange(rows * columns, device=query.device)
    units = [F.one_hot(token // columns, rows), F.one_hot(token % columns, columns)]
    units = [unit.to(key.dtype).expand(*key.shape[:3], -1) for unit in units]
    q, k = torch.cat([query * factor, *biases], dim=-1), torch.cat([key, *units], dim=-1)
    width = max(q.shape[-1], value_features)  # torch's fused functions want one width
    q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)[..., :value_features]
