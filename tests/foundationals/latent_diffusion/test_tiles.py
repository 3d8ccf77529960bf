"""Where tiles are, how they fade into each other, and that blending them restores what they were cut from."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.tiles import Size, Tile, blending_mask, call_on_tiles, generate_tiles


def test_tiles_are_where_they_were_recorded(recorded: Callable[[str], Any]) -> None:
    tiles = {name: value for name, value in recorded("tiles.json").items() if name.startswith("autoencoder tiles")}
    assert len(tiles) == 4
    for name, expected in tiles.items():
        height, width, tile_height, tile_width, overlap = map(int, re.findall(r"\d+", name))
        found = generate_tiles((height, width), (tile_height, tile_width), overlap)
        assert [list(tile) for tile in found] == expected


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (13, 4), (1, 20)], ids=str)
def test_tiles_cover_every_pixel(size: tuple[int, int], overlap: int) -> None:
    covered = torch.zeros(1, 1, *size)
    for tile in generate_tiles(size, (4, 5), overlap):
        assert min(tile.size) >= 1 and tile.size.height <= 4 and tile.size.width <= 5
        tile.of(covered, 1).add_(1)
    assert covered.min() >= 1


def test_the_mask_is_the_recorded_one(recorded: Callable[[str], Any]) -> None:
    expected = torch.tensor(recorded("tiles.json")["blending mask 6x8 blending=3 edges=(top,left)"])
    mask = blending_mask(Size(6, 8), blending=3, tile=Tile(0, 0, 6, 8), image=Size(9, 12))
    assert torch.equal(mask, expected)


def test_each_side_inside_the_image_has_a_slope() -> None:
    slope = torch.tensor([0.0, 0.5, 1.0])
    ones = torch.ones(7)
    up, down = torch.cat([slope, torch.ones(4)]), torch.cat([torch.ones(4), slope.flip(0)])
    image = Size(21, 21)
    for tile, rows, columns in [
        (Tile(7, 7, 14, 14), up * down, up * down),
        (Tile(0, 7, 7, 14), down, up * down),
        (Tile(14, 0, 21, 7), up, down),
        (Tile(7, 14, 14, 21), up * down, up),
    ]:
        assert torch.equal(blending_mask(Size(7, 7), 3, tile, image), torch.outer(rows, columns))
    assert torch.equal(blending_mask(Size(7, 7), 3, Tile(0, 0, 7, 7), Size(7, 7)), torch.outer(ones, ones))


@pytest.mark.parametrize(("size", "length"), [((4, 9), 2), ((9, 3), 1), ((1, 9), 0)], ids=str)
def test_slopes_are_no_longer_than_half_of_the_shorter_side(size: tuple[int, int], length: int) -> None:
    tile = Tile(9, 9, 9 + size[0], 9 + size[1])
    mask = blending_mask(Size(*size), 5, tile, Size(99, 99))
    slope = torch.linspace(0, 1, length)
    for side, lines in ((0, mask), (1, mask.T)):
        middle = lines[:, size[1 - side] // 2]
        assert torch.equal(middle[:length], slope) and torch.equal(middle[len(middle) - length :], slope.flip(0))
        assert (middle[length : len(middle) - length] == 1).all()


def blend(tiles: list[Tile], results: list[Tensor], size: Size, scale: int, blending: int) -> Tensor:
    """The specified blend, one pixel at a time, in float64."""
    total = torch.zeros(results[0].shape[0], size.height * scale, size.width * scale, dtype=torch.float64)
    weights = torch.zeros(total.shape[1:], dtype=torch.float64)
    for tile, result in zip(tiles, results):
        height, width = result.shape[1:]
        length = min(blending, min(height, width) // 2)
        for row in range(height):
            for column in range(width):
                weight = 1.0
                for distance, inside in (
                    (row, tile.top > 0),
                    (column, tile.left > 0),
                    (height - 1 - row, tile.bottom < size.height),
                    (width - 1 - column, tile.right < size.width),
                ):
                    if inside and distance < length:
                        weight *= distance / (length - 1) if length > 1 else 0.0
                total[:, tile.top * scale + row, tile.left * scale + column] += weight * result[:, row, column].double()
                weights[tile.top * scale + row, tile.left * scale + column] += weight
    return total / weights


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize(
    ("size", "tile_size", "overlap", "scales"),
    [((10, 13), (4, 6), 2, (1, 3)), ((9, 7), (5, 4), 3, (2, 1)), ((6, 6), (3, 3), 2, (1, 1))],
)
def test_results_are_blended_as_specified(
    size: tuple[int, int], tile_size: tuple[int, int], overlap: int, scales: tuple[int, int], batch_size: int
) -> None:
    scale_in, scale_out = scales
    tiles = generate_tiles(size, tile_size, overlap)
    x = torch.randn(1, 2, size[0] * scale_in, size[1] * scale_in)
    offsets = iter(torch.arange(100.0))
    given: dict[Tile, Tensor] = {}

    def call(batch: Tensor) -> Tensor:  # each tile comes out with another offset, so that the blend matters
        assert 1 <= batch.shape[0] <= batch_size
        results: list[Tensor] = []
        for part in batch:
            tile = next(tile for tile in tiles if torch.equal(tile.of(x, scale_in)[0], part))
            grown = part[:, ::scale_in, ::scale_in].repeat_interleave(scale_out, 1).repeat_interleave(scale_out, 2)
            given[tile] = grown + next(offsets)
            results.append(given[tile])
        return torch.stack(results)

    blending = overlap * scale_out
    y = call_on_tiles(call, x, tiles, Size(*size), scales, blending, batch_size)
    expected = blend(tiles, [given[tile] for tile in tiles], Size(*size), scale_out, blending)
    assert_close(y, expected.float()[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(1, 30), (2, 9), (30, 3), (17, 13)], ids=str)
@pytest.mark.parametrize("scale", [1, 2])
def test_blending_what_was_cut_restores_it(size: tuple[int, int], overlap: int, scale: int) -> None:
    tiles = generate_tiles(size, (4, 5), overlap)
    assert len(tiles) > 1
    x = torch.randn(1, 2, *size)

    def grow(batch: Tensor) -> Tensor:
        return batch.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    y = call_on_tiles(grow, x, tiles, Size(*size), (1, scale), overlap * scale, batch_size=3)
    assert_close(y, grow(x))


def test_tiles_of_one_pixel() -> None:
    x = torch.randn(1, 2, 3, 2)
    tiles = generate_tiles((3, 2), (1, 1), 0)
    assert len(tiles) == 6
    assert_close(call_on_tiles(lambda batch: 2 * batch, x, tiles, Size(3, 2), (1, 1), 0, batch_size=4), 2 * x)


def test_tiles_of_one_shape_are_called_together() -> None:
    shapes: list[tuple[int, ...]] = []

    def record(batch: Tensor) -> Tensor:
        shapes.append(tuple(batch.shape))
        return batch

    tiles = generate_tiles((10, 10), (4, 4), 1)  # three by three, those at the ends whole
    call_on_tiles(record, torch.randn(1, 2, 10, 10), tiles, Size(10, 10), (1, 1), 1, batch_size=4)
    assert shapes == [(4, 2, 4, 4), (4, 2, 4, 4), (1, 2, 4, 4)]
    shapes.clear()
    tiles = generate_tiles((10, 6), (4, 4), 1)
    call_on_tiles(record, torch.randn(1, 2, 10, 6), tiles, Size(10, 6), (1, 1), 1, batch_size=4)
    assert shapes == [(3, 2, 4, 4), (3, 2, 4, 3)]


def test_each_mask_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from refiners.foundationals.latent_diffusion import tiles as module

    made: list[Tile] = []
    original = blending_mask

    def count(size: Size, blending: int, tile: Tile, image: Size) -> Tensor:
        made.append(tile)
        return original(size, blending, tile, image)

    monkeypatch.setattr(module, "blending_mask", count)
    tiles = generate_tiles((31, 31), (4, 4), 1)
    call_on_tiles(lambda x: x, torch.randn(1, 1, 31, 31), tiles, Size(31, 31), (1, 1), 1, batch_size=1)
    assert len(tiles) == 100 and len(made) == 9  # four corners, four sides, the middle


def test_half_precision_is_blended_in_float32() -> None:
    x = torch.randn(1, 1, 9, 9).half()
    y = call_on_tiles(lambda x: x, x, generate_tiles((9, 9), (4, 4), 2), Size(9, 9), (1, 1), 2, batch_size=1)
    assert y.dtype == torch.float32
    assert_close(y, x.float(), rtol=1e-6, atol=1e-6)
