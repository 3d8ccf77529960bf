"""The U-Net of Stable Diffusion XL."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.bulk import collections_paused
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock2d
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.timestep_encoder import (
    CHANNELS,
    NUM_TIME_IDS,
    TextTimeEmbedding,
    TimestepEncoder,
)
from refiners.foundationals.latent_diffusion.unet import (
    Attention,
    UNet,
    check_is_floating_point,
    check_shape,
    check_sizes,
    last_residual,
    make_down_blocks,
    make_middle_blocks,
    make_output_layers,
    make_up_blocks,
)

__all__ = [
    "DownBlocks",
    "MiddleBlock",
    "OutputBlock",
    "SDXLCrossAttention",
    "SDXLUNet",
    "TextTimeEmbedding",
    "TimestepEncoder",
    "UpBlocks",
]

ATTENTION_LAYERS = (0, 2, 10)


class SDXLCrossAttention(CrossAttentionBlock2d):
    """Attend to the text embedding, which is read from `cross_attention_block.clip_text_embedding`.

    Args:
        channels: The number of channels.
        num_attention_layers: How many attention blocks follow each other.
        num_attention_heads: The number of heads.
        context_embedding_dim: The number of features of the text embedding.
        num_groups: In how many groups the channels are normalized.
        device: Where to create the weights.
        dtype: Their dtype.
    """

    def __init__(
        self,
        channels: int,
        num_attention_layers: int = 1,
        num_attention_heads: int = 10,
        context_embedding_dim: int = 2048,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        super().__init__(
            channels,
            context_embedding_dim=context_embedding_dim,
            context_key="clip_text_embedding",
            num_attention_layers=num_attention_layers,
            num_attention_heads=num_attention_heads,
            num_groups=num_groups,
            use_bias=False,
            use_linear_projection=True,
            device=device,
            dtype=dtype,
        )


def _attention(
    channels: Sequence[int],
    num_attention_layers: Sequence[int],
    head_dim: int,
    text_embedding_dim: int,
    num_groups: int,
    device: Device | str | None,
    dtype: DType | None,
) -> Attention:
    """Attend at the resolutions that have layers."""

    def make(level: int) -> list[fl.Module]:
        width, num_layers = channels[level], num_attention_layers[level]
        if num_layers == 0:
            return []
        sizes = (width, num_layers, width // head_dim, text_embedding_dim, num_groups)
        return [SDXLCrossAttention(*sizes, device=device, dtype=dtype)]

    return make


class DownBlocks(fl.Chain):
    """The way down, from the latents to the lowest resolution. See `SDXLUNet` for the arguments."""

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = CHANNELS,
        num_attention_layers: Sequence[int] = ATTENTION_LAYERS,
        head_dim: int = 64,
        text_embedding_dim: int = 2048,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.channels = channels
        self.num_attention_layers = num_attention_layers
        self.head_dim = head_dim
        self.text_embedding_dim = text_embedding_dim
        self.num_groups = num_groups
        attention = _attention(channels, num_attention_layers, head_dim, text_embedding_dim, num_groups, device, dtype)
        super().__init__(make_down_blocks(in_channels, channels, attention, num_groups, device, dtype))


class UpBlocks(fl.Chain):
    """The way up, from the lowest resolution to that of the latents. See `SDXLUNet` for the arguments."""

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        num_attention_layers: Sequence[int] = ATTENTION_LAYERS,
        head_dim: int = 64,
        text_embedding_dim: int = 2048,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.num_attention_layers = num_attention_layers
        self.head_dim = head_dim
        self.text_embedding_dim = text_embedding_dim
        self.num_groups = num_groups
        attention = _attention(channels, num_attention_layers, head_dim, text_embedding_dim, num_groups, device, dtype)
        super().__init__(make_up_blocks(channels, attention, num_groups, device, dtype))


class MiddleBlock(fl.Chain):
    """The blocks at the lowest resolution. See `SDXLUNet` for the arguments."""

    def __init__(
        self,
        channels: int = CHANNELS[-1],
        num_attention_layers: int = ATTENTION_LAYERS[-1],
        head_dim: int = 64,
        text_embedding_dim: int = 2048,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.num_attention_layers = num_attention_layers
        self.head_dim = head_dim
        self.text_embedding_dim = text_embedding_dim
        self.num_groups = num_groups
        sizes = (channels, num_attention_layers, channels // head_dim, text_embedding_dim, num_groups)
        attention = partial(SDXLCrossAttention, *sizes, device=device, dtype=dtype)
        super().__init__(make_middle_blocks(channels, attention, num_groups, device, dtype))


class OutputBlock(fl.Chain):
    """From the highest resolution to the prediction. See `SDXLUNet` for the arguments."""

    def __init__(
        self,
        channels: int = CHANNELS[0],
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels
        self.num_groups = num_groups
        super().__init__(make_output_layers(channels, num_groups, device, dtype))


class SDXLUNet(UNet):
    """The U-Net of Stable Diffusion XL.

    Set the timestep, the time ids and the pooled text embedding before each call, and the text embedding before the
    first. The sizes are those of the published model; smaller ones make the same model small.

    See [[arXiv:2307.01952] SDXL](https://arxiv.org/abs/2307.01952), sections 2.1 and 2.2.

    Args:
        in_channels: The number of input channels: 4, or 9 where a mask and an image to complete follow the latents.
        channels: The number of channels at each resolution, the highest first; each is half the one before. The first
            is even, and the timestep's encoding has four times as many components.
        text_embedding_dim: The number of features of the text embedding.
        pooled_text_embedding_dim: The number of features of the pooled text embedding.
        num_attention_layers: The number of attention blocks that follow each other, at each resolution. The middle has
            as many as the lowest one, so this is at least 1.
        head_dim: The number of features of an attention head; it divides the channels of all resolutions that attend.
        time_ids_embedding_dim: The number of sinusoids of each of the six time ids.
        num_groups: In how many groups channels are normalized; it divides all numbers of channels.
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The noisy latents, of any size.

    Returns:
        Float[Tensor, "batch 4 height width"]: What the model was trained to predict, the noise for the published one.

    Raises:
        ValueError: If the sizes do not fit together as said above; the message names the argument.
    """

    _conditions: ClassVar[tuple[tuple[str, str], ...]] = (
        *UNet._conditions,
        ("diffusion", "time_ids"),
        ("diffusion", "pooled_text_embedding"),
    )

    @collections_paused()
    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = CHANNELS,
        text_embedding_dim: int = 2048,
        pooled_text_embedding_dim: int = 1280,
        num_attention_layers: Sequence[int] = ATTENTION_LAYERS,
        head_dim: int = 64,
        time_ids_embedding_dim: int = 256,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.in_channels = in_channels
        self.channels = channels = tuple(channels)
        self.text_embedding_dim = text_embedding_dim
        self.pooled_text_embedding_dim = pooled_text_embedding_dim
        self.num_attention_layers = num_attention_layers = tuple(num_attention_layers)
        self.head_dim = head_dim
        self.time_ids_embedding_dim = time_ids_embedding_dim
        self.num_groups = num_groups
        check_sizes(in_channels, channels, num_groups)
        _check_attention(channels, num_attention_layers, head_dim)
        sizes = (head_dim, text_embedding_dim, num_groups, device, dtype)
        super().__init__(
            TimestepEncoder(
                channels=channels[0],
                pooled_text_embedding_dim=pooled_text_embedding_dim,
                time_ids_embedding_dim=time_ids_embedding_dim,
                device=device,
                dtype=dtype,
            ),
            DownBlocks(in_channels, channels, num_attention_layers, *sizes),
            MiddleBlock(channels[-1], num_attention_layers[-1], *sizes),
            fl.Residual(fl.UseContext("unet", "residuals").compose(last_residual)),
            UpBlocks(channels, num_attention_layers, *sizes),
            OutputBlock(channels[0], num_groups, device=device, dtype=dtype),
        )
        self._connect(device, dtype)

    def set_time_ids(self, time_ids: Int[Tensor, "batch 6"]) -> None:
        """Set the sizes and the crop of the images to imagine, for the next call; they are forgotten when it ends.

        Args:
            time_ids: For each sample, in pixels: the height and width of the original image, the top and left of its
                crop, the height and width of the target.

        Raises:
            TypeError: If it is no tensor.
            ValueError: If its shape is not the expected one.
        """
        check_shape("time_ids", time_ids, "batch", NUM_TIME_IDS)
        self.set_context("diffusion", {"time_ids": time_ids})

    def set_pooled_text_embedding(
        self, pooled_text_embedding: Float[Tensor, "batch pooled_text_embedding_dim"]
    ) -> None:
        """Set the pooled text embedding of the next call; it is forgotten when the call ends.

        Args:
            pooled_text_embedding: The pooled embedding of each sample.

        Raises:
            TypeError: If it is no tensor of floating point.
            ValueError: If its shape is not the expected one.
        """
        check_shape("pooled_text_embedding", pooled_text_embedding, "batch", self.pooled_text_embedding_dim)
        check_is_floating_point("pooled_text_embedding", pooled_text_embedding)
        self.set_context("diffusion", {"pooled_text_embedding": pooled_text_embedding})


def _check_attention(channels: tuple[int, ...], num_attention_layers: tuple[int, ...], head_dim: int) -> None:
    if len(num_attention_layers) != len(channels) or min(num_attention_layers) < 0 or num_attention_layers[-1] < 1:
        raise ValueError(
            f"num_attention_layers must hold a number for each of the {len(channels)} resolutions, the last at least 1,"
            f" got {num_attention_layers}"
        )
    attending = [width for width, layers in zip(channels, num_attention_layers) if layers]
    if head_dim < 1 or any(width % head_dim for width in attending):
        raise ValueError(f"head_dim must be positive and divide the channels {attending}, got {head_dim}")
