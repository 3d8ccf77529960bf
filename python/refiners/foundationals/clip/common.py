"""Layers of both encoders."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl


class PositionalEncoder(fl.Chain):
    """Learned embeddings of positions.

    Args:
        max_sequence_length: The number of positions.
        embedding_dim: The number of components of each embedding.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Shaped[Tensor, "batch length *features"]): Anything of the right length; its values do not matter.

    Returns:
        Float[Tensor, "1 length embedding_dim"]: The embeddings of the first positions.

    Raises:
        ValueError: When called, if there are fewer positions than `length`.
    """

    def __init__(
        self,
        max_sequence_length: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.max_sequence_length = max_sequence_length
        self.embedding_dim = embedding_dim
        super().__init__(
            fl.Lambda(self.get_position_ids),
            fl.Embedding(max_sequence_length, embedding_dim, device=device, dtype=dtype),
        )

    # Plain annotations, because trees show them.

    @property
    def position_ids(self) -> Tensor:
        """All positions: an int64 tensor of shape [1, max_sequence_length], on the device of the weights."""
        return torch.arange(self.max_sequence_length, device=self.device).unsqueeze(0)

    def get_position_ids(self, x: Tensor) -> Tensor:
        """Return the positions of the items of a sequence, shape [1, length]."""
        length = x.shape[1]
        if length > self.max_sequence_length:
            raise ValueError(f"x must be at most {self.max_sequence_length} long, got shape {tuple(x.shape)}")
        return self.position_ids[:, :length]


class FeedForward(fl.Chain):
    """Two linear layers with a GeLU between them.

    Args:
        embedding_dim: The number of features, in and out.
        feedforward_dim: The number of features between the layers.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch length embedding_dim"]): The sequence.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: The result.
    """

    def __init__(
        self,
        embedding_dim: int,
        feedforward_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.embedding_dim = embedding_dim
        self.feedforward_dim = feedforward_dim
        super().__init__(
            fl.Linear(embedding_dim, feedforward_dim, device=device, dtype=dtype),
            fl.GeLU(),
            fl.Linear(feedforward_dim, embedding_dim, device=device, dtype=dtype),
        )


def make_transformer_sublayers(
    embedding_dim: int,
    feedforward_dim: int,
    num_attention_heads: int,
    layer_norm_eps: float,
    is_causal: bool,
    device: Device | str | None,
    dtype: DType | None,
) -> Iterator[fl.Residual]:
    """Yield a self-attention and a feed-forward block, both pre-normalized and on top of their input."""
    yield fl.Residual(
        fl.LayerNorm(embedding_dim, eps=layer_norm_eps, device=device, dtype=dtype),
        fl.SelfAttention(embedding_dim, num_heads=num_attention_heads, is_causal=is_causal, device=device, dtype=dtype),
    )
    yield fl.Residual(
        fl.LayerNorm(embedding_dim, eps=layer_norm_eps, device=device, dtype=dtype),
        FeedForward(embedding_dim, feedforward_dim, device=device, dtype=dtype),
    )
