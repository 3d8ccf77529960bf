"""Which tensors of each library become which of ours: full-size models by their shapes, small ones by their values."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Size, Tensor

from refiners.conversion.checkpoint import JoinedSource, StateDict
from refiners.conversion.detection import find_component, find_components
from refiners.conversion.formats import COMPONENTS, Component, formats_of
from refiners.conversion.loading import load_into, read_weights, to_diffusers
from refiners.conversion.matching import match
from refiners.conversion.naming.autoencoder import (
    DiffusersAutoencoder,
    LDMAutoencoder,
    OldDiffusersAutoencoder,
    autoencoder_layout,
    autoencoder_names,
)
from refiners.conversion.naming.unet import SD15, SDXL, DiffusersUNet, LDMUNet, unet_layout, unet_names

Layouts = Callable[[str], dict[str, Size]]
Maps = Callable[[str], dict[str, str]]


def meta(shapes: Mapping[str, Size]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta", dtype=torch.float16) for key, shape in shapes.items()}


def source_of(layout: dict[str, Size], key_map: dict[str, str]) -> tuple[dict[str, Size], dict[str, str]]:
    """Give the shapes in a file of the original, and its key of each of ours."""
    shapes: dict[str, Size] = {}
    keys: dict[str, str] = {}
    for source, target in key_map.items():
        for kind in (".weight", ".bias", ""):
            if target + kind in layout:
                keys[target + kind] = source + kind
                shapes[source + kind] = layout[target + kind]
    return shapes, keys


# The layout of a model, a published map of its names, and what is found.
PUBLISHED: list[tuple[str, str, Component, str]] = [
    ("sd15_unet", "convmap_unet_sd15.diffusers", "unet_sd1", "diffusers"),
    ("sd15_unet_inpainting", "sd15_unet.from_ldm", "unet_sd1", "ldm (prefix model.diffusion_model.)"),
    ("sd15_unet_ic_light", "convmap_unet_sd15.civitai", "unet_sd1", "ldm"),
    ("sdxl_unet", "sdxl_unet.from_diffusers", "unet_sdxl", "diffusers"),
    ("sdxl_unet_lcm", "convmap_unet_sdxl.diffusers", "unet_sdxl", "diffusers"),
    ("sdxl_unet", "sdxl_unet.from_ldm", "unet_sdxl", "ldm (prefix model.diffusion_model.)"),
    ("sd15_autoencoder", "convmap_autoencoder.diffusers", "autoencoder", "diffusers"),
    ("sd15_autoencoder", "autoencoder.from_ldm", "autoencoder", "ldm (prefix first_stage_model.)"),
    ("sd15_autoencoder", "convmap_autoencoder.civitai", "autoencoder", "ldm"),
    ("clip_text_l", "clip_text_l.from_transformers", "clip_text", "transformers"),
    ("clip_text_l", "convmap_clip_text_sd15.civitai", "clip_text", "transformers"),
    ("clip_text_l", "clip_text_l.from_ldm", "clip_text", "ldm (prefix cond_stage_model.transformer.)"),
    ("clip_image_h", "convmap_clip_image_sd21", "clip_image", "transformers"),
    (
        "sdxl_double_text_encoder",
        "sdxl_double_text_encoder.from_transformers",
        "double_text_encoder",
        "transformers",
    ),
    ("sd15_controlnet", "convmap_controlnet_sd15", "controlnet_sd1", "diffusers"),
    ("t2i_sd15", "convmap_t2i_sd15", "t2i_adapter", "diffusers"),
    ("ip_adapter_sd15", "convmap_ipadapter_sd15", "ip_adapter_sd1", "original"),
    ("ip_adapter_plus_sd15", "convmap_ipadapter_sd15.plus", "ip_adapter_plus_sd1", "original"),
    ("ip_adapter_sdxl", "convmap_ipadapter_sdxl", "ip_adapter_sdxl", "original"),
    ("ip_adapter_plus_sdxl", "convmap_ipadapter_sdxl.plus", "ip_adapter_plus_sdxl", "original"),
    ("informative_drawings", "convmap_informative_drawings", "informative_drawings", "original"),
]


@pytest.mark.parametrize(("layout", "key_map", "component", "format_name"), PUBLISHED)
def test_published_models_are_found_and_matched(
    layout: str, key_map: str, component: str, format_name: str, layout_of: Layouts, key_map_of: Maps
) -> None:
    target = layout_of(layout)
    shapes, keys = source_of(target, key_map_of(key_map))
    assert set(keys) == set(target)
    source = StateDict(meta(shapes))
    found = match(target, source.infos)
    assert (found.format.component, str(found.format)) == (component, format_name)
    assert {key: recipe.key for key, recipe in found.recipes.items()} == keys
    if component == "double_text_encoder":  # which lacks what is not used, by which its depth is told
        return
    (detected,) = find_components(source)
    assert (detected.component, str(detected.format)) == (component, format_name)
    assert detected.shapes == target
    assert not detected.missing and not detected.unknown
    assert detected.dtype == torch.float16
    assert detected.parameters == sum(shape.numel() for shape in target.values())


@pytest.mark.parametrize(
    "name",
    [
        "sd15_unet",
        "sdxl_unet_lcm",
        "sd15_autoencoder",
        "clip_text_l",
        "clip_text_g",
        "clip_text_h",
        "clip_image_base",
        "clip_image_h",
        "clip_image_g",
        "sdxl_double_text_encoder",
        "sd15_controlnet",
        "t2i_sdxl",
        "ip_adapter_plus_sdxl",
    ],
)
def test_our_own_files_are_found(name: str, layout_of: Layouts) -> None:
    (found,) = find_components(StateDict(meta(layout_of(name))))
    assert found.format.library == "refiners"
    assert found.shapes == layout_of(name)
    assert not found.missing and not found.unknown


def test_the_original_shapes_of_attention_and_class_token_are_taken(layout_of: Layouts, key_map_of: Maps) -> None:
    for layout, key_map, change in (
        ("sd15_autoencoder", "autoencoder.from_ldm", lambda key, s: Size((*s, 1, 1)) if len(s) == 2 else s),
        ("clip_image_h", "convmap_clip_image_sd21", lambda key, s: s[1:] if "class_embedding" in key else s),
        (
            "ip_adapter_plus_sd15",
            "convmap_ipadapter_sd15.plus",
            lambda key, s: Size((1, *s)) if "latents" in key else s,
        ),
        ("sd15_unet", "convmap_unet_sd15.diffusers", lambda key, s: s[:2] if ".proj_" in key else s),
    ):
        shapes, _ = source_of(layout_of(layout), key_map_of(key_map))
        changed = {key: change(key, shape) for key, shape in shapes.items()}
        assert changed != shapes
        source = StateDict(meta(changed))
        assert match(layout_of(layout), source.infos).problems == 0
        assert find_component(source).shapes == layout_of(layout)


@pytest.mark.slow
def test_the_full_size_models_of_diffusers_and_transformers_match(layout_of: Layouts) -> None:
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sdxl: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "cross_attention_dim": 2048,
    }
    text_g = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        models: dict[str, Any] = {
            "sd15_unet": unet,
            "sd15_unet_inpainting": UNet2DConditionModel(in_channels=9, cross_attention_dim=768),
            "sdxl_unet": UNet2DConditionModel(**sdxl),
            "sdxl_unet_lcm": UNet2DConditionModel(**sdxl, time_cond_proj_dim=256),
            "sd15_autoencoder": AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
            ),
            "sd15_controlnet": ControlNetModel(cross_attention_dim=768),
            "clip_text_l": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
            ),
        }
        text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**text_g, projection_dim=1280))
    for name, model in models.items():
        assert match(layout_of(name), StateDict(model.state_dict()).infos).problems == 0, name
        assert find_component(StateDict(model.state_dict())).shapes == layout_of(name), name
    texts = JoinedSource(
        {
            "text_encoder/": StateDict(models["clip_text_l"].state_dict()),
            "text_encoder_2/": StateDict(text_2.state_dict()),
        }
    )
    assert match(layout_of("sdxl_double_text_encoder"), texts.infos).problems == 0
    assert find_component(texts).shapes == layout_of("sdxl_double_text_encoder")


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("unet_sd1", "unet_sd1"),
        ("unet_sdxl", "unet_sdxl"),
        ("vae", "autoencoder"),
        ("controlnet", "controlnet_sd1"),
        ("text_2", "clip_text"),
        ("image", "clip_image"),
    ],
)
def test_small_models_go_to_our_names_and_back_bit_for_bit(name: str, component: str, tiny: Any) -> None:
    state = getattr(tiny, name).state_dict()
    found = find_component(StateDict(state))
    assert found.component == component
    ours = read_weights(state)
    assert not set(ours) & set(state)
    assert find_component(StateDict(ours)).format.library == "refiners"
    back = to_diffusers(ours)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_old_names_of_the_attention_of_the_autoencoder(tiny: Any) -> None:
    state = tiny.vae.state_dict()
    layout = autoencoder_layout({key: tensor.shape for key, tensor in state.items()}, DiffusersAutoencoder)
    assert layout is not None
    pairs = zip(autoencoder_names(layout, DiffusersAutoencoder), autoencoder_names(layout, OldDiffusersAutoencoder))
    old = {b.key(kind): state[a.key(kind)] for a, b in pairs for kind in ("weight", "bias")}
    assert sum("query" in key or "proj_attn" in key for key in old) == 8
    ours = read_weights(state)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in read_weights(old).items())


def test_the_original_names_of_small_models(tiny: Any, to_ldm: Any) -> None:
    for state, prefix, make, theirs, ldm in (
        (tiny.unet_sd1.state_dict(), "model.diffusion_model.", unet_layout, DiffusersUNet, LDMUNet),
        (tiny.unet_sdxl.state_dict(), "", unet_layout, DiffusersUNet, LDMUNet),
        (tiny.vae.state_dict(), "first_stage_model.", autoencoder_layout, DiffusersAutoencoder, LDMAutoencoder),
    ):
        layout: Any = make({key: tensor.shape for key, tensor in state.items()}, theirs)
        listed: Any = unet_names if make is unet_layout else autoencoder_names
        renamed = to_ldm(state, listed(layout, theirs), listed(layout, ldm), prefix)
        assert len(renamed) == len(state)
        assert all(key.startswith(prefix) for key in renamed)
        ours, expected = read_weights(renamed), read_weights(state)
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_model_gets_what_a_state_dict_has(device: str, tiny: Any, to_open_clip: Any, make_module: Any) -> None:
    joint, vae = to_open_clip(tiny.text_2.state_dict()), tiny.vae.state_dict()
    squeezed = {
        key: value[..., None, None] if ".to_" in key and value.ndim == 2 else value for key, value in vae.items()
    }
    for state in (joint, squeezed, tiny.image.state_dict(), tiny.double_text_state()):
        ours = read_weights(state)
        module = make_module({key: tensor.shape for key, tensor in ours.items()}, device=device)
        loaded = load_into(module, state).state_dict()
        assert loaded.keys() == ours.keys()
        assert all(torch.equal(loaded[key], ours[key]) and loaded[key].is_contiguous() for key in ours)


def test_diffusers_has_no_names_for_ip_adapters(layout_of: Layouts) -> None:
    with pytest.raises(ValueError, match="diffusers has no names for the layers of ip_adapter_sd1"):
        to_diffusers(meta(layout_of("ip_adapter_sd15")))
    with pytest.raises(ValueError, match=r"a key that a autoencoder does not have: 'Encoder.extra.weight'"):
        to_diffusers({**meta(layout_of("sd15_autoencoder")), "Encoder.extra.weight": torch.ones(1)})


def test_every_component_has_our_format_first() -> None:
    for component in COMPONENTS:
        assert [each.library for each in formats_of(component)].index("refiners") == 0
        assert sum(each.library == "refiners" for each in formats_of(component)) == 1


def test_the_structures_of_full_size_models_are_told_by_their_shapes(layout_of: Layouts) -> None:
    assert find_component(StateDict(meta(layout_of("sd15_unet")))).layout == SD15
    assert find_component(StateDict(meta(layout_of("sdxl_unet")))).layout == SDXL
