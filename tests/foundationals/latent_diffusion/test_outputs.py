"""The published sizes give recorded outputs, from weights and inputs that follow from their names."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.auto_encoder import Resnet
from refiners.foundationals.latent_diffusion.stable_diffusion_1 import SD1Autoencoder, SD1UNet
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLUNet

pytestmark = pytest.mark.parity


def random_of(name: str) -> RandomState:
    return RandomState(zlib.crc32(name.encode()))


def make_weights(model: fl.Module, namespace: str) -> None:
    """Set each weight to numbers that follow from its name."""
    weights: dict[str, Tensor] = {}
    for key, weight in model.state_dict().items():
        u = random_of(f"{namespace}:{key}").random_sample(weight.numel()) - 0.5
        if weight.ndim == 1:
            values = 1 + 0.2 * u if key.endswith(".weight") else 0.1 * u
        else:
            values = u * np.sqrt(12 * weight.shape[0] / weight.numel())
        weights[key] = torch.from_numpy(values.astype(np.float32)).reshape(weight.shape)
    model.load_state_dict(weights, assign=True)


def make_input(name: str, *shape: int) -> Tensor:
    """Draw normal numbers that follow from a name."""
    return torch.from_numpy(random_of(name).standard_normal(shape).astype(np.float32))


def make_pixels(name: str, *shape: int) -> np.ndarray[Any, Any]:
    """Draw numbers from 0 to 1 that follow from a name."""
    return random_of(name).random_sample(shape).astype(np.float32)


def check(y: Tensor, expected: dict[str, Any]) -> None:
    """Compare what was recorded: shape, mean, standard deviation, the first and the last six values."""
    assert list(y.shape) == expected["shape"]
    values = torch.cat([y.flatten()[:6], y.flatten()[-6:], y.mean().reshape(1), y.std().reshape(1)])
    recorded = torch.tensor([*expected["first"], *expected["last"], expected["mean"], expected["std"]])
    assert (values - recorded).abs().max() < 2e-5 * expected["std"]


def test_sd1_unet(recorded: Callable[[str], Any]) -> None:
    unet, outputs = SD1UNet(4, device="meta"), recorded("outputs.json")
    make_weights(unet, "sd15_unet")
    cases = [
        ("base", make_input("x", 2, 4, 16, 16), make_input("text", 2, 77, 768), 501),
        ("base t=1", make_input("x", 2, 4, 16, 16), make_input("text", 2, 77, 768), 1),
        ("odd 15x17", make_input("x_odd", 2, 4, 15, 17), make_input("text", 2, 77, 768), 501),
        ("base batch 4", make_input("x4", 4, 4, 16, 16), make_input("text4", 4, 77, 768), 501),
    ]
    for name, x, text, timestep in cases:
        unet.set_timestep(torch.tensor([timestep]))
        unet.set_clip_text_embedding(text)
        with torch.no_grad():
            check(unet(x), outputs[f"sd15_unet/{name}"])


def test_sdxl_unet(recorded: Callable[[str], Any]) -> None:
    unet, outputs = SDXLUNet(4, device="meta"), recorded("outputs.json")
    make_weights(unet, "sdxl_unet")
    unet.set_timestep(torch.tensor([501]))
    unet.set_clip_text_embedding(make_input("text_xl", 2, 77, 2048))
    unet.set_pooled_text_embedding(make_input("pooled", 2, 1280))
    unet.set_time_ids(torch.tensor([[1024, 1024, 0, 0, 1024, 1024], [768, 1344, 8, 16, 768, 1344]]))
    with torch.no_grad():
        check(unet(make_input("x", 2, 4, 16, 16)), outputs["sdxl_unet/base"])


def test_autoencoder(recorded: Callable[[str], Any]) -> None:
    autoencoder, outputs = SD1Autoencoder(device="meta"), recorded("outputs.json")
    make_weights(autoencoder, "autoencoder")
    for resnet in autoencoder.layers(Resnet):
        for norm in resnet.layers(fl.GroupNorm):
            norm.eps = 1e-5  # the outputs were recorded with this ε; the published models have 1e-6
    image = Image.fromarray((make_pixels("ae_pil", 128, 160, 3) * 255).astype(np.uint8))
    with torch.no_grad():
        x = torch.from_numpy(2 * make_pixels("ae_img", 1, 3, 64, 72) - 1)
        check(autoencoder.encode(x), outputs["sd15_autoencoder/encode 64x72"])
        check(autoencoder.decode(make_input("ae_lat", 1, 4, 8, 9)), outputs["sd15_autoencoder/decode 8x9"])
        check(autoencoder.image_to_latents(image), outputs["sd15_autoencoder/image_to_latents 128x160"])
        with autoencoder.tiled_inference(image, tile_size=(80, 64), blending=16):
            z = autoencoder.tiled_image_to_latents(image)
            name = "sd15_autoencoder/tiled_image_to_latents tile_size=(80,64) blending=16"
            check(z, outputs[name])
            check(autoencoder._tiled_decode(z), outputs["sd15_autoencoder/tiled decode raw"])
