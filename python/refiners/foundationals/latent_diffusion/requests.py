"""What `generate` is asked for, checked as a whole before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from PIL import Image
from torch import Generator, Tensor

from refiners.foundationals.latent_diffusion.checks import (
    as_images,
    as_integer,
    as_number,
    as_size,
    as_texts,
    shown,
)
from refiners.foundationals.latent_diffusion.noise import Generators

_MOST_SEED = 2**64 - 1  # what torch takes


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A valid request for images.

    Attributes:
        prompts: A prompt for each image.
        negatives: What to avoid, for each image.
        size: The height and width, in pixels.
        num_steps: The number of steps from pure noise to an image.
        first_step: The first of them that is taken.
        condition_scale: The weight of the guidance; `None` for that of the model.
        generators: What draws the noise of each image; `None` for torch's random state.
        images: What to start from: nothing, one image for all, or one for each.
    """

    prompts: list[str]
    negatives: list[str]
    size: tuple[int, int]
    num_steps: int
    first_step: int
    condition_scale: float | None
    generators: list[Generator] | None
    images: list[Image.Image]

    @property
    def batch_size(self) -> int:
        """The number of images."""
        return len(self.prompts)


def read_request(
    text: object,
    negative_text: object,
    *,
    size: object,
    default_size: tuple[int, int],
    num_steps: object,
    condition_scale: object,
    seed: object,
    init_image: object,
    strength: object,
    on_step: object,
) -> ImageRequest:
    """Check the arguments of `LatentDiffusionModel.generate`, which says what they are.

    Args:
        text: See there, as for the following.
        negative_text: See there.
        size: See there.
        default_size: The size where neither `size` nor `init_image` gives one.
        num_steps: See there.
        condition_scale: See there.
        seed: See there.
        init_image: See there.
        strength: See there.
        on_step: See there.

    Raises:
        TypeError: If an argument is of a wrong type.
        ValueError: If one is out of range, or the numbers of texts, seeds and images differ.
    """
    prompts, negatives = as_texts("text", text), as_texts("negative_text", negative_text)
    images = [] if init_image is None else as_images("init_image", init_image)
    for image in images:
        if image.mode != "RGB":
            raise ValueError(f"init_image must be of mode RGB, got {image.mode}: use image.convert('RGB')")
    steps = as_integer("num_steps", num_steps, 1)
    share = as_number("strength", strength)
    if not 0 <= share <= 1:
        raise ValueError(f"strength must be between 0 and 1, got {strength}")
    if on_step is not None and not callable(on_step):
        raise TypeError(f"on_step must be a function of the step and the latents, got {shown(on_step)}")
    seeds = _read_seeds(seed)
    batch = max(len(prompts), len(seeds), len(images))
    _check_counts(batch, text=prompts, negative_text=negatives, seed=seeds, init_image=images)
    return ImageRequest(
        prompts=prompts * (batch // len(prompts)),
        negatives=negatives * (batch // len(negatives)),
        size=_size_of_all(images) or default_size if size is None else as_size(size, multiple=8),
        num_steps=steps,
        first_step=round((1 - share) * (steps - 1)) if images else 0,
        condition_scale=None if condition_scale is None else as_number("condition_scale", condition_scale),
        generators=_generators(seeds, batch),
        images=images,
    )


def size_of_image(image: Image.Image) -> tuple[int, int]:
    """Give the height and width of an image, in pixels, rounded to multiples of 8."""
    return max(8, round(image.height / 8) * 8), max(8, round(image.width / 8) * 8)


def _size_of_all(images: list[Image.Image]) -> tuple[int, int] | None:
    sizes = sorted({(image.height, image.width) for image in images})
    if len(sizes) > 1:
        raise ValueError(f"size must be given for an init_image of several sizes (height, width): {sizes}")
    return size_of_image(images[0]) if images else None


def _read_seeds(seed: object) -> list[int]:
    if seed is None:
        return []
    if isinstance(seed, (str, bytes)) or not isinstance(seed, Sequence):
        return [as_integer("seed", seed, 0, _MOST_SEED)]
    seeds = [as_integer("seed", one, 0, _MOST_SEED) for one in cast("Sequence[object]", seed)]
    if not seeds:
        raise ValueError("seed must be a whole number or a list of at least one, got an empty list")
    return seeds


def _check_counts(batch: int, **items: Sequence[object]) -> None:
    counts = {name: len(values) for name, values in items.items()}
    if any(count not in (0, 1, batch) for count in counts.values()):
        *names, last = counts
        raise ValueError(f"{', '.join(names)} and {last} must hold one item, or one for each image, got {counts}")


def _generators(seeds: list[int], batch: int) -> list[Generator] | None:
    if not seeds:
        return None
    if len(seeds) < batch:
        as_integer(f"seed + {batch - 1}, that of the last image,", seeds[0] + batch - 1, 0, _MOST_SEED)
        seeds = [seeds[0] + i for i in range(batch)]
    return [Generator().manual_seed(one) for one in seeds]


class Start(NamedTuple):
    """What the first latents are made of."""

    latents_shape: tuple[int, int, int, int]
    images: list[Image.Image]  # none, one for all, or one for each


def read_start(
    size: object, init_image: object, noise: object, *, batch_size: int | None, generator: Generators
) -> Start:
    """Check the arguments of `LatentDiffusionModel.init_latents`, which says what they are and what is raised."""
    height, width = (side // 8 for side in as_size(size))
    images = [] if init_image is None else as_images("init_image", init_image)
    counts = {"batch_size": batch_size, "init_image": len(images) if len(images) > 1 else None}
    if noise is not None:
        if not isinstance(noise, Tensor):
            raise TypeError(f"noise must be a tensor, got {shown(noise)}")
        if noise.ndim != 4 or tuple(noise.shape[1:]) != (4, height, width):
            raise AssertionError(
                f"noise shape is not compatible with the size: expected (batch, 4, {height}, {width}) for a size of"
                f" {size}, got {tuple(noise.shape)}"
            )
        counts["noise"] = noise.shape[0]
    elif isinstance(generator, Sequence):
        counts["generator"] = len(generator)
    given = {name: count for name, count in counts.items() if count is not None}
    if len(set(given.values())) > 1:
        described = ", ".join(f"{name}: {count}" for name, count in given.items())
        raise ValueError(f"init_latents: these must agree on the size of the batch, got {described}")
    return Start((next(iter(given.values()), 1), 4, height, width), images)
