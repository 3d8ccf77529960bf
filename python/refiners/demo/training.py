"""The training loop of the demo, for the base model and for its styles alike."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from refiners.demo.diffusion import Images, diffusion_loss
from refiners.demo.unet import DigitsUNet

_BATCH_SIZE = 64
_WARMUP = 0.03  # the part of the steps in which the learning rate rises


def fit(
    unet: DigitsUNet,
    weights: Sequence[Tensor],
    images: Images,
    labels: Int[Tensor, " images"],
    num_steps: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Iterator[float]:
    """Train some weights of a model on images of digits, and yield the loss of each step once the step is done.

    Args:
        unet: The model.
        weights: What is trained; no other weight changes.
        images: What the model learns to draw.
        labels: What the images show.
        num_steps: How many batches.
        learning_rate: The highest learning rate.
        generator: Where the random numbers come from.
    """
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, num_steps))
    batches = _draw_batches(len(images), generator)
    for _ in range(num_steps):
        indices = next(batches)
        loss = diffusion_loss(unet, images[indices], labels[indices], generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        yield loss.item()


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Return the part of the highest learning rate to use: a linear rise, then half a cosine down to zero."""
    rise = (step + 1) / (_WARMUP * num_steps)
    return min(1.0, rise) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def _draw_batches(num_images: int, generator: torch.Generator) -> Iterator[Int[Tensor, " batch"]]:
    """Yield indices for ever: all in a random order, batch by batch, then all in another."""
    while True:
        order = torch.randperm(num_images, generator=generator)
        yield from order[: num_images - num_images % _BATCH_SIZE].split(_BATCH_SIZE)
