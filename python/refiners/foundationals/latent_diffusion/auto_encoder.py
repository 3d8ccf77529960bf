"""The autoencoder between images and latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType

import refiners.fluxion.layers as fl
from refiners.fluxion.context import Contexts
from refiners.foundationals.latent_diffusion.fixed_group_norm import FixedGroupNorm, copy_statistics
from refiners.foundationals.latent_diffusion.float16 import (
    call_in_float32,
    has_overflowed,
    in_float32,
    warn_of_no_numbers,
)
from refiners.foundationals.latent_diffusion.pixels import images_to_pixels, pixels_to_images
from refiners.foundationals.latent_diffusion.residual_sum import (
    ResidualSum,
    check_channels,
    make_shortcut,
    residual_chain,
)
from refiners.foundationals.latent_diffusion.tiled_inference import TiledAutoencoder

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Decoder", "Encoder", "FixedGroupNorm", "LatentDiffusionAutoencoder", "Resnet"]

CHANNELS = (128, 256, 512, 512)


class Resnet(ResidualSum):
    """Normalize, activate and convolve twice, and add a shortcut.

    Args:
        in_channels: The number of input channels.
        out_channels: The number of output channels; if it is another one, the shortcut is a convolution.
        num_groups: In how many groups the channels are normalized. The ε of the norms is that of the published models,
            1e-6 (historically 1e-5, which moves the latents by a hundred-thousandth).
        device: Where to create the weights.
        dtype: Their dtype.

    Receives:
        x (Float[Tensor, "batch in_channels height width"]): The input.

    Returns:
        Float[Tensor, "batch out_channels height width"]: The output.

    Raises:
        ValueError: If one of the numbers of channels is not divisible by `num_groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        check_channels(in_channels, out_channels, num_groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_groups = num_groups
        super().__init__(
            make_shortcut(in_channels, out_channels, device, dtype),
            residual_chain(in_channels, out_channels, num_groups, 1e-6, device, dtype),
        )


def _middle(channels: int, num_groups: int, device: Device | str | None, dtype: DType | None) -> fl.Chain:
    """Make the blocks at the lowest resolution, the same in both directions."""
    return fl.Chain(
        Resnet(channels, channels, num_groups=num_groups, device=device, dtype=dtype),
        fl.Residual(
            fl.GroupNorm(channels, num_groups=num_groups, eps=1e-6, device=device, dtype=dtype),
            fl.SelfAttention2d(channels, device=device, dtype=dtype),
        ),
        Resnet(channels, channels, num_groups=num_groups, device=device, dtype=dtype),
    )


def _output(
    in_channels: int, out_channels: int, num_groups: int, device: Device | str | None, dtype: DType | None
) -> fl.Chain:
    return fl.Chain(
        fl.GroupNorm(in_channels, num_groups=num_groups, eps=1e-6, device=device, dtype=dtype),
        fl.SiLU(),
        fl.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, device=device, dtype=dtype),
    )


class Encoder(fl.Chain):
    """Encode images in the means of their latents, not scaled. See `LatentDiffusionAutoencoder` for the arguments.

    Receives:
        x (Float[Tensor, "batch input_channels height width"]): The images.

    Returns:
        Float[Tensor, "batch latent_dim height/8 width/8"]: The means; their variances are computed and left out.
    """

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        latent_dim: int = 4,
        input_channels: int = 3,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels = _checked(channels)
        self.resnet_sizes = [*channels, channels[-1]]
        self.latent_dim = latent_dim
        self.input_channels = input_channels
        self.num_groups = num_groups
        blocks: list[fl.Chain] = []
        for previous, width in zip((channels[0], *channels), channels):
            blocks.append(
                fl.Chain(
                    Resnet(previous, width, num_groups=num_groups, device=device, dtype=dtype),
                    Resnet(width, width, num_groups=num_groups, device=device, dtype=dtype),
                )
            )
            if len(blocks) < len(channels):
                blocks[-1].append(fl.Downsample(width, scale_factor=2, device=device, dtype=dtype))
        super().__init__(
            fl.Conv2d(input_channels, channels[0], kernel_size=3, padding=1, device=device, dtype=dtype),
            fl.Chain(*blocks, _middle(channels[-1], num_groups, device, dtype)),
            _output(channels[-1], 2 * latent_dim, num_groups, device, dtype),
            fl.Chain(
                fl.Conv2d(2 * latent_dim, 2 * latent_dim, kernel_size=1, device=device, dtype=dtype),
                fl.Slicing(dim=1, end=latent_dim),
            ),
        )

    def init_context(self) -> Contexts:
        return {"sampling": {"shapes": []}}


class Decoder(fl.Chain):
    """Decode latents, not scaled, into images. See `LatentDiffusionAutoencoder` for the arguments.

    Receives:
        x (Float[Tensor, "batch latent_dim height width"]): The latents.

    Returns:
        Float[Tensor, "batch output_channels height*8 width*8"]: The images.
    """

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        latent_dim: int = 4,
        output_channels: int = 3,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels = _checked(channels)
        self.resnet_sizes = [*channels, channels[-1]]
        self.latent_dim = latent_dim
        self.output_channels = output_channels
        self.num_groups = num_groups
        blocks: list[fl.Chain] = []
        for previous, width in zip((channels[-1], *reversed(channels)), reversed(channels)):
            blocks.append(
                fl.Chain(
                    Resnet(previous, width, num_groups=num_groups, device=device, dtype=dtype),
                    Resnet(width, width, num_groups=num_groups, device=device, dtype=dtype),
                    Resnet(width, width, num_groups=num_groups, device=device, dtype=dtype),
                )
            )
            if len(blocks) < len(channels):
                blocks[-1].append(fl.Upsample(width, upsample_factor=2, device=device, dtype=dtype))
        super().__init__(
            fl.Conv2d(latent_dim, latent_dim, kernel_size=1, device=device, dtype=dtype),
            fl.Conv2d(latent_dim, channels[-1], kernel_size=3, padding=1, device=device, dtype=dtype),
            fl.Chain(_middle(channels[-1], num_groups, device, dtype), *blocks),
            _output(channels[0], output_channels, num_groups, device, dtype),
        )


def _checked(channels: Sequence[int]) -> tuple[int, ...]:
    if not channels:
        raise ValueError("channels must hold a number for each resolution, got none")
    return tuple(channels)


class LatentDiffusionAutoencoder(TiledAutoencoder):
    """Encode images in latents of an eighth of their height and width, and decode them.

    See [[arXiv:2112.10752] High-Resolution Image Synthesis with Latent Diffusion
    Models](https://arxiv.org/abs/2112.10752), section 3.1 and appendix G. The latents are the means of the posterior,
    which is never sampled, multiplied by `encoder_scale`; the subclasses have those of the published models.

    In float16, activations may exceed 65504: those of the published decoder of Stable Diffusion XL do. `encode` and
    `decode`, and what is built on them, notice and repeat the computation in float32; calls of `Encoder` and `Decoder`
    themselves do not.

    Args:
        channels: The number of channels at each resolution, the highest first; each is half the one before. The
            published models have four.
        latent_dim: The number of channels of the latents.
        num_groups: In how many groups channels are normalized; it divides all numbers of channels.
        device: Where to create the weights.
        dtype: Their dtype.

    Raises:
        ValueError: If there are no channels, or `num_groups` does not divide them.
    """

    encoder_scale: float = 0.18125

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        latent_dim: int = 4,
        num_groups: int = 32,
        device: Device | str | None = None,
        dtype: DType | None = None,
    ) -> None:
        self.channels = channels = _checked(channels)
        self.latent_dim = latent_dim
        self.num_groups = num_groups
        super().__init__(
            Encoder(channels, latent_dim, num_groups=num_groups, device=device, dtype=dtype),
            Decoder(channels, latent_dim, num_groups=num_groups, device=device, dtype=dtype),
        )

    @property
    def downscale_factor(self) -> int:
        """How many pixels there are to a latent, in each direction: 8 for the published models."""
        return 2 ** (len(self.channels) - 1)

    def encode(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch latent_dim height/8 width/8"]:
        """Encode images.

        Args:
            x: The images, from -1 (black) to 1. A height or width that is not a multiple of 8 loses its last pixels.

        Returns:
            The latents, in the dtype of the images.

        Raises:
            ValueError: If the images do not have three channels, or are smaller than 8 by 8 pixels.
        """
        encoder = self.layer("Encoder", Encoder)
        least = self.downscale_factor
        if x.ndim != 4 or x.shape[1] != encoder.input_channels or min(x.shape[2:]) < least:
            raise ValueError(
                f"x must be (batch, {encoder.input_channels}, height, width) with sides of at least {least} pixels, got"
                f" {tuple(x.shape)}"
            )
        latents = encoder(x)
        if has_overflowed(latents):
            latents = call_in_float32(encoder, x)
        return self.encoder_scale * latents

    def decode(self, x: Float[Tensor, "batch latent_dim height width"]) -> Float[Tensor, "batch 3 height*8 width*8"]:
        """Decode latents.

        Args:
            x: The latents.

        Returns:
            The images, from -1 (black) to 1 but for small excesses, in the dtype of the latents. Where the weights are
            float16 and a number in between was too large for it, the result was computed in float32.

        Raises:
            ValueError: If the latents do not have `latent_dim` channels.
        """
        decoder = self.layer("Decoder", Decoder)
        if x.ndim != 4 or x.shape[1] != self.latent_dim:
            raise ValueError(f"x must be (batch, {self.latent_dim}, height, width), got {tuple(x.shape)}")
        images = decoder(x / self.encoder_scale)
        return call_in_float32(decoder, x.float() / self.encoder_scale) if has_overflowed(images) else images

    def image_to_latents(self, image: Image.Image) -> Float[Tensor, "1 latent_dim height/8 width/8"]:
        """Encode an image of mode RGB. See `encode`."""
        return self.images_to_latents([image])

    def images_to_latents(self, images: list[Image.Image]) -> Float[Tensor, "batch latent_dim height/8 width/8"]:
        """Encode images of mode RGB, all of the same size. See `encode`.

        Raises:
            ValueError: If there are none, or one is of another mode or size.
        """
        return self.encode(images_to_pixels(images, device=self.device, dtype=self.dtype))

    def latents_to_image(self, x: Float[Tensor, "1 latent_dim height width"]) -> Image.Image:
        """Decode the latents of one image. See `latents_to_images`.

        Raises:
            ValueError: If they are not those of exactly one.
        """
        if x.shape[0] != 1:
            raise ValueError(f"x must be a batch of one, got {tuple(x.shape)}: use latents_to_images")
        return self.latents_to_images(x)[0]

    def latents_to_images(self, x: Float[Tensor, "batch latent_dim height width"]) -> list[Image.Image]:
        """Decode latents into images of mode RGB; what exceeds black or white is cut off. See `decode`.

        Warns:
            RuntimeWarning: If the images hold numbers that are not finite.
        """
        pixels = self.decode(x)
        warn_of_no_numbers(pixels, x)
        return pixels_to_images(pixels)

    def _autoencode(self, x: Float[Tensor, "1 3 height width"]) -> None:
        for part in (self.layer("Encoder", Encoder), self.layer("Decoder", Decoder)):
            if part.dtype == torch.float16:
                wide = in_float32(part)
                x = wide(x.float())
                copy_statistics(wide, part)
            else:
                x = part(x)
