"""Full-size encoders with weights that follow from their names, next to recorded outputs."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.clip import CLIPImageEncoder, CLIPTextEncoderL
from refiners.foundationals.clip.concepts import ConceptExtender

OUTPUTS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "clip" / "outputs.json").read_text())


def make_input(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(crc32(name.encode())).standard_normal(shape)).float()


def make_weights(model: fl.Module, namespace: str) -> None:
    """Give each weight of a meta model uniform numbers, the seed being the checksum of its name."""
    weights: dict[str, Tensor] = {}
    for key, weight in model.state_dict().items():
        random = np.random.RandomState(crc32(f"{namespace}:{key}".encode()))
        u = random.random_sample(weight.numel()) - 0.5
        if weight.ndim > 1:
            u *= (12 * weight.shape[0] / weight.numel()) ** 0.5
        elif key.endswith(".weight"):
            u = 1 + 0.2 * u
        else:
            u *= 0.1
        weights[key] = torch.from_numpy(u).float().reshape(weight.shape)
    model.load_state_dict(weights, assign=True)


def check(y: Tensor, name: str) -> None:
    """Compare with what is recorded, in six digits."""
    expected = OUTPUTS[name]
    assert list(y.shape) == expected["shape"]
    y = y.double()
    torch.testing.assert_close(y.mean().item(), expected["mean"], rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std().item(), expected["std"], rtol=0, atol=1e-5)
    ends = torch.tensor([expected["first"], expected["last"]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([y.flatten()[:6], y.flatten()[-6:]]), ends, rtol=0, atol=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_text_encoder_l_and_a_concept() -> None:
    encoder = CLIPTextEncoderL(device="meta")
    make_weights(encoder, "clip_text_l")
    check(encoder(["a cute cat", ""]), 'clip_text_l/["a cute cat",""]')
    extender = ConceptExtender(encoder)
    extender.add_concept("<one>", make_input("concept_one", 768) * 0.02)
    extender.inject()
    check(encoder("a <one> cat"), 'clip_text_l_concept/"a <one> cat"')
    extender.eject()
    check(encoder(["a cute cat", ""]), 'clip_text_l/["a cute cat",""]')


@pytest.mark.slow
@torch.no_grad()
def test_the_image_encoder() -> None:
    encoder = CLIPImageEncoder(device="meta")
    make_weights(encoder, "clip_image_base")
    check(encoder(make_input("clip_image", 1, 3, 224, 224)), "clip_image_base/image")
