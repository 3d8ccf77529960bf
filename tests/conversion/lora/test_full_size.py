"""Every layer of the published models is found by each of its published names, and gets the update of that name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.conversion.lora import targets_of
from refiners.conversion.lora.names import LayerNames
from refiners.foundationals.latent_diffusion import LatentDiffusionModel
from refiners.foundationals.latent_diffusion.lora import LoraAdapter, SDLoraManager

ModelOf = Callable[[str], LatentDiffusionModel]
LayersOf = Callable[[str], dict[str, str]]
# The family, the map, its network, and what stands before the names; with underscores for dots where it ends with one.
SPELLINGS = [
    ("sd1", "convmap_unet_sd15.diffusers", "unet", ["lora_unet_", "unet.", "lora_unet.", "diffusion_model.", ""]),
    ("sd1", "sd15_unet.from_ldm", "unet", ["lora_unet_", "unet.", "model.diffusion_model.", ""]),
    ("sdxl", "sdxl_unet.from_diffusers", "unet", ["lora_unet_", "base_model.model.unet.", "base_model.model."]),
    ("sdxl", "sdxl_unet.from_ldm", "unet", ["lora_unet_", "diffusion_model.", "lora_unet."]),
    ("sd1", "clip_text_l.from_transformers", "text_encoder", ["lora_te_", "lora_te1_", "text_encoder.", ""]),
]


@pytest.mark.parametrize(("family", "name", "part", "prefixes"), SPELLINGS)
def test_all_names(
    family: str, name: str, part: str, prefixes: list[str], model_of: ModelOf, layers_of: LayersOf
) -> None:
    names = LayerNames(targets_of(model_of(family)).networks)
    layers = layers_of(name)
    assert len(layers) > 90
    for prefix in prefixes:
        for theirs, ours in layers.items():
            written = prefix + (theirs.replace(".", "_") if prefix.endswith("_") else theirs)
            assert [(known.part, known.path) for known in names.find(written)] == [(part, ours)], written


@pytest.mark.parametrize(
    ("first", "second"), [("lora_te1_", "lora_te2_"), ("text_encoder.", "text_encoder_2."), ("te1.", "te2.")]
)
def test_all_names_of_both_text_encoders(first: str, second: str, model_of: ModelOf, layers_of: LayersOf) -> None:
    names = LayerNames(targets_of(model_of("sdxl")).networks)
    layers = layers_of("sdxl_double_text_encoder.from_transformers")
    assert len(layers) > 300
    for theirs, ours in layers.items():
        folder, _, name = theirs.partition("/")
        prefix = first if folder == "text_encoder" else second
        written = prefix + (name.replace(".", "_") if prefix.endswith("_") else name)
        assert [(known.part, known.path) for known in names.find(written)] == [("text_encoder", ours)], written
    for unused in ("text_model.encoder.layers.11.mlp.fc1", "text_model.final_layer_norm"):
        assert [known.path for known in names.find(first + unused)] == [""]
    assert [known.path for known in names.find(f"{second}text_model.encoder.layers.31.mlp.fc1")] != [""]


@pytest.mark.parametrize("name", ["lora_unet_down_blocks_0_attentions", "unet_x", "lora_te2_a", "", "SD1UNet."])
def test_unknown_names(name: str, model_of: ModelOf) -> None:
    assert LayerNames(targets_of(model_of("sd1")).networks).find(name) == []


def test_a_name_in_both_text_encoders_is_ambiguous(model_of: ModelOf) -> None:
    names = LayerNames(targets_of(model_of("sdxl")).networks)
    assert len(names.find("text_model.encoder.layers.3.mlp.fc1")) == 2


def test_a_tensor_of_several_layers_of_ours_is_none_of_them(model_of: ModelOf) -> None:
    names = LayerNames(targets_of(model_of("sdxl")).networks)
    block = "conditioner.embedders.1.model.transformer.resblocks.3"
    assert names.find(f"{block}.attn.in_proj") == []
    assert [known.library for known in names.find(f"{block}.attn.out_proj")] == ["ldm"]


SETS = [  # the family, the map, what is adapted, how many layers that is, and what stands before the names
    ("sdxl", "sdxl_unet.from_ldm", r"SDXLCrossAttention", 722, "lora_unet_"),
    ("sdxl", "sdxl_unet.from_diffusers", r"SDXLCrossAttention", 722, "unet."),
    ("sdxl", "sdxl_unet.from_diffusers", r".", 794, "lora_unet_"),
    ("sdxl", "sdxl_double_text_encoder.from_transformers", r".", 259, ""),
    ("sd1", "convmap_unet_sd15.diffusers", r"CrossAttention", 192, "lora_unet_"),
    ("sd1", "sd15_unet.from_ldm", r".", 282, "lora_unet_"),
    ("sd1", "clip_text_l.from_transformers", r".", 72, "lora_te_"),
]


@pytest.mark.parametrize(("family", "name", "pattern", "count", "prefix"), SETS)
def test_each_update_lands_on_the_layer_of_its_name(
    family: str, name: str, pattern: str, count: int, prefix: str, model_of: ModelOf, layers_of: LayersOf
) -> None:
    """Ranks differ, so that they tell the updates apart: shapes tell little."""
    model = model_of(family)
    root = model.unet if "unet" in name else model.clip_text_encoder
    expected: dict[nn.Module, int] = {}
    tensors: dict[str, Tensor] = {}
    for theirs, ours in sorted(layers_of(name).items()):
        layer = root.get_submodule(ours)
        if not isinstance(layer, (fl.Linear, fl.Conv2d)) or not re.search(pattern, ours):
            continue
        rank = expected[layer] = len(expected) + 1
        key = spell(prefix, theirs)
        weight: Any = layer.weight
        ones = (1,) * (weight.ndim - 2)
        tensors[f"{key}.lora_down.weight"] = torch.empty(rank, *weight.shape[1:], device="meta")
        tensors[f"{key}.lora_up.weight"] = torch.empty(weight.shape[0], rank, *ones, device="meta")
    assert len(expected) == count
    before = repr(model)
    manager = SDLoraManager(model)
    manager.add_loras("style", tensors)
    adapters = list(root.layers(LoraAdapter, recurse=True))
    assert {adapter.target: adapter.loras["style"].rank for adapter in adapters} == expected
    assert len(manager.lora_adapters) == count
    manager.remove_all()
    assert repr(model) == before


def spell(prefix: str, name: str) -> str:
    if "/" in name:
        folder, _, name = name.partition("/")
        prefix = "lora_te1_" if folder == "text_encoder" else "lora_te2_"
    return prefix + (name.replace(".", "_") if prefix.endswith("_") else name)


def test_a_locon_of_everything_has_more_than_a_thousand_layers(model_of: ModelOf, layers_of: LayersOf) -> None:
    model = model_of("sdxl")
    tensors: dict[str, Tensor] = {}
    for name, root in (
        ("sdxl_unet.from_ldm", model.unet),
        ("sdxl_double_text_encoder.from_transformers", model.clip_text_encoder),
    ):
        for theirs, ours in layers_of(name).items():
            layer = root.get_submodule(ours)
            if isinstance(layer, (fl.Linear, fl.Conv2d)):
                key = spell("lora_unet_", theirs)
                down = (2, *layer.weight.shape[1:])
                up = (layer.weight.shape[0], 2, *([1] * (layer.weight.ndim - 2)))
                tensors[f"{key}.lora_down.weight"] = torch.empty(down, device="meta")
                tensors[f"{key}.lora_up.weight"] = torch.empty(up, device="meta")
    manager = SDLoraManager(model)
    plan = manager.add_loras("all", tensors)
    assert plan.is_whole and len(plan.of_status("fits")) == len(manager.loras) > 1000
    manager.remove_all()
