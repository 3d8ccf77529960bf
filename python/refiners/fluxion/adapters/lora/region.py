"""Multipliers that depend on the place in the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, device as Device, dtype as DType
from torch.nn.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from PIL import Image

_MOST_SIZES = 32  # a U-Net has four or five


class Region:
    """A multiplier for a part of the image, such as one LoRA for the left half and another one for the right.

    The mask is brought to the size of what each layer returns, by averages over what falls together. Where a layer
    returns no places of the image, but one row for each sample, or has an update of which `has_places` is false, as
    those that see the prompt alone, the multiplier is `elsewhere`.

    A sequence of tokens is taken for an image of the proportions of the mask, row by row; this is how transformers
    flatten images. Results that are no image of these proportions are an error.

    Args:
        mask: From 0 to 1, of any size in the proportions of the image: for all samples, or one for each. With
            guidance the negative samples come first, then the positive ones; masks for half of a batch are for both.
            It is copied.
        scale: The multiplier where the mask is 1 (dimensionless).
        elsewhere: The multiplier for layers without places.

    Raises:
        TypeError: If the mask is no tensor of a floating dtype, or a multiplier no number.
        ValueError: If the mask has another number of dimensions, is empty, or not from 0 to 1.
    """

    def __init__(
        self,
        mask: Float[Tensor, "height width"] | Float[Tensor, "batch height width"],
        scale: float = 1.0,
        elsewhere: float = 0.0,
    ) -> None:
        if not isinstance(mask, Tensor) or not mask.is_floating_point():
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of floating-point numbers, got {kind}")
        if mask.ndim not in (2, 3) or mask.numel() == 0:
            raise ValueError(f"mask must be (height, width) or (batch, height, width), got {tuple(mask.shape)}")
        if not mask.is_meta and not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError("mask must have numbers from 0 to 1, got others")
        own = mask.detach().clone()
        self.mask = own if own.ndim == 3 else own[None]
        self.scale = _finite("scale", scale)
        self.elsewhere = _finite("elsewhere", elsewhere)
        self._sizes: dict[tuple[object, ...], Tensor] = {}

    @classmethod
    def of_images(
        cls, images: Image.Image | Sequence[Image.Image], scale: float = 1.0, elsewhere: float = 0.0
    ) -> Region:
        """Make a region of images, one for all samples or one for each: white is 1, black is 0.

        Raises:
            TypeError: If something is no image.
            ValueError: If there is none, or they are not of one size.
        """
        from PIL import Image

        from refiners.fluxion.utils import image_to_tensor

        each = [images] if isinstance(images, Image.Image) else images
        if isinstance(each, (str, bytes)) or not isinstance(each, Sequence):
            raise TypeError(f"images must be a PIL image or a list of them, got {type(each).__name__}")
        if wrong := [image for image in each if not isinstance(image, Image.Image)]:
            raise TypeError(f"images must be a PIL image or a list of them, got a list with {type(wrong[0]).__name__}")
        sizes = {image.size: None for image in each}
        if len(sizes) != 1:
            got = " and ".join(f"{width}x{height}" for width, height in sizes) or "none"
            raise ValueError(f"images must be at least one, and all of one size, got {got}")
        return cls(torch.cat([image_to_tensor(image.convert("L"))[:, 0] for image in each]), scale, elsewhere)

    def times(self, factor: float) -> Region:
        """Give the region with its multipliers changed by a factor."""
        other = Region.__new__(Region)
        other.__dict__.update(self.__dict__, scale=self.scale * factor, elsewhere=self.elsewhere * factor)
        return other

    def __call__(self, y: Float[Tensor, "batch ..."]) -> float | Tensor:
        """Give what a result of a layer is to be multiplied by; see `at`.

        Args:
            y: Shape [batch, channels, height, width] or [batch, tokens, features]; any other has no places.

        Returns:
            Shape [batch or 1, 1, height, width] or [batch or 1, tokens, 1]; `elsewhere` if there are no places.
        """
        if y.ndim == 4:
            scale = self.at((y.shape[0], *y.shape[2:]), y.device, y.dtype)
            return scale[:, None] if isinstance(scale, Tensor) else scale
        scale = self.at(y.shape[:-1], y.device, y.dtype)
        return scale[..., None] if isinstance(scale, Tensor) else scale

    def at(self, places: Sequence[int], device: Device, dtype: DType) -> float | Tensor:
        """Give the multipliers of places.

        Args:
            places: Their shape: [batch, height, width] or [batch, tokens]; any other has none.
            device: Where to have them.
            dtype: Their dtype.

        Returns:
            The same shape, but for a batch of 1 if all samples have the same; `elsewhere` if there are no places.

        Raises:
            ValueError: If the places are no image of the proportions of the mask, or there is another number of masks
                than of samples, or of pairs of them.
        """
        if len(places) not in (2, 3):
            return self.elsewhere
        size = self._size_of(places[1:])
        mask, batch = self._resized(size, device, dtype), places[0]
        if mask.shape[0] not in (1, batch):
            if 2 * mask.shape[0] != batch:
                raise ValueError(f"mask must be one, or one for each of {batch} samples, got {mask.shape[0]}")
            mask = torch.cat((mask, mask))
        return (mask * self.scale).reshape(mask.shape[0], *places[1:])

    def _size_of(self, places: Sequence[int]) -> tuple[int, int]:
        """Give the height and width of the places of a sample."""
        sides = self.mask.shape[1:]
        if len(places) == 2:
            size, kind = (places[0], places[1]), f"{places[0]}x{places[1]} places"
            fits = _is_like(sides, size)
        else:
            size, kind = factors_like(places[0], sides) or (0, 0), f"{places[0]} tokens"
            fits = size != (0, 0)
        if not fits:
            raise ValueError(
                f"mask must have the proportions of the image: one of {sides[0]}x{sides[1]} fits no result of {kind}"
            )
        return size

    def _resized(self, size: tuple[int, int], device: Device, dtype: DType) -> Tensor:
        key = (size, device, dtype)
        if (found := self._sizes.get(key)) is not None and not torch.compiler.is_compiling():
            return found
        mask = self.mask.to(device=device, dtype=torch.promote_types(dtype, torch.float32))
        mask = adaptive_avg_pool2d(mask, size).to(dtype)
        if len(self._sizes) < _MOST_SIZES and not torch.compiler.is_compiling():
            self._sizes[key] = mask
        return mask

    def __repr__(self) -> str:
        return f"Region(mask={tuple(self.mask.shape)}, scale={self.scale}, elsewhere={self.elsewhere})"


def factors_like(count: int, sides: Sequence[int]) -> tuple[int, int] | None:
    """Give the height and width of an image of so many places that is another one made smaller; None if there is none.

    Both sides are those of the other divided by one number, and both rounded up, as networks halve them, or both down.
    """
    middle = math.sqrt(count * sides[0] / sides[1])
    for rows in sorted(
        range(max(1, int(middle)), min(count, math.ceil(middle) + 1) + 1), key=lambda n: abs(n - middle)
    ):
        columns = count // rows
        if rows * columns == count and _is_like(sides, (rows, columns)):
            return rows, columns
    return None


def _is_like(sides: Sequence[int], other: Sequence[int]) -> bool:
    """Whether sides are those of an image made smaller, or larger."""
    return any(_is_smaller(sides, other, up) for up in (True, False))


def _is_smaller(sides: Sequence[int], other: Sequence[int], up: bool) -> bool:
    """Whether one number divides all sides so that they are others when they are rounded."""
    least = max(side / (to if up else to + 1) for side, to in zip(sides, other))
    most = min(side / (to - 1 if up else to) if to > up else math.inf for side, to in zip(sides, other))
    return least < most


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)
