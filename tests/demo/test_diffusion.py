"""The diffusion process: its loss and its sampler, with models whose answers are known."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from refiners.demo.diffusion import diffusion_loss, sample, signal_and_noise
from refiners.demo.unet import NO_LABEL


class Oracle:
    """Know the one clean image of each label, and give the velocity that leads there."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.calls: list[Any] = []

    def set_timestep(self, timestep: Tensor) -> None:
        self.timestep = timestep

    def set_label(self, label: Tensor) -> None:
        self.label = label

    def __call__(self, x: Tensor) -> Tensor:
        self.calls.append(SimpleNamespace(x=x, timestep=self.timestep, label=self.label))
        angle = self.timestep.double().reshape(-1, 1, 1, 1) / 1000 * math.pi / 2
        images = self.images[self.label].double()
        noise = (x - angle.cos() * images) / angle.sin()
        return (angle.cos() * noise - angle.sin() * images).float()


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(torch.rand(NO_LABEL + 1, 1, 4, 4) * 2 - 1)


def test_the_schedule_keeps_the_variance() -> None:
    signal, noise = signal_and_noise(torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close((signal.square() + noise.square()).flatten(), torch.ones(3))
    assert signal[0] == 1 and noise[0] == 0 and abs(signal[2]) < 1e-6


def test_the_loss_of_a_perfect_prediction_is_zero(oracle: Oracle) -> None:
    oracle.images[NO_LABEL] = oracle.images[5]  # hiding the label hides nothing
    images = oracle.images[5].expand(16, 1, 4, 4)
    loss = diffusion_loss(oracle, images, torch.full((16,), 5), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert loss < 1e-6
    labels, times = oracle.calls[0].label, oracle.calls[0].timestep
    assert times.min() >= 0 and times.max() <= 1000 and times.diff(dim=0).abs().min() > 0
    assert set(labels.tolist()) <= {5, NO_LABEL}


def test_the_loss_hides_some_labels(oracle: Oracle) -> None:
    labels = torch.full((1000,), 5)
    diffusion_loss(oracle, oracle.images[labels], labels, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert 0.08 < (oracle.calls[0].label == NO_LABEL).float().mean() < 0.16


@pytest.mark.parametrize("num_steps", [1, 7])
def test_sampling_finds_the_images_that_the_model_knows(oracle: Oracle, num_steps: int) -> None:
    labels = torch.tensor([3, 0, 7])
    *_, images = sample(oracle, labels, torch.randn(3, 1, 4, 4), num_steps, guidance=1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(images, oracle.images[labels], atol=1e-3, rtol=0)
    assert len(oracle.calls) == num_steps


def test_guidance_goes_further_from_the_image_without_label(oracle: Oracle) -> None:
    oracle.images *= 0.3  # so that nothing is clipped
    *_, images = sample(oracle, torch.tensor([3]), torch.randn(1, 1, 4, 4), 1, guidance=2.0)  # type: ignore[arg-type]
    expected = 2 * oracle.images[3] - oracle.images[NO_LABEL]
    torch.testing.assert_close(images[0], expected, atol=1e-3, rtol=0)


def test_sampling_draws_no_random_number(oracle: Oracle) -> None:
    noise, state = torch.randn(2, 1, 4, 4), torch.get_rng_state()
    first, second = (list(sample(oracle, torch.tensor([1, 2]), noise, 3)) for _ in range(2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(torch.get_rng_state(), state)
