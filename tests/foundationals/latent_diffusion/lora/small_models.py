"""Small models, and files of LoRAs for them."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.conversion.naming.unet import SD15, SDXL, DiffusersUNet, RefinersSDXLUNet, RefinersUNet, unet_names
from refiners.foundationals.clip import CLIPTextEncoder
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

FIRST = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_1_mlp_fc1"
SMALL_SD1 = replace(SD15, channels=(32, 64, 64, 64))
SMALL_XL = replace(SDXL, channels=(32, 64, 64), depths=(0, 1, 2), middle_depth=2)


def text_encoder(dim: int, layers: int = 3) -> CLIPTextEncoder:
    return CLIPTextEncoder(embedding_dim=dim, num_layers=layers, num_attention_heads=2, feedforward_dim=dim)


def make_sd1() -> StableDiffusion_1:
    unet = SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32)
    return StableDiffusion_1(unet, SD1Autoencoder(channels=(32, 32, 64, 64)), text_encoder(32))


def make_xl() -> StableDiffusion_XL:
    sizes = {"channels": (32, 64, 64), "num_attention_layers": (0, 1, 2), "head_dim": 32, "text_embedding_dim": 96}
    unet = SDXLUNet(4, pooled_text_embedding_dim=64, **sizes)
    texts = DoubleTextEncoder(text_encoder(32), text_encoder(64))
    return StableDiffusion_XL(unet, SDXLAutoencoder(channels=(32, 32, 64, 64)), texts)


def state_of(model: LatentDiffusionModel) -> tuple[dict[str, Tensor], dict[str, int]]:
    networks = (model.unet, model.clip_text_encoder)
    modules = {f"{i}.{key}": id(module) for i in (0, 1) for key, module in networks[i].named_modules()}
    return {f"{i}.{key}": value.clone() for i in (0, 1) for key, value in networks[i].state_dict().items()}, modules


def assert_same(before: tuple[dict[str, Tensor], dict[str, int]], model: LatentDiffusionModel) -> None:
    weights, modules = state_of(model)
    assert modules == before[1] and list(weights) == list(before[0])
    assert all(torch.equal(weights[key], value) for key, value in before[0].items())


def names_of(model: LatentDiffusionModel) -> dict[str, fl.Module]:
    """Give the layers of a U-Net by the names that diffusers has for them."""
    is_xl = isinstance(model, StableDiffusion_XL)
    layout, ours = (SMALL_XL, RefinersSDXLUNet) if is_xl else (SMALL_SD1, RefinersUNet)
    names = zip(unet_names(layout, DiffusersUNet), unet_names(layout, ours), strict=True)
    return {theirs.layer: model.unet.get_submodule(mine.layer) for theirs, mine in names}


def draw(model: LatentDiffusionModel, pattern: str = r"attn[12]\.", rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Draw a file as kohya writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, layer in names_of(model).items():
        if isinstance(layer, (fl.Linear, fl.Conv2d)) and re.search(pattern, name):
            key = "lora_unet_" + name.replace(".", "_")
            weight = layer.weight
            ones = (1,) * (weight.ndim - 2)
            tensors[f"{key}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:], generator=generator)
            tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], rank, *ones, generator=generator)
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    assert tensors
    return tensors
