"""Images to tensors and back, normalization, and the blur."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d
from torch.testing import assert_close

from refiners.fluxion.utils import (
    gaussian_blur,
    image_to_tensor,
    images_to_tensor,
    normalize,
    tensor_to_image,
    tensor_to_images,
)

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


def random_image(mode: str, width: int = 6, height: int = 4) -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, CHANNELS[mode])
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", CHANNELS)
def test_a_pixel_is_its_value_over_255_in_float32(mode: str, device: torch.device) -> None:
    image = random_image(mode)
    pixels = np.array(image).reshape(4, 6, -1).transpose(2, 0, 1)[None]
    x = image_to_tensor(image, device=device)
    assert (x.dtype, x.device.type, x.shape) == (torch.float32, device.type, (1, CHANNELS[mode], 4, 6))
    assert x.is_contiguous()
    assert torch.equal(x.cpu(), torch.from_numpy(pixels.astype(np.float32) / np.float32(255)))


@pytest.mark.parametrize("mode", CHANNELS)
def test_images_keep_their_size(mode: str) -> None:
    assert image_to_tensor(Image.new(mode, (512, 512))).shape == (1, CHANNELS[mode], 512, 512)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_division_comes_before_the_dtype(dtype: torch.dtype) -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    expected = (torch.arange(256, dtype=torch.float32) / 255).to(dtype).reshape(1, 1, 16, 16)
    assert torch.equal(image_to_tensor(image, dtype=dtype), expected)


def test_the_default_device_is_used() -> None:
    with torch.device("meta"):
        assert image_to_tensor(Image.new("L", (2, 2))).is_meta
    assert image_to_tensor(Image.new("L", (2, 2)), device="meta").is_meta


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "I", "F"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"Unsupported image mode: {mode}"):
        image_to_tensor(Image.new(mode, (2, 2)))


def test_images_become_one_batch() -> None:
    images = [random_image("RGB"), Image.new("RGB", (6, 4), "white"), Image.new("RGB", (6, 4))]
    expected = torch.cat([image_to_tensor(image, dtype=torch.float64) for image in images])
    assert torch.equal(images_to_tensor(images, dtype=torch.float64), expected)


@pytest.mark.parametrize("mode", CHANNELS)
def test_an_image_survives_the_round_trip(mode: str, device: torch.device) -> None:
    image = random_image(mode)
    result = tensor_to_image(image_to_tensor(image, device=device))
    assert (result.mode, result.size) == (mode, image.size)
    assert np.abs(np.array(result).astype(int) - np.array(image).astype(int)).max() <= 1  # by truncation
    assert np.array_equal(
        np.array(tensor_to_image((image_to_tensor(image) * 255).round() / 255 + 1e-4)), np.array(image)
    )


def test_values_are_clamped_and_truncated(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.tensor([-3.0, 0.0, 0.25, 0.5, 1.0, 2.0], device=device).to(dtype).reshape(1, 1, 1, 6)
    assert np.array(tensor_to_image(x)).tolist() == [[0, 0, 63, 127, 255, 255]]
    assert np.array(tensor_to_image(torch.full((1, 1, 1, 1), 0.999))).tolist() == [[254]]


def test_a_tensor_with_gradients_is_converted_and_not_changed() -> None:
    x = torch.full((1, 3, 2, 2), 2.0, requires_grad=True)
    tensor_to_image(x)
    assert torch.equal(x.detach(), torch.full((1, 3, 2, 2), 2.0))


def test_a_batch_becomes_as_many_images() -> None:
    x = torch.rand(3, 3, 4, 6)
    images = tensor_to_images(x)
    assert [image.size for image in images] == [(6, 4)] * 3
    for image, item in zip(images, x, strict=True):
        assert np.array_equal(np.array(image), (item * 255).to(torch.uint8).permute(1, 2, 0).numpy())
    assert tensor_to_images(x[:0]) == []


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4), (0, 3, 4, 4), (1, 1, 3, 4, 4)])
def test_what_is_not_one_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="Unsupported tensor shape: "):
        tensor_to_image(torch.zeros(shape))


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="Unsupported number of channels: 2"):
        tensor_to_image(torch.zeros(1, 2, 4, 4))
    with pytest.raises(AssertionError, match="Unsupported tensor shape: "):
        tensor_to_images(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 4, 5), (2, 2, 3, 4, 5)])
def test_normalize_works_channel_by_channel(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.rand(shape, device=device)
    before = x.clone()
    y = normalize(x, mean=[0.5, 0.25, 0.0], std=[0.5, 2.0, 4.0])
    for channel, (mean, std) in enumerate([(0.5, 0.5), (0.25, 2.0), (0.0, 4.0)]):
        assert_close(y.select(-3, channel), (x.select(-3, channel) - mean) / std)
    assert torch.equal(x, before)


def test_normalize_refuses_integers_matrices_and_zeros() -> None:
    with pytest.raises(AssertionError, match="floating point"):
        normalize(torch.zeros(3, 4, 4, dtype=torch.uint8), [0.0] * 3, [1.0] * 3)
    with pytest.raises(AssertionError, match="shape"):
        normalize(torch.zeros(4, 4), [0.0], [1.0])
    for dtype, zero in [(torch.float32, 0.0), (torch.float16, 1e-12)]:
        with pytest.raises(ValueError, match="std must not be zero"):
            normalize(torch.zeros(3, 4, 4, dtype=dtype), [0.0] * 3, [1.0, zero, 1.0])


def published_blur(x: Tensor, kernel_size: tuple[int, int], sigma: tuple[float, float]) -> Tensor:
    """Blur as torchvision documents it: the operations that the result must equal bit by bit."""
    kernels: list[Tensor] = []
    for size, deviation in zip(kernel_size, sigma, strict=True):
        half = (size - 1) * 0.5
        positions = torch.linspace(-half, half, steps=size, dtype=x.dtype, device=x.device)
        density = torch.exp(-0.5 * (positions / deviation).pow(2))
        kernels.append(density / density.sum())
    weights = torch.mm(kernels[1][:, None], kernels[0][None, :])
    width, height = kernel_size[0] // 2, kernel_size[1] // 2
    rows = [abs(i) if i < x.shape[-2] else 2 * x.shape[-2] - 2 - i for i in range(-height, x.shape[-2] + height)]
    columns = [abs(i) if i < x.shape[-1] else 2 * x.shape[-1] - 2 - i for i in range(-width, x.shape[-1] + width)]
    padded = x.reshape(-1, *x.shape[-3:])[:, :, rows][:, :, :, columns]
    return conv2d(padded, weights.expand(x.shape[-3], 1, *weights.shape), groups=x.shape[-3]).reshape(x.shape)


BLURS: list[tuple[tuple[int, ...], Any, Any]] = [
    ((2, 3, 40, 50), 9, None),
    ((2, 3, 40, 50), 9, 1.0),
    ((3, 40, 50), 9, None),
    ((1, 3, 768, 20), 9, None),
    ((1, 3, 40, 50), (9, 5), (1.0, 0.8)),
    ((1, 1, 8, 9), (3, 7), 2.5),
    ((1, 1, 8, 9), (3, 7), None),
    ((1, 1, 8, 9), 1, None),
]


@pytest.mark.parametrize(("shape", "kernel_size", "sigma"), BLURS, ids=str)
def test_the_blur_is_bitwise_the_published_one(
    shape: tuple[int, ...], kernel_size: Any, sigma: Any, dtype: torch.dtype, device: torch.device
) -> None:
    x = torch.rand(shape, device=device).to(dtype)
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if sigma is None:
        sigmas = (0.15 * sizes[0] + 0.35, 0.15 * sizes[1] + 0.35)
    else:
        sigmas = (sigma, sigma) if isinstance(sigma, float) else sigma
    y = gaussian_blur(x, kernel_size, sigma)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert torch.equal(y, published_blur(x, sizes, sigmas))


@pytest.mark.parametrize(("shape", "kernel_size", "sigma"), BLURS, ids=str)
def test_the_blur_is_bitwise_that_of_torchvision(shape: tuple[int, ...], kernel_size: Any, sigma: Any) -> None:
    try:
        from torchvision.transforms.functional import gaussian_blur as expected
    except (ImportError, RuntimeError):  # absent, or built for another torch
        pytest.skip("no torchvision")
    x = torch.rand(shape)
    assert torch.equal(gaussian_blur(x, kernel_size, sigma), expected(x, kernel_size, sigma))


def test_a_blur_is_a_mean_with_the_width_along_x_first() -> None:
    x = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    x[..., 4, 4] = 1
    y = gaussian_blur(x, (7, 3), (2.0, 0.5))[0, 0]
    assert_close(y.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (y > 0).sum(dim=0).max() == 3  # rows of a column that are reached
    assert (y > 0).sum(dim=1).max() == 7
    assert_close(y[4, 5] / y[4, 4], torch.tensor(-1 / 8, dtype=torch.float64).exp())


@pytest.mark.parametrize(
    ("x", "kernel_size", "sigma", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 3, None, AssertionError, "floating point"),
        (torch.zeros(8, 8), 3, None, AssertionError, "shape"),
        (torch.zeros(1, 1, 3, 8, 8), 3, None, AssertionError, "shape"),
        (torch.zeros(1, 3, 8, 8), 3, 1, AssertionError, "sigma must be a float or a tuple of two, got 1"),
        (torch.zeros(1, 3, 8, 8), 4, None, ValueError, "kernel_size must be odd and positive, got 4"),
        (torch.zeros(1, 3, 8, 8), (3, -1), None, ValueError, "kernel_size must be odd and positive, got -1"),
        (torch.zeros(1, 3, 8, 8), 3, 0.0, ValueError, "sigma must be positive, got 0.0"),
    ],
)
def test_a_blur_refuses(x: Tensor, kernel_size: Any, sigma: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gaussian_blur(x, kernel_size, sigma)
