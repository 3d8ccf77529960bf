"""Attention with all that models add to it: biases, relative positions, a second set of keys and values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refiners.ops.attention_backward import backward, save_for_backward
from refiners.ops.attention_checks import check_attention
from refiners.ops.attention_portable import portable
from refiners.ops.flops import Shape, counts_flops
from refiners.ops.library import LIBRARY, native
from refiners.ops.portable_path import register_portable
from refiners.ops.transforms import is_autocast, is_transformed

_BELOW_AUTOGRAD = torch._C._AutoDispatchBelowAutograd
_PLAIN = (Tensor, torch.nn.Parameter)  # other classes may have an attention of their own
_ARGUMENTS = (
    "(Tensor query, Tensor key, Tensor value, int num_heads, bool is_causal=False, Tensor? mask=None,"
    " Tensor? bias=None, float? scale=None, Tensor? row_bias=None, Tensor? column_bias=None,"
    " Tensor? second_key=None, Tensor? second_value=None, Tensor? second_scale=None, Tensor? second_mask=None)"
)
LIBRARY.define(f"attention{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"_attention_portable{_ARGUMENTS} -> Tensor")
_OPERATOR = torch.ops.refiners.attention.default


class _Tensors(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    bias: Tensor | None
    row_bias: Tensor | None
    column_bias: Tensor | None
    second_key: Tensor | None
    second_value: Tensor | None
    second_scale: Tensor | None
    second_mask: Tensor | None


def attention(
    query: Float[Tensor, "batch queries heads*features"],
    key: Float[Tensor, "batch keys heads*features"],
    value: Float[Tensor, "batch keys heads*value_features"],
    num_heads: int = 1,
    *,
    is_causal: bool = False,
    mask: Bool[Tensor, "#batch #heads #queries #keys"] | Float[Tensor, "#batch #heads #queries #keys"] | None = None,
    bias: Float[Tensor, "#batch #heads #queries #keys"] | None = None,
    scale: float | None = None,
    row_bias: Float[Tensor, "#batch #heads #queries rows"] | None = None,
    column_bias: Float[Tensor, "#batch #heads #queries columns"] | None = None,
    second_key: Float[Tensor, "batch second_keys heads*features"] | None = None,
    second_value: Float[Tensor, "batch second_keys heads*value_features"] | None = None,
    second_scale: Float[Tensor, "#batch"] | float | None = None,
    second_mask: Tensor | None = None,
) -> Float[Tensor, "batch queries heads*value_features"]:
    """Attend: `softmax(scale * query @ keyᵀ + biases) @ value` in each head, the heads being parts of the features.

    See [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), equation 1. The inputs may be
    slices of one projection, or have any other strides. Kernels keep the scores in the cache
    ([[arXiv:2205.14135] FlashAttention](https://arxiv.org/abs/2205.14135), algorithm 1), sum in float32 and round once;
    memory grows with the number of tokens, not with its square.

    Keys that form a grid, row by row, can have a decomposed relative position: `row_bias[..., k // columns] +
    column_bias[..., k % columns]` is added to the score of key k
    ([[arXiv:2112.01526] MViTv2](https://arxiv.org/abs/2112.01526), equation 4).

    A second set of keys and values, as of an image prompt
    ([[arXiv:2308.06721] IP-Adapter](https://arxiv.org/abs/2308.06721), equation 5), has a softmax of its own:
    `second_scale * softmax(scale * query @ second_keyᵀ + second_mask) @ second_value` is added to the result.

    A query that may see no key gives zeros. Differentiable in all floating tensors, any number of times; the scores are
    computed again for it. Under autocast all tensors but `second_scale` are cast to its dtype first.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        num_heads: The number of heads.
        is_causal: Whether query i sees the keys 0 to i only.
        mask: Which keys are seen (true), or what is added to their scores. Broadcastable to (batch, heads, queries,
            keys); moreover its first size may be any divisor n of the batch, as of n windows of each image: sample b
            then has the mask b % n.
        bias: More that is added to the scores, shaped as `mask`.
        scale: The factor of the products (default: 1 / √features).
        row_bias: What is added for the row of a key, finite and 4-D; batch, heads and queries as in `mask`.
        column_bias: What is added for its column. There are rows · columns keys.
        second_key: The second set of keys.
        second_value: The second set of values.
        second_scale: The multiplier of the second result (default: 1), for all samples or for each one. As a tensor, of
            any floating dtype, so that a captured graph sees it change.
        second_mask: The mask of the second set, as `mask`.

    Returns:
        A new tensor with the dtype and device of `query`.

    Raises:
        ValueError: If shapes or devices disagree; the message names the argument, what it should be and is.
        TypeError: If a dtype differs from that of `query`.
    """
    if isinstance(second_scale, (int, float)):
        second_scale = torch.full((), second_scale, dtype=torch.float32, device=query.device)
    tensors = _Tensors(
        query, key, value, mask, bias, row_bias, column_bias, second_key, second_value, second_scale, second_mask
    )
    if is_autocast(query):
        tensors = _autocast(tensors)
    check_attention(*tensors, num_heads)
    query, key, value, mask, bias, row_bias, column_bias, second_key, second_value, second_scale, second_mask = tensors
    arguments = (query, key, value, num_heads, is_causal, mask, bias, scale, row_bias, column_bias)
    second = (second_key, second_value, second_scale, second_mask)
    if not _has_kernel(tensors) or is_transformed():
        return portable(*arguments, *second)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and _requires_grad(tensors)):
        return _OPERATOR(*arguments, *second)
    with _BELOW_AUTOGRAD():  # a gradient written in Python costs as much as a small layer, also where none is recorded
        return _OPERATOR(*arguments, *second)


def _autocast(t: _Tensors) -> _Tensors:
    dtype = torch.get_autocast_dtype(t.query.device.type)

    def cast(x: Tensor | None) -> Tensor | None:
        return x if x is None or not x.is_floating_point() else x.to(dtype)

    query, key, value = t.query.to(dtype), t.key.to(dtype), t.value.to(dtype)
    mask, bias, row_bias, column_bias = cast(t.mask), cast(t.bias), cast(t.row_bias), cast(t.column_bias)
    second = cast(t.second_key), cast(t.second_value), t.second_scale, cast(t.second_mask)
    return _Tensors(query, key, value, mask, bias, row_bias, column_bias, *second)


def _has_kernel(tensors: _Tensors) -> bool:
    if not tensors.query.is_cpu or not native.has_kernel("attention", tensors.query.dtype):
        return False
    return all(x is None or type(x) in _PLAIN for x in tensors)


def _requires_grad(tensors: _Tensors) -> bool:
    return any(x is not None and x.requires_grad for x in tensors)


register_portable("attention")(portable)


@torch.library.register_fake("refiners::attention", lib=LIBRARY)
def _fake(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty((*query.shape[:2], value.shape[2]))


torch.library.register_autograd("refiners::attention", backward, setup_context=save_for_backward, lib=LIBRARY)


@counts_flops("attention")
def _flops(query: Shape, key: Shape, value: Shape, num_heads: int, *others: Any, **named: Any) -> int:
    second = named.get("second_key", others[6] if len(others) > 6 else None)
    keys = key[1] + (0 if second is None else second[1])
    return 2 * math.prod(query[:2]) * keys * (query[2] + value[2])
