"""Images as the autoencoder takes and gives them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.pixels import images_to_pixels, pixels_to_images, shrink


def make_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.byte().numpy())


def test_black_is_minus_one_and_white_is_one() -> None:
    colors = torch.tensor([[[0, 255, 51]]]).expand(2, 3, 3)
    x = images_to_pixels([make_image(colors), make_image(255 - colors)], dtype=torch.float64)
    assert x.dtype == torch.float64 and x.shape == (2, 3, 2, 3)
    assert_close(x[0, :, 1, 2].float(), torch.tensor([-1, 1, -0.6]))
    assert_close(x[1], -x[0])


def test_every_color_survives_the_way_there_and_back() -> None:
    colors = torch.arange(256).reshape(16, 16, 1).expand(16, 16, 3)
    (image,) = pixels_to_images(images_to_pixels([make_image(colors)]) + 1e-6)  # what is in between is truncated
    assert np.array_equal(np.asarray(image), colors.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_an_image_through_float32(dtype: torch.dtype) -> None:
    x = torch.linspace(-1.2, 1.2, 300).reshape(1, 3, 10, 10).to(dtype)
    expected = ((x.float() + 1) / 2).clamp(0, 1).mul(255).byte()
    assert torch.equal(torch.from_numpy(np.asarray(pixels_to_images(x)[0]).copy()), expected[0].permute(1, 2, 0))


def test_the_example_has_the_range_and_the_statistics_of_the_original() -> None:
    pixels = torch.full((40, 60, 3), 50)
    pixels[5:22, 9:40] = torch.tensor([200, 180, 160])
    pixels[:, 30:, 0] += 20
    image = make_image(pixels)
    resized = images_to_pixels([image.resize((30, 20))])
    original = images_to_pixels([image])
    assert resized.max() > original.max()  # resampling overshoots at the edges
    x = shrink(image, (30, 20))
    assert x.shape == (1, 3, 20, 30)
    assert_close(x.mean((0, 2, 3)), original.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert_close(x.std((0, 2, 3)), original.std((0, 2, 3)), rtol=1e-5, atol=1e-6)
    clamped = resized.clamp(original.min(), original.max())
    gain = original.std((2, 3), keepdim=True) / clamped.std((2, 3), keepdim=True)
    means = original.mean((2, 3), keepdim=True), clamped.mean((2, 3), keepdim=True)
    assert_close(x, (clamped - means[1]) * gain + means[0], rtol=1e-5, atol=1e-5)


def test_a_constant_channel_stays_constant() -> None:
    pixels = torch.randint(0, 256, (40, 60, 3))
    pixels[..., 1] = 77
    x, original = shrink(make_image(pixels), (30, 20)), images_to_pixels([make_image(pixels)])
    assert x.isfinite().all()
    assert_close(x[0, 1], torch.full((20, 30), original[0, 1, 0, 0].item()), rtol=1e-6, atol=1e-6)
    assert_close(x[0, ::2].std((1, 2)), original[0, ::2].std((1, 2)))


def test_what_becomes_constant_by_its_size_is_not_blown_up() -> None:
    stripes = torch.zeros(64, 64, 3)
    stripes[::2] = 255
    x = shrink(make_image(stripes), (8, 1))
    assert x.isfinite().all() and x.abs().max() < 2
