"""An autoencoder that takes the memory of a tile, however large the images are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from refiners.foundationals.latent_diffusion.auto_encoder import Decoder, LatentDiffusionAutoencoder
from refiners.foundationals.latent_diffusion.fixed_group_norm import copy_statistics, fixed_group_norms
from refiners.foundationals.latent_diffusion.float16 import in_float32
from refiners.foundationals.latent_diffusion.pixels import pixels_to_images
from refiners.foundationals.latent_diffusion.tiles import Size, call_on_tiles, generate_tiles

if TYPE_CHECKING:
    from PIL import Image

TILE = 512  # pixels, the sides of a tile
BLENDING = 64  # pixels, by which tiles overlap


def use_tiles(lda: LatentDiffusionAutoencoder) -> None:
    """Let an autoencoder encode and decode images larger than a tile in tiles, one image after the other.

    Images that are no larger than a tile are encoded and decoded as ever.
    """
    encode_whole, decode_whole = lda.images_to_latents, lda.latents_to_images

    def encode(images: list[Image.Image]) -> Float[Tensor, "batch latent_dim height/8 width/8"]:
        if not images or max(images[0].size) <= TILE:
            return encode_whole(images)
        return torch.cat([encode_tiles(lda, image) for image in images])

    def decode(x: Float[Tensor, "batch latent_dim height width"]) -> list[Image.Image]:
        if max(x.shape[2:]) * lda.downscale_factor <= TILE:
            return decode_whole(x)
        return [decode_tiles(lda, x[i : i + 1]) for i in range(x.shape[0])]

    lda.images_to_latents, lda.latents_to_images = encode, decode


def encode_tiles(lda: LatentDiffusionAutoencoder, image: Image.Image) -> Float[Tensor, "1 latent_dim height/8 width/8"]:
    """Encode an image of mode RGB in tiles, normalized by the statistics of the whole in the size of one."""
    with lda.tiled_inference(image, (TILE, TILE), BLENDING):
        return lda.tiled_image_to_latents(image)


def decode_tiles(lda: LatentDiffusionAutoencoder, x: Float[Tensor, "1 latent_dim height width"]) -> Image.Image:
    """Decode the latents of an image in tiles, normalized by the statistics of the whole in the size of one.

    Other than `tiled_latents_to_image` it needs no image that is like the result: the latents are reduced. This leaves
    some of them out, since means of neighbours would deviate less than latents do.
    """
    factor, size, decoder = lda.downscale_factor, Size(*x.shape[2:]), lda.layer("Decoder", Decoder)
    side = TILE // factor
    tiles = generate_tiles(size, (side, side), BLENDING // factor)
    reduced = [max(1, length * side // max(size)) for length in size]
    with fixed_group_norms(decoder):
        _record(decoder, interpolate(x, reduced, mode="nearest-exact") / lda.encoder_scale)
        pixels = call_on_tiles(lda.decode, x, tiles, size, (1, factor), BLENDING, 1)
    return pixels_to_images(pixels)[0]


def _record(decoder: Decoder, x: Float[Tensor, "1 latent_dim height width"]) -> None:
    if decoder.dtype != torch.float16:
        decoder(x)
        return
    wide = in_float32(decoder)  # what does not fit into float16 would be in all statistics that follow
    wide(x.float())
    copy_statistics(wide, decoder)
