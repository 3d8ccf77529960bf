"""Attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, device as Device, dtype as DType

from refiners.fluxion.context import Contexts
from refiners.fluxion.layers.basics import Identity
from refiners.fluxion.layers.chain import Chain, Distribute, Lambda, Parallel
from refiners.fluxion.layers.linear import Linear
from refiners.fluxion.layers.module import Module
from refiners.ops import attention
from refiners.ops.attention_choice import is_faster_than_torch


def scaled_dot_product_attention(
    query: Float[Tensor, "batch num_heads num_queries dim"],
    key: Float[Tensor, "batch num_heads num_keys dim"],
    value: Float[Tensor, "batch num_heads num_keys value_dim"],
    is_causal: bool = False,
    attn_mask: Bool[Tensor, "num_queries num_keys"] | None = None,
) -> Float[Tensor, "batch num_heads num_queries value_dim"]:
    """Compute attention, by torch's fused function.

    See [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), equation 1.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        is_causal: Whether query i attends to the keys 0 to i only.
        attn_mask: Which keys each query attends to (default: all). Excludes `is_causal`.

    Returns:
        The means of the values, weighted by `softmax(query @ keyᵀ / √dim)`.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)


def scaled_dot_product_attention_non_optimized(
    query: Float[Tensor, "batch num_heads num_queries dim"],
    key: Float[Tensor, "batch num_heads num_keys dim"],
    value: Float[Tensor, "batch num_heads num_keys value_dim"],
    is_causal: bool = False,
    attn_mask: Bool[Tensor, "num_queries num_keys"] | None = None,
) -> Float[Tensor, "batch num_heads num_queries value_dim"]:
    """Compute attention as `scaled_dot_product_attention` does, step by step.

    Args:
        query: The queries.
        key: The keys.
        value: The values.
        is_causal: Must be false.
        attn_mask: Which keys each query attends to (default: all).

    Returns:
        The means of the values, weighted by `softmax(query @ keyᵀ / √dim)`.

    Raises:
        NotImplementedError: If `is_causal` is true.
    """
    if is_causal:
        raise NotImplementedError(
            "is_causal is not implemented by scaled_dot_product_attention_non_optimized:"
            " use scaled_dot_product_attention, or give attn_mask"
        )
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)  # scaled before: fewer numbers, no overflow
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    return torch.softmax(scores, dim=-1) @ value


class ScaledDotProductAttention(Module):
    """Multi-head attention without projections; the heads are consecutive parts of the last dimension.

    Where that is faster than torch's fused function, it is computed by `refiners.ops.attention`.

    See [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.

    Args:
        num_heads: The number of heads.
        is_causal: Whether query i attends to the keys 0 to i only.
        is_optimized: Whether to use torch's fused function.
        slice_size: How many queries to process at a time, to save memory (default: all).

    Receives:
        query (Float[Tensor, "batch num_queries dim"]): The queries.
        key (Float[Tensor, "batch num_keys dim"]): The keys.
        value (Float[Tensor, "batch num_keys value_dim"]): The values.

    Returns:
        Float[Tensor, "batch num_queries value_dim"]: For each query and head, the weighted mean of the values.

    Raises:
        AssertionError: When called, if an input is not 3-D, or its last dimension is not divisible by `num_heads`.
    """

    def __init__(
        self,
        num_heads: int = 1,
        is_causal: bool = False,
        is_optimized: bool = True,
        slice_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.is_optimized = is_optimized
        self.slice_size = slice_size
        self.dot_product: Callable[..., Tensor] = (
            scaled_dot_product_attention if is_optimized else scaled_dot_product_attention_non_optimized
        )

    def forward(
        self,
        query: Float[Tensor, "batch num_queries dim"],
        key: Float[Tensor, "batch num_keys dim"],
        value: Float[Tensor, "batch num_keys value_dim"],
    ) -> Float[Tensor, "batch num_queries value_dim"]:
        if self.slice_size:
            return self._sliced_attention(query, key, value, slice_size=self.slice_size)
        return self._process_attention(query, key, value)

    def _sliced_attention(
        self,
        query: Float[Tensor, "batch num_queries dim"],
        key: Float[Tensor, "batch num_keys dim"],
        value: Float[Tensor, "batch num_keys value_dim"],
        slice_size: int,
    ) -> Float[Tensor, "batch num_queries value_dim"]:
        """Attend with `slice_size` queries at a time."""
        slices: list[Tensor] = []
        for start in range(0, max(query.shape[1], 1), slice_size):
            part = query[:, start : start + slice_size]
            if not self.is_causal:
                slices.append(self._process_attention(part, key, value))
                continue
            end = start + part.shape[1]
            seen = min(end, key.shape[1])  # no query of this slice attends further
            last_key = torch.arange(start, end, device=query.device).unsqueeze(1)
            mask = torch.arange(seen, device=query.device) <= last_key
            slices.append(self._process_attention(part, key[:, :seen], value[:, :seen], mask))
        return torch.cat(slices, dim=1)

    def _process_attention(
        self,
        query: Float[Tensor, "batch num_queries dim"],
        key: Float[Tensor, "batch num_keys dim"],
        value: Float[Tensor, "batch num_keys value_dim"],
        attn_mask: Bool[Tensor, "num_queries num_keys"] | None = None,
    ) -> Float[Tensor, "batch num_queries value_dim"]:
        """Attend with all queries at once; a mask takes the place of `is_causal`."""
        heads = (self._split_to_multi_head(query), self._split_to_multi_head(key), self._split_to_multi_head(value))
        if attn_mask is None:
            if self.dot_product is scaled_dot_product_attention and is_faster_than_torch(query, key, value):
                return attention(query, key, value, self.num_heads, is_causal=self.is_causal)
            return self._merge_multi_head(self.dot_product(*heads, is_causal=self.is_causal))
        return self._merge_multi_head(self.dot_product(*heads, attn_mask=attn_mask))

    def _split_to_multi_head(
        self, x: Float[Tensor, "batch length dim"]
    ) -> Float[Tensor, "batch num_heads length head_dim"]:
        if x.ndim != 3:
            raise AssertionError(
                f"Expected input tensor with shape (batch_size sequence_length embedding_dim), got {tuple(x.shape)}"
            )
        if x.shape[-1] % self.num_heads != 0:
            raise AssertionError(
                "Expected input tensor with shape (batch_size sequence_length embedding_dim) and an embedding_dim"
                f" divisible by num_heads {self.num_heads}, got {tuple(x.shape)}"
            )
        return torch.unflatten(x, -1, (self.num_heads, x.shape[-1] // self.num_heads)).transpose(1, 2)

    def _merge_multi_head(
        self, x: Float[Tensor, "batch num_heads length head_dim"]
    ) -> Float[Tensor, "batch length dim"]:
        return x.transpose(1, 2).flatten(start_dim=2)


class Attention(Chain):
    """Multi-head attention with projections of queries, keys and values, and of the result.

    See [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2.2.

    Args:
        embedding_dim: The number of features of the queries, and of the result.
        num_heads: The number of heads.
        key_embedding_dim: The number of features of the keys (default: `embedding_dim`).
        value_embedding_dim: The number of features of the values (default: `embedding_dim`).
        inner_dim: The number of features of all heads together (default: `embedding_dim`).
        use_bias: Whether the first three projections have a bias; the last one always has.
        is_causal: Whether query i attends to the keys 0 to i only.
        is_optimized: Whether to use torch's fused function.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        query (Float[Tensor, "batch num_queries embedding_dim"]): The queries.
        key (Float[Tensor, "batch num_keys key_embedding_dim"]): The keys.
        value (Float[Tensor, "batch num_keys value_embedding_dim"]): The values.

    Returns:
        Float[Tensor, "batch num_queries embedding_dim"]: The result.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int = 1,
        key_embedding_dim: int | None = None,
        value_embedding_dim: int | None = None,
        inner_dim: int | None = None,
        use_bias: bool = True,
        is_causal: bool = False,
        is_optimized: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if embedding_dim % num_heads != 0:
            raise AssertionError(f"embedding_dim {embedding_dim} must be divisible by num_heads {num_heads}")
        self.embedding_dim = embedding_dim
        self.num_heads = num_heads
        self.heads_dim = embedding_dim // num_heads
        self.key_embedding_dim = embedding_dim if key_embedding_dim is None else key_embedding_dim
        self.value_embedding_dim = embedding_dim if value_embedding_dim is None else value_embedding_dim
        self.inner_dim = embedding_dim if inner_dim is None else inner_dim
        self.use_bias = use_bias
        self.is_causal = is_causal
        self.is_optimized = is_optimized
        super().__init__(
            Distribute(
                Linear(self.embedding_dim, self.inner_dim, bias=use_bias, device=device, dtype=dtype),
                Linear(self.key_embedding_dim, self.inner_dim, bias=use_bias, device=device, dtype=dtype),
                Linear(self.value_embedding_dim, self.inner_dim, bias=use_bias, device=device, dtype=dtype),
            ),
            ScaledDotProductAttention(num_heads=num_heads, is_causal=is_causal, is_optimized=is_optimized),
            Linear(self.inner_dim, self.embedding_dim, bias=True, device=device, dtype=dtype),
        )


class SelfAttention(Attention):
    """Multi-head attention of a sequence to itself.

    Args:
        embedding_dim: The number of features of the sequence.
        inner_dim: The number of features of all heads together (default: `embedding_dim`).
        num_heads: The number of heads.
        use_bias: Whether the first three projections have a bias; the last one always has.
        is_causal: Whether token i attends to the tokens 0 to i only.
        is_optimized: Whether to use torch's fused function.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch length embedding_dim"]): The sequence.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: The result.

    Raises:
        AssertionError: If `embedding_dim` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        embedding_dim: int,
        inner_dim: int | None = None,
        num_heads: int = 1,
        use_bias: bool = True,
        is_causal: bool = False,
        is_optimized: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            embedding_dim=embedding_dim,
            inner_dim=inner_dim,
            num_heads=num_heads,
            use_bias=use_bias,
            is_causal=is_causal,
            is_optimized=is_optimized,
            device=device,
            dtype=dtype,
        )
        self.insert(0, Parallel(Identity(), Identity(), Identity()))


class SelfAttention2d(SelfAttention):
    """Multi-head attention of the pixels of an image to each other.

    Args:
        channels: The number of channels.
        num_heads: The number of heads.
        use_bias: Whether the first three projections have a bias; the last one always has.
        is_causal: Whether pixel i, in reading order, attends to the pixels 0 to i only.
        is_optimized: Whether to use torch's fused function.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch channels height width"]): The image.

    Returns:
        Float[Tensor, "batch channels height width"]: The result.

    Raises:
        AssertionError: If `channels` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        use_bias: bool = True,
        is_causal: bool = False,
        is_optimized: bool = True,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        if channels % num_heads != 0:
            raise AssertionError(f"channels {channels} must be divisible by num_heads {num_heads}")
        self.channels = channels
        super().__init__(
            embedding_dim=channels,
            num_heads=num_heads,
            use_bias=use_bias,
            is_causal=is_causal,
            is_optimized=is_optimized,
            device=device,
            dtype=dtype,
        )
        self.insert(0, Lambda(self._tensor_2d_to_sequence))
        self.append(Lambda(self._sequence_to_tensor_2d))

    def init_context(self) -> Contexts:
        return {"reshape": {"height": None, "width": None}}

    # Plain annotations, because trees show them.

    def _tensor_2d_to_sequence(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        self.set_context("reshape", {"height": height, "width": width})
        return x.flatten(start_dim=2).transpose(1, 2)

    def _sequence_to_tensor_2d(self, x: Tensor) -> Tensor:
        reshape = self.use_context("reshape")
        return torch.unflatten(x.transpose(1, 2), 2, (reshape["height"], reshape["width"]))
