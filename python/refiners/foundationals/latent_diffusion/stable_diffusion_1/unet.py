"""The U-Net of Stable Diffusion 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.bulk import collections_paused
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.range_adapter import RangeEncoder
from refiners.foundationals.latent_diffusion.unet import (
    Attention,
    BaseTimestepEncoder,
    ResidualAccumulator,
    ResidualBlock,
    ResidualConcatenator,
    UNet,
    check_sizes,
    last_residual,
    make_down_blocks,
    make_middle_blocks,
    make_output_layers,
    make_up_blocks,
)

__all__ = [
    "CLIPLCrossAttention",
    "DownBlocks",
    "MiddleBlock",
    "ResidualAccumulator",
    "ResidualBlock",
    "ResidualConcatenator",
    "SD1UNet",
    "TimestepEncoder",
    "UpBlocks",
]

CHANNELS = (320, 640, 1280, 1280)


class TimestepEncoder(BaseTimestepEncoder):
    """Encode the timestep, read from `diffusion.timestep`, into an entry of the context `range_adapter`.

    Args:
        context_key: The entry.
        channels: The number of sinusoids; the encoding has four times as many components.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(
        self,
        context_key: str = "timestep_embedding",
        channels: int = CHANNELS[0],
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        super().__init__(
            fl.UseContext("diffusion", "timestep"),
            RangeEncoder(channels, 4 * channels, device=device, dtype=dtype),
            fl.SetContext("range_adapter", context_key),
        )


class CLIPLCrossAttention(CrossAttentionBlock2d):
    """Attend to the text embedding, which is read from `cross_attention_block.clip_text_embedding`.

    Args:
        channels: The number of channels.
        context_embedding_dim: The number of features of the text embedding.
        num_attention_heads: The number of heads.
        num_groups: In how many groups the channels are normalized.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(
        self,
        channels: int,
        context_embedding_dim: int = 768,
        num_attention_heads: int = 8,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            channels,
            context_embedding_dim=context_embedding_dim,
            context_key="clip_text_embedding",
            num_attention_heads=num_attention_heads,
            num_groups=num_groups,
            use_bias=False,
            device=device,
            dtype=dtype,
        )


def _attention(
    channels: Sequence[int],
    text_embedding_dim: int,
    num_attention_heads: int,
    num_groups: int,
    device: Device | str | None,
    dtype: DType | None,
) -> Attention:
    """Attend at all resolutions but the lowest."""

    def make(level: int) -> list[fl.Module]:
        if level == len(channels) - 1:
            return []
        sizes = (channels[level], text_embedding_dim, num_attention_heads, num_groups)
        return [CLIPLCrossAttention(*sizes, device=device, dtype=dtype)]

    return make


class DownBlocks(fl.Chain):
    """The way down, from the latents to the lowest resolution. See `SD1UNet` for the arguments."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = CHANNELS,
        text_embedding_dim: int = 768,
        num_attention_heads: int = 8,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.channels = channels
        self.text_embedding_dim = text_embedding_dim
        self.num_attention_heads = num_attention_heads
        self.num_groups = num_groups
        attention = _attention(channels, text_embedding_dim, num_attention_heads, num_groups, device, dtype)
        super().__init__(make_down_blocks(in_channels, channels, attention, num_groups, device, dtype))


class UpBlocks(fl.Chain):
    """The way up, from the lowest resolution to that of the latents. See `SD1UNet` for the arguments."""

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        text_embedding_dim: int = 768,
        num_attention_heads: int = 8,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.text_embedding_dim = text_embedding_dim
        self.num_attention_heads = num_attention_heads
        self.num_groups = num_groups
        attention = _attention(channels, text_embedding_dim, num_attention_heads, num_groups, device, dtype)
        super().__init__(make_up_blocks(channels, attention, num_groups, device, dtype))


class MiddleBlock(fl.Chain):
    """The blocks at the lowest resolution. See `SD1UNet` for the arguments."""

    def __init__(
        self,
        channels: int = CHANNELS[-1],
        text_embedding_dim: int = 768,
        num_attention_heads: int = 8,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.text_embedding_dim = text_embedding_dim
        self.num_attention_heads = num_attention_heads
        self.num_groups = num_groups
        sizes = (channels, text_embedding_dim, num_attention_heads, num_groups)
        attention = partial(CLIPLCrossAttention, *sizes, device=device, dtype=dtype)
        super().__init__(make_middle_blocks(channels, attention, num_groups, device, dtype))


class SD1UNet(UNet):
    """The U-Net of Stable Diffusion 1.5.

    Set the timestep before each call, and the text embedding before the first. The sizes are those of the published
    model; smaller ones make the same model small.

    See [[arXiv:2112.10752] High-Resolution Image Synthesis with Latent Diffusion
    Models](https://arxiv.org/abs/2112.10752), section 3 and appendix E.

    Args:
        in_channels: The number of input channels: 4, or 9 where a mask and an image to complete follow the latents.
        channels: The number of channels at each resolution, the highest first; each is half the one before. The first
            is even, and the timestep's encoding has four times as many components.
        text_embedding_dim: The number of features of the text embedding.
        num_attention_heads: The number of attention heads; it divides all numbers of channels.
        num_groups: In how many groups channels are normalized; it divides all numbers of channels.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The noisy latents, of any size.

    Returns:
        Float[Tensor, "batch 4 height width"]: What the model was trained to predict, the noise for the published one.

    Raises:
        ValueError: If there are no channels, if `num_groups` does not divide them, or the first is odd.
        AssertionError: If `num_attention_heads` does not divide the channels.
    """

    @collections_paused()
    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = CHANNELS,
        text_embedding_dim: int = 768,
        num_attention_heads: int = 8,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.channels = channels = tuple(channels)
        self.text_embedding_dim = text_embedding_dim
        self.num_attention_heads = num_attention_heads
        self.num_groups = num_groups
        check_sizes(in_channels, channels, num_groups)
        sizes = (text_embedding_dim, num_attention_heads, num_groups, device, dtype)
        super().__init__(
            TimestepEncoder(channels=channels[0], device=device, dtype=dtype),
            DownBlocks(in_channels, channels, *sizes),
            fl.Sum(fl.UseContext("unet", "residuals").compose(last_residual), MiddleBlock(channels[-1], *sizes)),
            UpBlocks(channels, *sizes),
            fl.Chain(make_output_layers(channels[0], num_groups, device, dtype)),
        )
        self._connect(device, dtype)
