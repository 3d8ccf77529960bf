"""Tables of embeddings."""

from __future__ import annotations

from torch import device as Device, dtype as DType
from torch.nn import Embedding as _Embedding

from refiners.fluxion.layers.module import WeightedModule


class Embedding(_Embedding, WeightedModule):
    """Table of embeddings, as `torch.nn.Embedding`.

    Args:
        num_embeddings: The number of embeddings.
        embedding_dim: The number of components of each.
        device: Where to create the table.
        dtype: Its dtype.

    Receives:
        x (Int[Tensor, "batch length"]): Indices.

    Returns:
        Float[Tensor, "batch length embedding_dim"]: The embeddings at those indices.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw the initial weights, unless they are on the meta device, where there is nothing to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()
