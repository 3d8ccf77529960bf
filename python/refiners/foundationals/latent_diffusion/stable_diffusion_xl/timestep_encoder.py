"""What the U-Net of Stable Diffusion XL makes of the timestep, the pooled text embedding and the sizes of the image."""

from typing import Any

import torch
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.watched import is_watched
from refiners.foundationals.latent_diffusion.range_adapter import RangeEncoder, compute_sinusoidal_embedding
from refiners.foundationals.latent_diffusion.reuse import Reused
from refiners.foundationals.latent_diffusion.unet import BaseTimestepEncoder

CHANNELS = (320, 640, 1280)
NUM_TIME_IDS = 6
_INPUTS = (fl.Concatenate, fl.UseContext, fl.Chain, fl.UseContext, fl.Unsqueeze, fl.Lambda)  # of `TextTimeEmbedding`


class TextTimeEmbedding(fl.Chain):
    """Encode the pooled text embedding and the time ids, read from the context `diffusion`.

    See [[arXiv:2307.01952] SDXL](https://arxiv.org/abs/2307.01952), section 2.2.

    Args:
        timestep_embedding_dim: The number of components of the encoding.
        pooled_text_embedding_dim: The number of features of the pooled text embedding.
        time_ids_embedding_dim: The number of sinusoids of each of the six time ids.
        device: Where to create the weights.
        dtype: Their dtype.

    Returns:
        Float[Tensor, "batch timestep_embedding_dim"]: The encoding.
    """

    def __init__(
        self,
        timestep_embedding_dim: int = 4 * CHANNELS[0],
        pooled_text_embedding_dim: int = 1280,
        time_ids_embedding_dim: int = 256,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.timestep_embedding_dim = timestep_embedding_dim
        self.pooled_text_embedding_dim = pooled_text_embedding_dim
        self.time_ids_embedding_dim = time_ids_embedding_dim
        self.text_time_embedding_dim = pooled_text_embedding_dim + NUM_TIME_IDS * time_ids_embedding_dim
        super().__init__(
            fl.Concatenate(
                fl.UseContext("diffusion", "pooled_text_embedding"),
                fl.Chain(
                    fl.UseContext("diffusion", "time_ids"),
                    fl.Unsqueeze(dim=-1),
                    fl.Lambda(self.compute_sinusoidal_embedding),
                    fl.Reshape(-1),
                ),
                dim=1,
            ),
            fl.Converter(set_device=False, set_dtype=True),
            fl.Linear(self.text_time_embedding_dim, timestep_embedding_dim, device=device, dtype=dtype),
            fl.SiLU(),
            fl.Linear(timestep_embedding_dim, timestep_embedding_dim, device=device, dtype=dtype),
        )

        self._reused = Reused()

    def forward(self, *args: Any) -> Tensor:
        layers, below = tuple(self), tuple(self.layers(fl.Module, recurse=True))
        if len(layers) != 5 or tuple(map(type, below[:6])) != _INPUTS or any(map(is_watched, below)):
            return super().forward(*args)
        context = self.use_context("diffusion")
        given = [context.get(layer.key) for layer in below if isinstance(layer, fl.UseContext)]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if len(tensors) != len(given):
            return super().forward(*args)
        return self._reused(super().forward, (*tensors, layers[2], layers[4]))

    # Plain annotations, because trees show them.

    def compute_sinusoidal_embedding(self, x: Tensor) -> Tensor:
        """Embed numbers in as many sinusoids as each time id has."""
        return compute_sinusoidal_embedding(x, embedding_dim=self.time_ids_embedding_dim)


class Sum(fl.Sum):
    """Add what is made of one timestep to what is made of the other conditions, which stays the same at each step."""

    def __init__(self, *layers: fl.Module) -> None:
        self._reused = Reused()
        self._last: Tensor | None = None
        super().__init__(*layers)

    def forward(self, *args: Any) -> Tensor:
        if len(self) != 2 or any(map(is_watched, self)) or torch.is_grad_enabled():
            return super().forward(*args)
        timestep, conditions = (layer(*args) for layer in self)
        last, self._last = self._last, conditions
        if timestep.shape[0] != 1 or conditions is not last:
            return timestep + conditions
        return self._reused.rows(lambda rows: rows.unsqueeze(1) + conditions, timestep, (conditions,)).squeeze(0)

    def _show_only_tag(self) -> bool:
        return True


class TimestepEncoder(BaseTimestepEncoder):
    """Encode the timestep, the pooled text embedding and the time ids into an entry of the context `range_adapter`.

    Args:
        context_key: The entry.
        channels: The number of sinusoids of the timestep; the encoding has four times as many components.
        pooled_text_embedding_dim: The number of features of the pooled text embedding.
        time_ids_embedding_dim: The number of sinusoids of each of the six time ids.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(
        self,
        context_key: str = "timestep_embedding",
        channels: int = CHANNELS[0],
        pooled_text_embedding_dim: int = 1280,
        time_ids_embedding_dim: int = 256,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.pooled_text_embedding_dim = pooled_text_embedding_dim
        self.time_ids_embedding_dim = time_ids_embedding_dim
        super().__init__(
            Sum(
                fl.Chain(
                    fl.UseContext("diffusion", "timestep"),
                    RangeEncoder(channels, 4 * channels, device=device, dtype=dtype),
                ),
                TextTimeEmbedding(
                    4 * channels, pooled_text_embedding_dim, time_ids_embedding_dim, device=device, dtype=dtype
                ),
            ),
            fl.SetContext("range_adapter", context_key),
        )
