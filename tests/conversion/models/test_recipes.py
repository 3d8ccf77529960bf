"""The maps of the recipes are those of the published conversions, and so are the files, revisions and hashes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Size

from refiners.conversion import (
    autoencoder_sd15,
    autoencoder_sdxl,
    clip_image_sd21,
    clip_text_sd15,
    clip_text_sdxl,
    controllora_sdxl,
    controlnet_sd15,
    ipadapter_sd15,
    ipadapter_sdxl,
    models,
    preprocessors,
    t2iadapter_sd15,
    t2iadapter_sdxl,
    unet_sd15,
    unet_sdxl,
)
from refiners.conversion.cli import all_weights
from refiners.conversion.utils import Conversion, Hub, WeightRecipe

MAPS = {
    "convmap_unet_sd15.diffusers": unet_sd15.diffusers_recipe,
    "convmap_unet_sd15.civitai": unet_sd15.civitai_recipe,
    "convmap_unet_sdxl.diffusers": unet_sdxl.diffusers_recipe,
    "convmap_unet_sdxl.civitai": unet_sdxl.civitai_recipe,
    "convmap_autoencoder.diffusers": autoencoder_sd15.diffusers_recipe,
    "convmap_autoencoder.civitai": autoencoder_sd15.civitai_recipe,
    "convmap_clip_text_sd15.diffusers": clip_text_sd15.diffusers_recipe,
    "convmap_clip_text_sd15.civitai": clip_text_sd15.civitai_recipe,
    "convmap_clip_image_sd21": clip_image_sd21.diffusers_recipe,
    "convmap_controlnet_sd15": controlnet_sd15.diffusers_recipe,
    "convmap_ipadapter_sd15": ipadapter_sd15.diffusers_recipe,
    "convmap_ipadapter_sd15.plus": ipadapter_sd15.diffusers_plus_recipe,
    "convmap_ipadapter_sdxl": ipadapter_sdxl.diffusers_recipe,
    "convmap_ipadapter_sdxl.plus": ipadapter_sdxl.plus_diffusers_recipe,
    "convmap_t2i_sd15": t2iadapter_sd15.diffusers_recipe,
    "convmap_informative_drawings": preprocessors.informative_drawings_recipe,
    "sdxl_double_text_encoder.from_transformers": clip_text_sdxl.diffusers_recipe,
    "sdxl_control_lora.from_original": controllora_sdxl.canny.recipe,
}


@pytest.mark.parametrize("name", MAPS)
def test_the_map_is_the_published_one(name: str, key_map_of: Callable[[str], dict[str, str]]) -> None:
    assert MAPS[name].key_map == key_map_of(name)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("autoencoder.from_ldm", autoencoder_sd15.civitai_recipe),
        ("clip_text_l.from_ldm", clip_text_sd15.civitai_recipe),
        ("sd15_unet.from_ldm", unet_sd15.civitai_recipe),
        ("sdxl_unet.from_ldm", unet_sdxl.civitai_recipe),
    ],
)
def test_the_prefix_is_that_of_a_file_of_a_pipeline(
    name: str, recipe: WeightRecipe, key_map_of: Callable[[str], dict[str, str]]
) -> None:
    assert {recipe.key_prefix + key: target for key, target in recipe.key_map.items()} == key_map_of(name)


def test_old_names_of_the_attention_of_the_autoencoder_are_known() -> None:
    aliases = autoencoder_sd15.diffusers_recipe.key_aliases
    assert len(aliases) == 8
    attention = "decoder.mid_block.attentions.0"
    assert {aliases[f"{attention}.{old}"] for old in ("query", "key", "value", "proj_attn")} == {
        f"{attention}.{new}" for new in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_tensors_are_reshaped_to_the_shapes_of_the_layout(layout_of: Callable[[str], dict[str, Size]]) -> None:
    cases = {
        "sd15_autoencoder": (autoencoder_sd15.civitai_recipe, 8),
        "clip_image_h": (clip_image_sd21.diffusers_recipe, 1),
        "ip_adapter_plus_sd15": (ipadapter_sd15.diffusers_plus_recipe, 1),
        "ip_adapter_plus_sdxl": (ipadapter_sdxl.plus_diffusers_recipe, 1),
    }
    for name, (recipe, count) in cases.items():
        layout = layout_of(name)
        assert len(recipe.tensor_reshapes) == count
        assert recipe.tensor_reshapes == {key: tuple(layout[key]) for key in recipe.tensor_reshapes}


def test_both_families_share_recipes_where_the_structure_is_the_same() -> None:
    assert autoencoder_sdxl.diffusers_recipe is autoencoder_sd15.diffusers_recipe
    assert t2iadapter_sdxl.diffusers_recipe.key_map == t2iadapter_sd15.diffusers_recipe.key_map


def hub_entry(hub: Hub) -> dict[str, Any]:
    entry = {"repo_id": hub.repo_id, "filename": hub.filename, "revision": hub.revision}
    entry["sha256"] = hub.expected_sha256 or ""
    return entry | ({"download_url": hub.download_url} if hub.download_url else {})


def test_files_revisions_and_hashes_are_the_published_ones(registry: dict[str, Any]) -> None:
    known = all_weights()
    assert set(known) == set(registry)
    for name, weights in known.items():
        if isinstance(weights, Hub):
            assert {"hub": hub_entry(weights)} == registry[name]
            continue
        expected = registry[name]
        found = {"original": hub_entry(weights.original), "converted": hub_entry(weights.converted)}
        assert found == {key: expected[key] for key in found}, name
        assert weights.dtype == getattr(torch, expected["dtype"])
        if "recipe" in expected:
            assert weights.recipe is getattr(getattr(models, name.split(".")[0]), expected["recipe"])


def test_conversions_of_another_kind_say_how(registry: dict[str, Any]) -> None:
    special = {name for name, entry in registry.items() if "class" in entry}
    assert {name for name, value in all_weights().items() if type(value) not in (Conversion, Hub)} == special
