"""A manager of a model that must be as it was after each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # the module beside the tests, which are no package

from small_models import assert_same, draw, make_sd1, state_of

from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1()


@pytest.fixture
def manager(sd1: StableDiffusion_1) -> Iterator[SDLoraManager]:
    """A manager of a model, which must be as it was after each test."""
    before = state_of(sd1)
    made = SDLoraManager(sd1)
    yield made
    made.remove_all()
    assert_same(before, sd1)


@pytest.fixture(scope="module")
def style(sd1: StableDiffusion_1) -> dict[str, Tensor]:
    return draw(sd1)
