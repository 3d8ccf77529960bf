"""Tiles of an image: where they are, how they fade into each other, and what a function makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Size(NamedTuple):
    """A height and a width, in latents or in pixels."""

    height: int
    width: int


class Tile(NamedTuple):
    """The part of an image between two rows and two columns; the last ones are no part of it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> Size:
        """The height and width."""
        return Size(self.bottom - self.top, self.right - self.left)

    def of(self, x: Float[Tensor, "batch channels height width"], scale: int) -> Float[Tensor, "batch channels h w"]:
        """Return a view of the tile, in a tensor that has `scale` rows and columns to each of the tile's."""
        rows, columns = slice(self.top * scale, self.bottom * scale), slice(self.left * scale, self.right * scale)
        return x[:, :, rows, columns]


def generate_tiles(size: tuple[int, int], tile_size: tuple[int, int], overlap: int = 8) -> list[Tile]:
    """Cover an image by tiles, column by column; the last of each row and column are cut off by the image's border.

    Args:
        size: The height and width of the image.
        tile_size: The height and width of a tile.
        overlap: How far neighbours overlap, less than the sides of a tile.
    """
    (height, width), (tile_height, tile_width) = size, tile_size
    return [
        Tile(y, x, min(height, y + tile_height), min(width, x + tile_width))
        for x in range(0, max(width - overlap, 1), tile_width - overlap)
        for y in range(0, max(height - overlap, 1), tile_height - overlap)
    ]


def blending_mask(size: Size, blending: int, tile: Tile, image: Size) -> Float[Tensor, "height width"]:
    """Weigh the pixels of a tile: 1 inside, falling to 0 towards each side that is not at the border of the image.

    Args:
        size: The height and width of the mask.
        blending: The length of the slopes, in pixels; at most half of the shorter side of the mask is used. For 1, a
            slope is 1/2.
        tile: The tile.
        image: The height and width of the image, in the unit of the tile.
    """
    length = min(blending, min(size) // 2)
    slope = torch.linspace(0, 1, length) if blending > 1 else torch.full((length,), 0.5)
    rows, columns = torch.ones(size.height), torch.ones(size.width)
    if tile.top > 0:
        rows[:length] *= slope
    if tile.left > 0:
        columns[:length] *= slope
    if tile.bottom < image.height:
        rows[size.height - length :] *= slope.flip(0)
    if tile.right < image.width:
        columns[size.width - length :] *= slope.flip(0)
    return rows[:, None] * columns


def call_on_tiles(
    call: Callable[[Tensor], Tensor],
    x: Float[Tensor, "1 channels height width"],
    tiles: list[Tile],
    image: Size,
    scales: tuple[int, int],
    blending: int,
    batch_size: int,
) -> Float[Tensor, "1 new_channels new_height new_width"]:
    """Call a function on each tile of an image, and blend the results.

    Args:
        call: A function of a batch of tiles.
        x: The image.
        tiles: The tiles, which cover it.
        image: The height and width of the image, in the unit of the tiles.
        scales: How many pixels `x` and the result have to one unit of the tiles.
        blending: The length of the slopes of `blending_mask`, in pixels of the result.
        batch_size: How many tiles of the same shape are given to `call` at once.

    Returns:
        For each pixel the mean of the results of all tiles that cover it, weighed by their masks, in float32.
    """
    same_size: dict[Size, list[Tile]] = {}
    for tile in tiles:
        same_size.setdefault(tile.size, []).append(tile)
    scale_in, scale_out = scales
    height, width = image.height * scale_out, image.width * scale_out
    masks: dict[tuple[bool | int, ...], Tensor] = {}
    total, weights = torch.empty(0), x.new_zeros((1, 1, height, width), dtype=torch.float32)
    for size, alike in same_size.items():
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            results = call(torch.cat([tile.of(x, scale_in) for tile in batch]))
            if not total.numel():
                total = weights.new_zeros((1, results.shape[1], height, width))
            for tile, result in zip(batch, results):
                key = (*size, tile.top > 0, tile.left > 0, tile.bottom < image.height, tile.right < image.width)
                if key not in masks:
                    mask_size = Size(size.height * scale_out, size.width * scale_out)
                    masks[key] = blending_mask(mask_size, blending, tile, image).to(x.device)
                tile.of(total, scale_out).add_(result.float() * masks[key])
                tile.of(weights, scale_out).add_(masks[key])
    return total / weights
