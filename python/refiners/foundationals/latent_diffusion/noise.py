"""Random noise, the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor, device as Device, dtype as DType

Generators: TypeAlias = Generator | Sequence[Generator] | None
"""Where random numbers come from: the default of the device, one generator, or one for each item of the batch."""


def sample_noise(
    size: tuple[int, ...],
    device: Device | str | None = None,
    dtype: DType | None = None,
    offset_noise: float | None = None,
    generator: Generators = None,
) -> Float[Tensor, "batch *dims"]:
    """Draw Gaussian noise of mean 0 and variance 1.

    Numbers are drawn on the device of the generator: one on the CPU gives the same noise on each device.

    Args:
        size: The shape.
        device: Where to put the noise.
        dtype: Its dtype; the numbers do not depend on it but for their rounding.
        offset_noise: Add this many times one more number for each channel, which lets a model learn very dark and very
            bright images. See [Diffusion with Offset Noise](https://www.crosslabs.org/blog/diffusion-with-offset-noise).
        generator: Draws the numbers (default: torch's own of the device). With one for each item of the batch, an item
            does not depend on the others.

    Raises:
        ValueError: If there are several generators, but not as many as items; or if `offset_noise` is given for noise
            that is not 4-D.
    """
    if offset_noise is not None and len(size) != 4:
        raise ValueError(f"offset_noise needs a size of (batch, channels, height, width), got {size}")
    noise = _draw(size, device, dtype, generator)
    if offset_noise is not None:
        noise = noise + offset_noise * _draw((*size[:2], 1, 1), device, dtype, generator)
    return noise


def noise_like(x: Float[Tensor, "batch *dims"], generator: Generators = None) -> Float[Tensor, "batch *dims"]:
    """Draw noise in the shape, the dtype and on the device of a tensor. See `sample_noise`."""
    return sample_noise(tuple(x.shape), x.device, x.dtype, generator=generator)


def check_generator(generator: Generators, x: Tensor) -> None:
    """Raise ValueError unless there is a generator for each sample, and TypeError if it is something else."""
    if generator is None or isinstance(generator, Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(item, Generator) for item in generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if len(generator) != x.shape[0]:
        raise ValueError(f"generator must have one item for each of the {x.shape[0]} samples, got {len(generator)}")


def _draw(size: tuple[int, ...], device: Device | str | None, dtype: DType | None, generator: Generators) -> Tensor:
    if isinstance(generator, Sequence):
        if len(generator) != size[0]:
            raise ValueError(f"generator must be one, or one for each of {size[0]} items, got {len(generator)}")
        return torch.cat([_draw((1, *size[1:]), device, dtype, one) for one in generator])
    origin = device if generator is None else generator.device
    return torch.randn(size, generator=generator, device=origin, dtype=dtype).to(device=device)
