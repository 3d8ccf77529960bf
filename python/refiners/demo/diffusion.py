"""The diffusion process of the demo: its loss for training, and its sampler."""

from collections.abc import Iterator
from itertools import pairwise
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refiners.demo.unet import NO_LABEL, DigitsUNet

Images = Float[Tensor, "batch 1 height width"]
Factors = Float[Tensor, "batch 1 1 1"]

_LABEL_DROP = 0.12  # how often training hides the label, for classifier-free guidance
_LATEST = 0.98  # sampling starts a little before noise alone, where the velocity says nothing about the noise


def signal_and_noise(time: Float[Tensor, " batch"]) -> tuple[Factors, Factors]:
    """Return the factors of image and noise at a time from 0 (clean) to 1 (noise alone): the cosine schedule.

    See [[arXiv:2102.09672] Improved Denoising Diffusion](https://arxiv.org/abs/2102.09672), equation 17 without offset.
    """
    angle = time.reshape(-1, 1, 1, 1) * (pi / 2)
    return angle.cos(), angle.sin()


def diffusion_loss(
    unet: DigitsUNet, images: Images, labels: Int[Tensor, " batch"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """Compute the mean squared error of the velocity, at random times and noises.

    See [[arXiv:2202.00512] Progressive Distillation](https://arxiv.org/abs/2202.00512), appendix D.

    Args:
        unet: The model.
        images: The clean images.
        labels: What they show; some are hidden from the model.
        generator: Where the random numbers come from.

    Returns:
        The loss, to be minimized.
    """
    batch = len(images)
    time = (torch.rand((), generator=generator) + torch.arange(batch) / batch) % 1  # spread evenly over the batch
    noise = torch.randn(images.shape, generator=generator)
    hidden = torch.rand(batch, generator=generator) < _LABEL_DROP
    signal, sigma = signal_and_noise(time)
    velocity = predict_velocity(unet, signal * images + sigma * noise, time, labels.masked_fill(hidden, NO_LABEL))
    return (velocity - (signal * noise - sigma * images)).square().mean()


@torch.no_grad()
def sample(
    unet: DigitsUNet, labels: Int[Tensor, " batch"], noise: Images, num_steps: int, guidance: float = 2.0
) -> Iterator[Images]:
    """Turn noise into images of digits, deterministically, and yield the present guess of them after each step.

    See [[arXiv:2010.02502] DDIM](https://arxiv.org/abs/2010.02502), equation 12 with sigma = 0, and
    [[arXiv:2207.12598] Classifier-Free Guidance](https://arxiv.org/abs/2207.12598), equation 6.
    The model sees the batch twice in one call: first with the labels, then without.

    Args:
        unet: The model.
        labels: What to show.
        noise: The noise to start from.
        num_steps: How many calls of the model.
        guidance: How strongly to follow the labels; 1 is not at all stronger than trained.

    Yields:
        The guess of the clean images, from -1 to 1; the last one is the result.
    """
    labels = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
    times = torch.linspace(_LATEST, 0, num_steps + 1)
    x = noise
    for now, then in pairwise(times):
        signal, sigma = signal_and_noise(now)
        doubled = torch.cat([x, x])
        guided, free = predict_velocity(unet, doubled, now.expand(len(doubled)), labels).chunk(2)
        velocity = free + guidance * (guided - free)
        images = (signal * x - sigma * velocity).clamp(-1, 1)
        estimated_noise = (x - signal * images) / sigma
        signal, sigma = signal_and_noise(then)
        x = signal * images + sigma * estimated_noise
        yield images


def predict_velocity(
    unet: DigitsUNet, x: Images, time: Float[Tensor, " batch"], labels: Int[Tensor, " batch"]
) -> Images:
    """Call the model: what it takes the change of noisy images to be at a time, `signal * noise - sigma * image`."""
    unet.set_timestep(1000 * time.unsqueeze(1))
    unet.set_label(labels)
    return unet(x)
