"""What the U-Net of Stable Diffusion XL makes of the timestep, the pooled text embedding and the sizes of the image."""

from collections.abc import Sequence
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
        self._reused = Reused()
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

    def forward(self, *args: Any) -> Any:
        layers = tuple(self)
        inputs = None if torch.compiler.is_compiling() else self._find_inputs(layers)
        if inputs is None:
            return super().forward(*args)

        def encode(*_: Tensor) -> Tensor:
            return super(TextTimeEmbedding, self).forward(*args)

        return self._reused(encode, inputs, (layers[2], layers[4]))

    def _find_inputs(self, layers: tuple[fl.Module, ...]) -> tuple[Tensor, Tensor] | None:
        """Give what the result depends on, apart from the linear layers; None if somebody edited the tree."""
        kinds = (fl.Concatenate, fl.Converter, fl.Module, fl.SiLU, fl.Module)  # Reused looks at the linear layers
        if not _are(layers, kinds):
            return None
        parts = tuple(self.layer(0, fl.Concatenate))
        if not _are(parts, (fl.UseContext, fl.Chain)) or self.layer(0, fl.Concatenate).dim != 1:
            return None
        sinusoids = tuple(self.layer((0, 1), fl.Chain))
        converter = self.layer(1, fl.Converter)
        if not _are(sinusoids, (fl.UseContext, fl.Unsqueeze, fl.Lambda, fl.Reshape)) or converter.set_device:
            return None
        if not converter.set_dtype or self.layer((0, 1, 2), fl.Lambda).func != self.compute_sinusoidal_embedding:
            return None
        try:
            pooled_text_embedding, time_ids = (self.layer(path, fl.UseContext)() for path in ((0, 0), (0, 1, 0)))
        except Exception:  # the tree says which
            return None
        if not isinstance(pooled_text_embedding, Tensor) or not isinstance(time_ids, Tensor):
            return None
        return pooled_text_embedding, time_ids

    # Plain annotations, because trees show them.

    def compute_sinusoidal_embedding(self, x: Tensor) -> Tensor:
        """Embed numbers in as many sinusoids as each time id has."""
        return compute_sinusoidal_embedding(x, embedding_dim=self.time_ids_embedding_dim)


def _are(layers: Sequence[fl.Module], kinds: Sequence[type[fl.Module]]) -> bool:
    """Whether these are layers of these very classes, called as they are; `fl.Module` stands for any."""
    return len(layers) == len(kinds) and all(
        kind is fl.Module or (type(layer) is kind and not is_watched(layer)) for layer, kind in zip(layers, kinds)
    )


def _add(time: Tensor, text: Tensor) -> Tensor:
    """Add each row of one to all rows of the other."""
    return time.unsqueeze(1) + text


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
        self._reused = Reused()
        super().__init__(
            fl.Sum(
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

    def forward(self, *args: Any) -> tuple[Any, ...]:
        """Encode; where the timestep is one of a table, as those of a solver are, for all of them at once."""
        embedding = self._find_embedding(args)
        if embedding is None:
            return super().forward(*args)
        self.layer(1, fl.SetContext)(embedding)
        return args

    def _find_embedding(self, args: tuple[Any, ...]) -> Tensor | None:
        """Give the encoding, if the tree is as built and nothing is wrong; else let the tree say what is."""
        layers = tuple(self)
        if not _are(layers, (fl.Sum, fl.SetContext)) or len(self.layer(0, fl.Sum)) != 2:
            return None
        if torch.compiler.is_compiling():
            return None
        try:
            time, text = (layer(*args) for layer in self.layer(0, fl.Sum))
        except Exception:
            return None
        if (
            not isinstance(time, Tensor)
            or not isinstance(text, Tensor)
            or (time.ndim, text.ndim, len(time)) != (2, 2, 1)
        ):
            return None
        return self._reused.rows(_add, time, (), (text,)).squeeze(0)
