"""The gradients of `attention`: only the inputs are saved; the scores are computed again, some queries at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refiners.ops.attention_portable import causal_mask, in_four_dimensions, split_heads

_DEFAULTS = (False, None, None, None, None, None, None, None, None, None)
_TENSORS = (0, 1, 2, 5, 6, 8, 9, 10, 11, 12, 13)  # where they stand among the arguments
_SCORES = 1 << 20  # at a time: 4 MiB, of the cache


class _Bias(NamedTuple):
    """What is added to scores: for each key (`summed` None), or for each row (-1) or column (-2) of a grid of keys."""

    place: int  # in _TENSORS
    values: Tensor
    summed: int | None = None


class _Set(NamedTuple):
    """A set of keys and values in the dtype of the computation, by heads, and what is done with it."""

    key: Tensor
    value: Tensor
    biases: Sequence[_Bias]
    grid: tuple[int, int] = (1, 1)  # rows and columns of the keys
    is_causal: bool = False
    factor: Tensor | None = None  # of the result


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep the inputs."""
    arguments = (*inputs, *_DEFAULTS[len(inputs) - 4 :])
    ctx.save_for_backward(*(arguments[i] for i in _TENSORS))
    ctx.num_heads, ctx.is_causal, ctx.scale = arguments[3], arguments[4], arguments[7]


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Give the gradients in differentiable functions, in float32 at least.

    With P = softmax(S), Y = P V and the gradient dY: dV = Pᵀ dY, dP = dY Vᵀ, dS = P ∘ (dP - rowsum(dP ∘ P)).
    """
    saved: tuple[Tensor | None, ...] = ctx.saved_tensors
    needs = [index < len(ctx.needs_input_grad) and ctx.needs_input_grad[index] for index in _TENSORS]
    query, wide = saved[0], torch.promote_types(grad.dtype, torch.float32)
    assert query is not None
    grads: list[Tensor | None] = [None] * len(saved)
    with torch.autocast(grad.device.type, enabled=False):  # what was saved has been cast already
        q, dy = _by_heads(query, ctx, wide), _by_heads(grad, ctx, wide)
        scale = 1 / math.sqrt(q.shape[-1]) if ctx.scale is None else ctx.scale
        for index, one in _sets(ctx, saved, wide):
            _differentiate(q, one, scale, dy, index, needs, grads)
    results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    for index, needed, given, gradient in zip(_TENSORS, needs, saved, grads, strict=True):
        if needed and given is not None and gradient is not None:
            if index < 3 or index in (10, 11):
                gradient = gradient.transpose(1, 2).flatten(2)
            results[index] = gradient.reshape(given.shape).to(given.dtype)
    return tuple(results)


def _by_heads(x: Tensor | None, ctx: Any, dtype: torch.dtype) -> Tensor:
    assert x is not None
    return split_heads(x.to(dtype), ctx.num_heads)


def _sets(ctx: Any, saved: Sequence[Tensor | None], wide: torch.dtype) -> list[tuple[int, _Set]]:
    """Give the sets of keys, with the place of their keys in `saved`."""

    def bias(index: int, summed: int | None = None) -> list[_Bias]:
        given = saved[index]
        if given is None:
            return []
        four = given.reshape(*[1] * (4 - given.dim()), *given.shape)
        return [_Bias(index, four if four.dtype == torch.bool else four.to(wide), summed)]

    row, column = saved[5], saved[6]
    grid = (1, 1) if row is None or column is None else (row.shape[-1], column.shape[-1])
    biases = [*bias(3), *bias(4), *bias(5, -1), *bias(6, -2)]
    key, value = (_by_heads(x, ctx, wide) for x in saved[1:3])
    sets = [(1, _Set(key, value, biases, grid, ctx.is_causal))]
    if saved[7] is not None:
        key, value = (_by_heads(x, ctx, wide) for x in saved[7:9])
        factor = None if saved[9] is None else saved[9].to(wide).reshape(-1, 1, 1, 1)
        sets.append((7, _Set(key, value, bias(10), factor=factor)))
    return sets


def _differentiate(
    query: Tensor, one: _Set, scale: float, dy: Tensor, index: int, needs: Sequence[bool], grads: list[Tensor | None]
) -> None:
    """Add the gradients of one set to `grads`, some queries at a time."""
    queries, keys = query.shape[2], one.key.shape[2]
    step = queries
    if isinstance(queries, int) and isinstance(keys, int):  # else the compiler looks on: the same for all sizes
        step = max(1, _SCORES // max(1, query.shape[0] * query.shape[1] * keys))
    parts: list[list[Tensor | None]] = []
    for start in range(0, queries, step) if step != queries else (0,):
        part = slice(start, start + step)
        parts.append(_differentiate_part(query[:, :, part], one, scale, dy[:, :, part], start, index, needs))
    for place in range(len(grads)):
        found = [gradient for part in parts if (gradient := part[place]) is not None]
        if not found:
            continue
        whole = _join(found, along_queries=place == 0 or _has_queries(one, place))
        before = grads[place]
        grads[place] = whole if before is None else before + whole


def _join(parts: Sequence[Tensor], along_queries: bool) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts), dim=2) if along_queries else torch.stack(list(parts)).sum(0)


def _has_queries(one: _Set, place: int) -> bool:
    return any(bias.place == place and bias.values.shape[2] != 1 for bias in one.biases)


def _differentiate_part(
    query: Tensor, one: _Set, scale: float, dy: Tensor, start: int, index: int, needs: Sequence[bool]
) -> list[Tensor | None]:
    grads: list[Tensor | None] = [None] * len(_TENSORS)
    queries = query.shape[2]
    scores = query @ one.key.transpose(2, 3) * scale
    if one.is_causal:
        seen = causal_mask(start + queries, one.key.shape[2], query.device)[start:]
        scores = scores.masked_fill(~seen, -math.inf)
    for bias in one.biases:
        values = bias.values if bias.values.shape[2] == 1 else bias.values[:, :, start : start + queries]
        scores = _add(scores, in_four_dimensions(values, query), bias.summed, one.grid)
    weights = _softmax(scores, may_be_empty=bool(one.biases))
    to_weights = dy @ one.value.transpose(2, 3)
    dot = (to_weights * weights).sum(-1, keepdim=True)
    to_scores = weights * (to_weights - dot)
    if one.factor is not None:
        if needs[9]:
            grads[9] = dot.sum_to_size(one.factor.shape)
        to_scores, dy = to_scores * one.factor, dy * one.factor
    if needs[0]:
        grads[0] = to_scores @ one.key * scale
    if needs[index]:
        grads[index] = to_scores.transpose(2, 3) @ query * scale
    if needs[index + 1]:
        grads[index + 1] = weights.transpose(2, 3) @ dy
    for bias in one.biases:
        if needs[bias.place]:
            grads[bias.place] = _reduce(to_scores, bias, one.grid)
    return grads


def _add(scores: Tensor, values: Tensor, summed: int | None, grid: tuple[int, int]) -> Tensor:
    if values.dtype == torch.bool:
        return scores.masked_fill(~values, -math.inf)
    if summed is None:
        return scores + values
    return (torch.unflatten(scores, -1, grid) + values.unsqueeze(summed)).flatten(-2)


def _softmax(scores: Tensor, may_be_empty: bool) -> Tensor:
    """Give the weights, all 0 where every score is -∞."""
    if not may_be_empty:
        return scores.softmax(-1)
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def _reduce(to_scores: Tensor, bias: _Bias, grid: tuple[int, int]) -> Tensor:
    """Sum over what was broadcast."""
    if bias.summed is not None:
        to_scores = torch.unflatten(to_scores, -1, grid).sum(bias.summed)
    samples, heads, queries, last = bias.values.shape
    to_scores = torch.unflatten(to_scores, 0, (-1, samples)).sum(0)
    return to_scores.sum_to_size(samples, heads, min(queries, to_scores.shape[2]), last)
