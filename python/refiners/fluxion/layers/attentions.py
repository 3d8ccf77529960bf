"""Attention: [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.2."""

from __future__ import annotations

import torch
from torch import Tensor, device as Device, dtype as DType
from torch.nn import functional as F

from refiners.fluxion.context import Contexts
from refiners.fluxion.layers.basics import Identity
from refiners.fluxion.layers.chain import Chain, Distribute, Lambda, Parallel
from refiners.fluxion.layers.linear import Linear
from refiners.fluxion.layers.module import Module


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """Compute `softmax(q·kᵀ / √dim)·v` by the fused function of torch.

    Args:
        query: Shape [batch, heads, queries, dim].
        key: Shape [batch, heads, keys, dim].
        value: Shape [batch, heads, keys, value dim].
        is_causal: Whether a query sees no key after its own position.
    """
    return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)


def scaled_dot_product_attention_non_optimized(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False
) -> Tensor:
    """Compute the same, step by step.

    Raises:
        NotImplementedError: If `is_causal`.
    """
    if is_causal:
        raise NotImplementedError("causal attention is only implemented by scaled_dot_product_attention")
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    return torch.softmax(scores, dim=-1) @ value


class ScaledDotProductAttention(Module):
    """Attend with several heads: [batch, queries, dim], [batch, keys, dim], [batch, keys, value dim].

    Args:
        num_heads: How many heads; head h works on the h-th of as many equal slices of the last dimension.
        is_causal: Whether a query sees no key after its own position.
        is_optimized: Whether to use the fused function.
        slice_size: If given, how many queries are processed at a time, to save memory.

    Raises:
        AssertionError: When called, if an input is not three-dimensional or not divisible among the heads.
    """

    def __init__(
        self, num_heads: int = 1, is_causal: bool = False, is_optimized: bool = True, slice_size: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.is_optimized = is_optimized
        self.slice_size = slice_size
        self.dot_product = (
            scaled_dot_product_attention if is_optimized else scaled_dot_product_attention_non_optimized
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.slice_size:
            return self._sliced_attention(query, key, value, slice_size=self.slice_size)
        return self._process_attention(query, key, value)

    def _sliced_attention(self, query: Tensor, key: Tensor, value: Tensor, slice_size: int) -> Tensor:
        outputs: list[Tensor] = []
        for start in range(0, query.shape[1], slice_size):
            end = start + slice_size
            outputs.append(self._process_attention(query[:, start:end], key, value))
        return torch.cat(outputs, dim=1)

    def _process_attention(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = [self._split_to_multi_head(x) for x in (query, key, value)]
        return self._merge_multi_head(self.dot_product(*heads, is_causal=self.is_causal))

    def _split_to_multi_head(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise AssertionError(
                "Expected input tensor with shape (batch_size sequence_length embedding_dim), got"
                f" {tuple(x.shape)}"
            )
        if x.shape[-1] % self.num_heads != 0:
            raise AssertionError(f"last dimension {x.shape[-1]} must be divisible by num_heads {self.num_heads}")
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _merge_multi_head(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class Attention(Chain):
    """Project queries, keys and values, attend, and project the result.

    Args:
        embedding_dim: The dimension of the queries and of the output.
        num_heads: How many heads.
        key_embedding_dim: The dimension of the keys (default: `embedding_dim`).
        value_embedding_dim: The dimension of the values (default: `embedding_dim`).
        inner_dim: The dimension of the projections (default: `embedding_dim`).
        use_bias: Whether the projections of queries, keys and values have a bias.
        is_causal: Whether a query sees no key after its own position.
        is_optimized: Whether to use the fused function.
        device: Where the weights are created.
        dtype: Their dtype.

    Raises:
        AssertionError: If the dimension is not divisible among the heads.
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
        self.key_embedding_dim = key_embedding_dim or embedding_dim
        self.value_embedding_dim = value_embedding_dim or embedding_dim
        self.inner_dim = inner_dim or embedding_dim
        self.use_bias = use_bias
        self.is_causal = is_causal
        self.is_optimized = is_optimized
        dims = (self.embedding_dim, self.key_embedding_dim, self.value_embedding_dim)
        super().__init__(
            Distribute(*[Linear(dim, self.inner_dim, bias=use_bias, device=device, dtype=dtype) for dim in dims]),
            ScaledDotProductAttention(num_heads, is_causal=is_causal, is_optimized=is_optimized),
            Linear(self.inner_dim, embedding_dim, bias=True, device=device, dtype=dtype),
        )


class SelfAttention(Attention):
    """Attend from a sequence to itself: [batch, length, embedding dim].

    Args:
        embedding_dim: The dimension of the sequence.
        inner_dim: The dimension of the projections (default: `embedding_dim`).
        num_heads: How many heads.
        use_bias: Whether the projections of queries, keys and values have a bias.
        is_causal: Whether a position sees none after itself.
        is_optimized: Whether to use the fused function.
        device: Where the weights are created.
        dtype: Their dtype.
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
    """Attend from the pixels of an image to each other: [batch, channels, height, width].

    Args:
        channels: The channels of the image.
        num_heads: How many heads.
        use_bias: Whether the projections of queries, keys and values have a bias.
        is_causal: Whether a pixel sees none after itself, row by row.
        is_optimized: Whether to use the fused function.
        device: Where the weights are created.
        dtype: Their dtype.

    Raises:
        AssertionError: If the channels are not divisible among the heads.
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

    def _tensor_2d_to_sequence(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        self.set_context("reshape", {"height": height, "width": width})
        return x.flatten(2).transpose(1, 2)

    def _sequence_to_tensor_2d(self, x: Tensor) -> Tensor:
        reshape = self.use_context("reshape")
        return x.transpose(1, 2).unflatten(2, (reshape["height"], reshape["width"]))
