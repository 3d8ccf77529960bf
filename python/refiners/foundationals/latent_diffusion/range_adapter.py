"""Conditioning on a number from a range, such as the timestep of a diffusion process."""

import math
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.fluxion.layers.conv import can_add, is_plain_conv2d
from refiners.fluxion.layers.watched import is_watched
from refiners.foundationals.latent_diffusion.reuse import Reused


def compute_sinusoidal_embedding(
    x: Shaped[Tensor, "batch *positions"], embedding_dim: int
) -> Float[Tensor, "batch *positions embedding_dim"]:
    """Embed numbers in sinusoids of geometrically spaced frequencies, cosines first.

    See [[arXiv:1706.03762] Attention Is All You Need](https://arxiv.org/abs/1706.03762), section 3.5.

    Args:
        x: The numbers, for example timesteps. An axis is inserted after the first one, and the last one is embedded:
            shape `(n, 1)` gives `(n, 1, embedding_dim)`, and `(n,)` gives `(n, embedding_dim)`.
        embedding_dim: The even number of components; the frequency i is `10000 ** (-i / (embedding_dim / 2))`.

    Returns:
        The embeddings in float32.

    Raises:
        ValueError: If the dimension is odd or not positive.
    """
    if embedding_dim < 2 or embedding_dim % 2:
        raise ValueError(f"embedding_dim must be even and positive, got {embedding_dim}")
    half_dim = embedding_dim // 2
    exponents = -math.log(10000) * torch.arange(half_dim, dtype=torch.float32, device=x.device) / half_dim
    angles = x.unsqueeze(1).float() * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class RangeEncoder(fl.Chain):
    """Encode numbers from a range: sinusoids, then a two-layer perceptron.

    Receives:
        x (Int[Tensor, "*batch 1"]): The numbers.

    Returns:
        Float[Tensor, "*batch 1 embedding_dim"]: Their encodings, in the dtype of the weights.
    """

    def __init__(
        self,
        sinusoidal_embedding_dim: int,
        embedding_dim: int,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.sinusoidal_embedding_dim = sinusoidal_embedding_dim
        self.embedding_dim = embedding_dim
        self._reused = Reused()
        super().__init__(
            fl.Lambda(self.compute_sinusoidal_embedding),
            fl.Converter(set_device=False, set_dtype=True),
            fl.Linear(sinusoidal_embedding_dim, embedding_dim, device=device, dtype=dtype),
            fl.SiLU(),
            fl.Linear(embedding_dim, embedding_dim, device=device, dtype=dtype),
        )

    def forward(self, *args: Any) -> Float[Tensor, "*batch 1 embedding_dim"]:
        layers = tuple(self)
        if len(args) != 1 or not self._is_as_built(layers):
            return super().forward(*args)
        return self._reused.rows(super().forward, args[0], (layers[2], layers[4]))

    def _is_as_built(self, layers: tuple[fl.Module, ...]) -> bool:
        """Whether the result depends on the two linear layers alone."""
        if len(layers) != 5 or any(map(is_watched, (layers[0], layers[1], layers[3]))):
            return False
        sinusoids, converter, _, activation, _ = layers
        if type(sinusoids) is not fl.Lambda or type(converter) is not fl.Converter or type(activation) is not fl.SiLU:
            return False
        return sinusoids.func == self.compute_sinusoidal_embedding and not converter.set_device and converter.set_dtype

    def compute_sinusoidal_embedding(self, x: Int[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1 embedding_dim"]:
        """Embed numbers in the first layer's dimension."""
        return compute_sinusoidal_embedding(x, embedding_dim=self.sinusoidal_embedding_dim)


class RangeAdapter2d(fl.Sum, Adapter[fl.Conv2d]):
    """Add a projection of an encoded number to each channel of a convolution's output.

    The encoding is read from the context `range_adapter`.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The input of the convolution.

    Returns:
        Float[Tensor, "batch channels height width"]: Its output, shifted channel by channel.
    """

    is_built_in = True

    def __init__(
        self,
        target: fl.Conv2d,
        channels: int,
        embedding_dim: int,
        context_key: str,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        """Build the adapter around a convolution, to be injected.

        Args:
            target: The convolution.
            channels: The number of its output channels.
            embedding_dim: The number of components of the encoding.
            context_key: The key of the encoding in the context `range_adapter`.
            device: Where to create the projection.
            dtype: The dtype of the projection.
        """
        self.channels = channels
        self.embedding_dim = embedding_dim
        self._reused = Reused()
        with self.setup_adapter(target):
            super().__init__(
                target,
                fl.Chain(
                    fl.UseContext("range_adapter", context_key),
                    fl.SiLU(),
                    fl.Linear(embedding_dim, channels, device=device, dtype=dtype),
                    fl.Reshape(channels, 1, 1),
                ),
            )

    def forward(self, *args: Any) -> Tensor:
        target, *others = self
        projection = others[0] if len(others) == 1 else None
        if type(projection) is not fl.Chain or len(projection) != 4 or is_watched(projection):
            return super().forward(*args)
        use_context, activation, linear, reshape = projection
        if type(activation) is not fl.SiLU or is_watched(activation):
            return super().forward(*args)

        def project(embedding: Tensor) -> Tensor:
            return linear(activation(embedding))

        shift = self._reused.rows(project, use_context(), (linear,))
        pixels = reshape(shift)
        if len(args) == 1 and _can_add(target, args[0], pixels):
            return target.convolve(args[0], add=pixels[:, :, 0, 0].expand(args[0].shape[0], -1))
        return target(*args) + pixels

    @property
    def context_key(self) -> str:
        """The key of the encoding in the context `range_adapter`."""
        return self._use_context.key

    @context_key.setter
    def context_key(self, value: str) -> None:
        self._use_context.key = value

    @property
    def _use_context(self) -> fl.UseContext:
        return self.layer(("Chain", "UseContext"), fl.UseContext)


def _can_add(layer: fl.Module, x: Any, pixels: Tensor) -> TypeGuard[fl.Conv2d]:
    """Whether a layer is a convolution that can add images of one pixel itself."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not is_plain_conv2d(layer):
        return False
    is_of_channels = pixels.ndim == 4 and pixels.shape[1:] == (layer.out_channels, 1, 1)
    return can_add(layer, x, pixels) and is_of_channels and pixels.shape[0] in (1, x.shape[0])
