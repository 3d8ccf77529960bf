"""Images as the autoencoder takes and gives them: tensors from -1 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType

from refiners.fluxion.utils import images_to_tensor, tensor_to_images

if TYPE_CHECKING:
    from PIL import Image


def images_to_pixels(
    images: list[Image.Image], device: Device | None = None, dtype: DType | None = None
) -> Float[Tensor, "batch 3 height width"]:
    """Convert images of mode RGB and of one size to a tensor, black to -1 and white to 1.

    Raises:
        ValueError: If there are none, or one is of another mode or size.
    """
    if not images:
        raise ValueError("images must hold at least one image, got none")
    for image in images:
        if image.mode != "RGB":
            raise ValueError(f"images must be of mode RGB, got {image.mode}: use image.convert('RGB')")
        if image.size != images[0].size:
            raise ValueError(f"images must all be of one size, got {images[0].size} and {image.size}")
    return images_to_tensor(images, device=device).mul_(2).sub_(1).to(dtype=dtype)


def pixels_to_images(x: Float[Tensor, "batch 3 height width"]) -> list[Image.Image]:
    """Convert tensors to images, -1 and less to black, 1 and more to white; values in between are truncated."""
    return tensor_to_images((x.float() + 1) / 2)


def shrink(image: Image.Image, size: tuple[int, int]) -> Float[Tensor, "1 3 height width"]:
    """Convert an image in another size to a tensor, with the range, means and standard deviations of the original.

    Args:
        image: An image of mode RGB.
        size: The width and height of the result, in pixels.
    """
    original, resized = images_to_pixels([image]), images_to_pixels([image.resize(size)])
    resized = resized.clamp(original.min(), original.max())  # what resampling has overshot
    std, mean = torch.std_mean(original, dim=(2, 3), keepdim=True)
    resized_std, resized_mean = torch.std_mean(resized, dim=(2, 3), keepdim=True)
    # Where all pixels are equal, what deviates is rounding: it is kept as it is. One in 8 bits differing gives more.
    gain = torch.where(resized_std > 1e-6, std / resized_std, 1.0)
    return (resized - resized_mean) * gain + mean
