"""Encoding and decoding of images that are too large for the memory, tile by tile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.fixed_group_norm import fixed_group_norms
from refiners.foundationals.latent_diffusion.pixels import images_to_pixels, pixels_to_images, shrink
from refiners.foundationals.latent_diffusion.tiles import Size, call_on_tiles, generate_tiles

if TYPE_CHECKING:
    from PIL import Image


class TiledAutoencoder(fl.Chain, ABC):
    """The base of the autoencoder: it encodes and decodes in tiles whatever its subclass does as a whole."""

    _tile_size: Size | None = None  # in pixels; `None` outside `tiled_inference`
    _blending: int = 0  # in pixels
    _batch_size: int = 1

    _generate_latent_tiles = staticmethod(generate_tiles)

    @property
    @abstractmethod
    def downscale_factor(self) -> int:
        """How many pixels there are to a latent, in each direction."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch latent_dim h w"]:
        """Encode images."""

    @abstractmethod
    def decode(self, x: Float[Tensor, "batch latent_dim h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents."""

    @abstractmethod
    def _autoencode(self, x: Float[Tensor, "1 3 height width"]) -> None:
        """Call every layer once, with enough precision for its statistics to be recorded."""

    @contextmanager
    def tiled_inference(
        self, image: Image.Image, tile_size: tuple[int, int] = (512, 512), blending: int = 64, batch_size: int = 1
    ) -> Generator[None, None, None]:
        """Within the context, `tiled_image_to_latents` and `tiled_latents_to_image` take the memory of a few tiles.

        That they fit together, all tiles are normalized as the whole image would be: by statistics that are recorded
        when the context is entered, from a version of the image that has the size of a tile. Until the context is left,
        the other methods use these statistics too, on the whole image.

        Args:
            image: The image to be encoded, or what the decoded image will be like, of mode RGB.
            tile_size: The width and height of a tile, in pixels, rounded down to multiples of 8.
            blending: How far neighbouring tiles overlap, in pixels, rounded down to a multiple of 8; there, one fades
                into the other.
            batch_size: How many tiles of the same shape are computed at once.

        Raises:
            ValueError: If tiles have no pixels or do not exceed `blending`, an argument is negative, or the image is of
                another mode.
            RuntimeError: If the context is active already.
        """
        width, height = tile_size
        factor = self.downscale_factor
        if min(tile_size) < factor:
            raise ValueError(f"tile_size must be at least {factor} by {factor} pixels, got {tile_size}")
        if not 0 <= blending // factor < min(tile_size) // factor:
            raise ValueError(
                f"blending must be at least 0 and less than the sides of tiles {tile_size}, got {blending}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if self._tile_size is not None:
            raise RuntimeError("tiled_inference is active already: leave it first")
        example = shrink(image, tile_size).to(device=self.device, dtype=self.dtype)
        with fixed_group_norms(self):
            self._autoencode(example)
            self._tile_size, self._blending, self._batch_size = Size(height, width), blending, batch_size
            try:
                yield
            finally:
                self._tile_size, self._blending, self._batch_size = None, 0, 1

    def tiled_image_to_latents(self, image: Image.Image) -> Float[Tensor, "1 latent_dim height/8 width/8"]:
        """Encode an image of mode RGB, tile by tile.

        Raises:
            ValueError: Outside `tiled_inference`, or if the image is of another mode.
        """
        self._latent_tile_size()
        return self._tiled_encode(images_to_pixels([image], device=self.device, dtype=self.dtype))

    def tiled_latents_to_image(self, x: Float[Tensor, "1 latent_dim height width"]) -> Image.Image:
        """Decode the latents of one image, tile by tile.

        Raises:
            ValueError: Outside `tiled_inference`, or if the latents are not those of exactly one image.
        """
        if x.shape[0] != 1:
            raise ValueError(f"x must be a batch of one, got {tuple(x.shape)}")
        return pixels_to_images(self._tiled_decode(x))[0]

    def _tiled_encode(self, x: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 latent_dim height/8 width/8"]:
        factor = self.downscale_factor
        size = Size(x.shape[2] // factor, x.shape[3] // factor)
        overlap = self._blending // factor
        tiles = self._generate_latent_tiles(size, self._latent_tile_size(), overlap)
        if len(tiles) == 1:
            return self.encode(x)
        return call_on_tiles(self.encode, x, tiles, size, (factor, 1), overlap, self._batch_size).to(x.dtype)

    def _tiled_decode(self, x: Float[Tensor, "1 latent_dim height width"]) -> Float[Tensor, "1 3 height*8 width*8"]:
        factor = self.downscale_factor
        size = Size(*x.shape[2:])
        overlap = self._blending // factor
        tiles = self._generate_latent_tiles(size, self._latent_tile_size(), overlap)
        if len(tiles) == 1:
            return self.decode(x)
        blending = self._blending if overlap else 0  # without an overlap there is nothing to fade into
        return call_on_tiles(self.decode, x, tiles, size, (1, factor), blending, self._batch_size).to(x.dtype)

    def _latent_tile_size(self) -> Size:
        if self._tile_size is None:
            raise ValueError(
                "Tiled inference context manager not active: call this within `with autoencoder.tiled_inference(...):`"
            )
        return Size(self._tile_size.height // self.downscale_factor, self._tile_size.width // self.downscale_factor)
