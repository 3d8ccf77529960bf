"""Models without values, the published names of their layers, and a small model that stays as it is."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "foundationals" / "latent_diffusion" / "lora"))

from small_models import assert_same, make_sd1, state_of

from refiners.foundationals.clip import CLIPTextEncoderL
from refiners.foundationals.latent_diffusion import (
    DoubleTextEncoder,
    LatentDiffusionModel,
    SD1Autoencoder,
    SD1UNet,
    SDXLAutoencoder,
    SDXLUNet,
    StableDiffusion_1,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

_KEY_MAPS = Path(__file__).parents[2] / "data" / "conversion" / "key_maps.json.gz"


@cache
def _key_maps() -> dict[str, dict[str, str]]:
    return json.loads(gzip.decompress(_KEY_MAPS.read_bytes()))


@pytest.fixture(scope="session")
def layers_of() -> Any:
    """Give the published names of the layers of a library, and ours, without the prefix of single files."""
    prefixes = ("model.diffusion_model.", "cond_stage_model.transformer.")

    def get(name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, path in _key_maps()[name].items():
            if not path.endswith(".weight"):  # a tensor, and no layer
                found[next((key.removeprefix(each) for each in prefixes if key.startswith(each)), key)] = path
        return found

    return get


@pytest.fixture(scope="module")
def model_of() -> Any:
    """Build a model of the published size, without values."""

    @cache
    def get(family: str) -> LatentDiffusionModel:
        device = torch.device("meta")
        if family == "sd1":
            text = CLIPTextEncoderL(device=device)
            return StableDiffusion_1(SD1UNet(4, device=device), SD1Autoencoder(device=device), text, device=device)
        text = DoubleTextEncoder(device=device)
        return StableDiffusion_XL(SDXLUNet(4, device=device), SDXLAutoencoder(device=device), text, device=device)

    return get


@pytest.fixture(scope="module")
def model() -> StableDiffusion_1:
    return make_sd1()


@pytest.fixture
def manager(model: StableDiffusion_1) -> Iterator[SDLoraManager]:
    """A manager of the model, which must be as it was after each test."""
    before, made = state_of(model), SDLoraManager(model)
    yield made
    made.remove_all()
    assert_same(before, model)
