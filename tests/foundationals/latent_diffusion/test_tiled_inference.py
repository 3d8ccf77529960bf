"""Encoding and decoding tile by tile: what is computed, what is refused, and that all is as before afterwards."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.auto_encoder import Decoder, Encoder, FixedGroupNorm
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder


@pytest.fixture
def autoencoder(randomize: Callable[..., None]) -> SD1Autoencoder:
    result = SD1Autoencoder(channels=(8, 8, 16, 16), num_groups=4)
    randomize(result)
    return result


def draw_image(width: int, height: int) -> Image.Image:
    """Draw an image with large areas, so that its statistics do not depend on its size."""
    y, x = np.mgrid[:height, :width]
    colors = [127 + 120 * np.sin(9 * x / width + phase) * np.cos(7 * y / height - phase) for phase in (0, 1, 2)]
    return Image.fromarray(np.stack(colors, axis=-1).astype(np.uint8))


def to_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1


def ramps(size: int, start: bool, end: bool, length: int) -> Tensor:
    weights, slope = torch.ones(size), torch.linspace(0, 1, length)
    if start:
        weights[:length] *= slope
    if end:
        weights[size - length :] *= slope.flip(0)
    return weights


def blend(call: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scales: tuple[int, int]) -> Tensor:
    """The specified tiles and weights, for square tiles and a size in units of 8 pixels."""
    scale_in, scale_out = scales
    height, width = x.shape[2] // scale_in, x.shape[3] // scale_in
    channels = 4 if scale_in == 8 else 3
    total, weights = torch.zeros(1, channels, height * scale_out, width * scale_out), 0
    weights = torch.zeros(total.shape)
    for left in range(0, max(width - overlap, 1), tile - overlap):
        for top in range(0, max(height - overlap, 1), tile - overlap):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y = call(x[:, :, top * scale_in : bottom * scale_in, left * scale_in : right * scale_in])
            length = min(overlap * scale_out, min(y.shape[2:]) // 2)
            rows = ramps(y.shape[2], top > 0, bottom < height, length)
            columns = ramps(y.shape[3], left > 0, right < width, length)
            place = (..., slice(top * scale_out, bottom * scale_out), slice(left * scale_out, right * scale_out))
            total[place] += y * torch.outer(rows, columns)
            weights[place] += torch.outer(rows, columns)
    return total / weights


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("size", "tile", "overlap"), [((160, 128), 8, 2), ((120, 88), 6, 3)], ids=str)
def test_tiles_are_blended_as_specified(
    autoencoder: SD1Autoencoder, size: tuple[int, int], tile: int, overlap: int, batch_size: int
) -> None:
    image = draw_image(*size)
    options = {"tile_size": (8 * tile, 8 * tile), "blending": 8 * overlap, "batch_size": batch_size}
    with torch.no_grad(), autoencoder.tiled_inference(image, **options):
        z = autoencoder.tiled_image_to_latents(image)
        expected = blend(autoencoder.encode, to_pixels(image), tile, overlap, (8, 1))
        assert_close(z, expected, rtol=1e-4, atol=1e-5)
        decoded = np.asarray(autoencoder.tiled_latents_to_image(z)).astype(int)
        pixels = blend(autoencoder.decode, z, tile, overlap, (1, 8))
        expected = ((pixels[0] + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).int().numpy()
        assert decoded.shape == (size[1], size[0], 3)
        assert abs(decoded - expected).max() <= 1 and decoded.std() > 10


def test_statistics_come_from_an_example_of_the_size_of_a_tile(autoencoder: SD1Autoencoder) -> None:
    image = draw_image(96, 72)
    seen: list[Tensor] = []
    for part in (Encoder, Decoder):
        autoencoder.layer(part.__name__, part).insert(0, fl.Lambda(lambda x: seen.append(x) or x))
    with autoencoder.tiled_inference(image, tile_size=(64, 40), blending=8):
        example, latents = seen
    original, resized = to_pixels(image), to_pixels(image.resize((64, 40)))
    resized = resized.clamp(original.min(), original.max())
    for channel in range(3):
        values = resized[0, channel]
        values = (values - values.mean()) / values.std() * original[0, channel].std() + original[0, channel].mean()
        assert_close(example[0, channel], values, rtol=1e-4, atol=1e-5)
    assert_close(latents, autoencoder.layer("Encoder", Encoder)(example))


def test_one_tile_is_the_whole(autoencoder: SD1Autoencoder) -> None:
    image = draw_image(100, 61)
    with torch.no_grad(), autoencoder.tiled_inference(image, tile_size=(128, 128)):
        z = autoencoder.tiled_image_to_latents(image)
        assert z.shape == (1, 4, 7, 12)
        assert torch.equal(z, autoencoder.image_to_latents(image))
        assert autoencoder.tiled_latents_to_image(z).tobytes() == autoencoder.latents_to_image(z).tobytes()


def test_tiles_fit_together_better_than_by_their_own_statistics(
    autoencoder: SD1Autoencoder, error: Callable[..., float]
) -> None:
    image = draw_image(256, 192)
    for attention in autoencoder.layers(fl.SelfAttention2d):  # which in a tile attends to the tile
        torch.nn.init.zeros_(attention.layer("Linear", fl.Linear).weight)
    with torch.no_grad():
        own = error(blend(autoencoder.encode, to_pixels(image), 16, 8, (8, 1)), autoencoder.image_to_latents(image))
        with autoencoder.tiled_inference(image, tile_size=(128, 128), blending=64):
            fixed = error(autoencoder.tiled_image_to_latents(image), autoencoder.image_to_latents(image))
    assert fixed < own / 2


def test_everything_is_as_before_afterwards(autoencoder: SD1Autoencoder) -> None:
    image = draw_image(64, 64)
    before, z = repr(autoencoder), autoencoder.image_to_latents(image)
    with autoencoder.tiled_inference(image, tile_size=(32, 32), blending=8):
        assert len(list(autoencoder.layers(FixedGroupNorm))) == len(list(autoencoder.layers(fl.GroupNorm)))
        assert (autoencoder._tile_size, autoencoder._blending) == ((32, 32), 8)
    assert repr(autoencoder) == before
    assert autoencoder._tile_size is None
    assert torch.equal(autoencoder.image_to_latents(image), z)


@pytest.mark.parametrize("where", ["inside", "while recording"])
def test_an_exception_leaves_everything_as_before(autoencoder: SD1Autoencoder, where: str) -> None:
    image, before = draw_image(64, 64), repr(autoencoder)
    decoder = autoencoder.layer("Decoder", Decoder)
    if where == "while recording":
        decoder.append(fl.Lambda(lambda _: 1 / 0))
    with (
        pytest.raises((ZeroDivisionError, RuntimeError)),
        autoencoder.tiled_inference(image, tile_size=(64, 64), blending=0),
    ):
        raise ZeroDivisionError
    if where == "while recording":
        decoder.pop()
    assert repr(autoencoder) == before and autoencoder._tile_size is None
    with autoencoder.tiled_inference(image, tile_size=(64, 64), blending=0):
        pass


def test_outside_the_context_there_are_no_tiles(autoencoder: SD1Autoencoder) -> None:
    message = "Tiled inference context manager not active"
    with pytest.raises(ValueError, match=message):
        autoencoder.tiled_image_to_latents(draw_image(64, 64))
    with pytest.raises(ValueError, match=message):
        autoencoder.tiled_latents_to_image(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": (7, 64)}, r"tile_size must be at least 8 by 8 pixels, got \(7, 64\)"),
        ({"tile_size": (64, 128), "blending": 64}, r"less than the sides of tiles \(64, 128\), got 64"),
        ({"blending": -8}, "blending must be at least 0 .* got -8"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_tiles_that_cannot_be_are_refused(autoencoder: SD1Autoencoder, options: dict[str, Any], message: str) -> None:
    before = repr(autoencoder)
    with pytest.raises(ValueError, match=message), autoencoder.tiled_inference(draw_image(64, 64), **options):
        raise AssertionError("the context was entered")
    assert repr(autoencoder) == before


def test_contexts_do_not_nest(autoencoder: SD1Autoencoder) -> None:
    image = draw_image(64, 64)
    with autoencoder.tiled_inference(image, tile_size=(64, 64), blending=0):
        again = autoencoder.tiled_inference(image)
        with pytest.raises(RuntimeError, match="tiled_inference is active already"), again:
            pass
        assert autoencoder._tile_size == (64, 64)


def test_only_one_image_and_of_mode_rgb(autoencoder: SD1Autoencoder) -> None:
    image = draw_image(64, 64)
    with autoencoder.tiled_inference(image, tile_size=(32, 32), blending=8):
        with pytest.raises(ValueError, match="images must be of mode RGB, got L"):
            autoencoder.tiled_image_to_latents(image.convert("L"))
        with pytest.raises(ValueError, match=r"x must be a batch of one, got \(2, 4, 8, 8\)"):
            autoencoder.tiled_latents_to_image(torch.zeros(2, 4, 8, 8))
    gray = autoencoder.tiled_inference(image.convert("L"))
    with pytest.raises(ValueError, match="images must be of mode RGB, got L"), gray:
        pass


def one_color(*color: int) -> Image.Image:
    return Image.new("RGB", (96, 80), color)


def one_channel() -> Image.Image:
    pixels = np.asarray(draw_image(96, 80)).copy()
    pixels[..., 1] = 77
    return Image.fromarray(pixels)


def checkerboard() -> Image.Image:
    y, x = np.mgrid[:80, :96]
    return Image.fromarray(np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "image",
    [one_color(0, 0, 0), one_color(255, 255, 255), one_color(12, 200, 77), one_channel(), checkerboard()],
    ids=["black", "white", "one color", "one channel", "checkerboard"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_constant_channels_give_no_nan(autoencoder: SD1Autoencoder, image: Image.Image, dtype: torch.dtype) -> None:
    autoencoder.to(dtype)
    with torch.no_grad(), autoencoder.tiled_inference(image, tile_size=(48, 48), blending=16):
        z = autoencoder.tiled_image_to_latents(image)
        assert z.dtype == dtype and z.isfinite().all()
        assert autoencoder._tiled_decode(z).isfinite().all()


@pytest.mark.parametrize(
    ("size", "tile_size", "blending"),
    [
        ((32, 24), (8, 8), 0),
        ((160, 8), (64, 64), 16),
        ((8, 160), (64, 64), 16),
        ((64, 64), (24, 24), 8),
        ((64, 64), (24, 24), 5),
    ],
    ids=str,
)
def test_tiles_and_images_of_one_latent_pixel(
    autoencoder: SD1Autoencoder, size: tuple[int, int], tile_size: tuple[int, int], blending: int
) -> None:
    image = draw_image(*size)
    with torch.no_grad(), autoencoder.tiled_inference(image, tile_size, blending, batch_size=4):
        z = autoencoder.tiled_image_to_latents(image)
        assert z.shape == (1, 4, size[1] // 8, size[0] // 8) and z.isfinite().all()
        assert autoencoder._tiled_decode(z).isfinite().all()


@pytest.mark.parametrize("size", [(100, 64), (131, 70)], ids=str)
def test_sizes_that_are_no_multiples_of_8(autoencoder: SD1Autoencoder, size: tuple[int, int]) -> None:
    image = draw_image(*size)
    with torch.no_grad(), autoencoder.tiled_inference(image, (44, 51), 16):
        z = autoencoder.tiled_image_to_latents(image)
        assert z.shape == (1, 4, size[1] // 8, size[0] // 8)
        assert autoencoder.tiled_latents_to_image(z).size == (size[0] // 8 * 8, size[1] // 8 * 8)


def test_statistics_are_recorded_in_float32_where_float16_overflows(
    autoencoder: SD1Autoencoder, error: Callable[..., float]
) -> None:
    image = draw_image(96, 80)
    for part in (Encoder, Decoder):
        weight = autoencoder.ensure_find(part).ensure_find(fl.Sum).layer(("Chain", "Conv2d_2"), fl.Conv2d).weight
        with torch.no_grad():
            weight.mul_(3e4 / weight.abs().max())
    autoencoder.half().float()  # the weights themselves are rounded
    results: list[tuple[Tensor, Tensor]] = []
    for dtype in (torch.float32, torch.float16):
        autoencoder.to(dtype)
        with torch.no_grad(), autoencoder.tiled_inference(image, (48, 48), 16):
            z = autoencoder.tiled_image_to_latents(image)
            results.append((z.float(), autoencoder._tiled_decode(z).float()))
    for y, expected in zip(results[1], results[0]):
        assert error(y, expected) < 1e-2


def test_no_call_sees_more_than_a_few_tiles(autoencoder: SD1Autoencoder) -> None:
    image, sizes = draw_image(200, 160), []
    for part in (Encoder, Decoder):
        autoencoder.layer(part.__name__, part).insert(0, fl.Lambda(lambda x: sizes.append(x.shape) or x))
    with torch.no_grad(), autoencoder.tiled_inference(image, (64, 48), 16, batch_size=2):
        autoencoder.tiled_latents_to_image(autoencoder.tiled_image_to_latents(image))
    for batch, channels, height, width in sizes:
        scale = 8 if channels == 3 else 1
        assert batch <= 2 and height <= 6 * scale and width <= 8 * scale
    assert {(3, 2), (4, 2)} <= {(channels, batch) for batch, channels, _, _ in sizes}  # and there are such batches


def test_generate_latent_tiles_is_reachable_from_the_class(recorded: Callable[[str], Any]) -> None:
    tiles = SD1Autoencoder._generate_latent_tiles((200, 121), (128, 128))
    expected = recorded("tiles.json")["autoencoder tiles latent=(200,121) tile=(128,128) overlap=8"]
    assert [list(tile) for tile in tiles] == expected
