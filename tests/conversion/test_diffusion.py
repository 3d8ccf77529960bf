"""Whole pipelines, in folders and in one file: what they are, and that their models can be loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from refiners.conversion.description import describe
from refiners.conversion.diffusion import open_diffusion_checkpoint
from refiners.conversion.loading import load_into, read_weights
from refiners.conversion.naming.autoencoder import (
    DiffusersAutoencoder,
    LDMAutoencoder,
    autoencoder_layout,
    autoencoder_names,
)
from refiners.conversion.naming.unet import DiffusersUNet, LDMUNet, unet_layout, unet_names

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def save(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: value.contiguous().clone() for key, value in state.items()}, path, metadata)
    return path


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() for key, value in state.items()}


@pytest.fixture
def sd1_folder(tmp_path: Path, tiny: Any) -> Path:
    """A small Stable Diffusion 1.5 as diffusers saves it, the U-Net also as a variant."""
    folder = tmp_path / "sd1"
    tiny.unet_sd1.save_pretrained(folder / "unet")
    save(half(tiny.unet_sd1.state_dict()), folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    save(tiny.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 0.5}))
    save(tiny.text_1.state_dict(), folder / "text_encoder" / "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (folder / "safety_checker").mkdir()
    return folder


@pytest.fixture
def sdxl_folder(tmp_path: Path, tiny: Any) -> Path:
    """A small Stable Diffusion XL as diffusers saves it."""
    folder = tmp_path / "sdxl"
    for name, model in (("unet", tiny.unet_sdxl), ("vae", tiny.vae)):
        save(half(model.state_dict()), folder / name / "diffusion_pytorch_model.fp16.safetensors")
    save(tiny.text_1.state_dict(), folder / "text_encoder" / "model.safetensors")
    save(tiny.text_2.state_dict(), folder / "text_encoder_2" / "model.safetensors")
    return folder


def single_file(unet: Any, tiny: Any, to_ldm: Any, text: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a pipeline in the names of the original implementation, with what else is in such files."""
    state = unet.state_dict()
    layout: Any = unet_layout({key: value.shape for key, value in state.items()}, DiffusersUNet)
    whole = to_ldm(state, unet_names(layout, DiffusersUNet), unet_names(layout, LDMUNet), "model.diffusion_model.")
    whole |= {f"model_ema.{key.replace('.', '')}": value for key, value in whole.items()}
    vae = tiny.vae.state_dict()
    shape: Any = autoencoder_layout({key: value.shape for key, value in vae.items()}, DiffusersAutoencoder)
    theirs, ldm = (autoencoder_names(shape, make) for make in (DiffusersAutoencoder, LDMAutoencoder))
    whole |= to_ldm(vae, theirs, ldm, "first_stage_model.")
    tables = ("betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance", "logvar")
    return whole | text | {name: torch.ones(4) for name in tables}


@pytest.fixture
def sd1_file(tmp_path: Path, tiny: Any, to_ldm: Any) -> Path:
    """The same small Stable Diffusion 1.5 in one file."""
    prefix = "cond_stage_model.transformer.text_model."
    text = {f"{prefix}{key}": value for key, value in tiny.text_1.state_dict().items()}
    text[f"{prefix}embeddings.position_ids"] = torch.arange(77)
    return save(single_file(tiny.unet_sd1, tiny, to_ldm, text), tmp_path / "sd1.safetensors")


@pytest.fixture
def sdxl_state(tiny: Any, to_ldm: Any, to_open_clip: Any) -> dict[str, Tensor]:
    """A small Stable Diffusion XL in the names of the original implementation."""
    prefixes = ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model.")
    texts = (tiny.text_1.state_dict(), to_open_clip(tiny.text_2.state_dict()))
    text = {f"{prefix}{key}": value for prefix, state in zip(prefixes, texts) for key, value in state.items()}
    text[f"{prefixes[1]}logit_scale"] = torch.ones(())
    return single_file(tiny.unet_sdxl, tiny, to_ldm, text | {"denoiser.sigmas": torch.ones(9)})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_stable_diffusion_1_is_opened(
    kind: str, sd1_folder: Path, sd1_file: Path, tiny: Any, make_module: Callable[..., nn.Module]
) -> None:
    with open_diffusion_checkpoint(sd1_folder if kind == "folder" else sd1_file) as checkpoint:
        assert checkpoint.family == "sd1"
        assert checkpoint.lda is not None and checkpoint.clip_text_encoder is not None
        config = checkpoint.config
        assert (config.in_channels, config.channels, config.cross_attention_dim) == (4, (32, 64, 64), 48)
        assert not config.is_inpainting
        for found, model in (
            (checkpoint.unet, tiny.unet_sd1),
            (checkpoint.lda, tiny.vae),
            (checkpoint.clip_text_encoder, tiny.text_1),
        ):
            expected = read_weights(model.state_dict())
            module = load_into(make_module(found.shapes), found)
            assert same(module.state_dict(), expected)
            assert same(found.state_dict(), expected)
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.unet.state_dict()


def test_the_folder_says_what_is_predicted(sd1_folder: Path) -> None:
    with open_diffusion_checkpoint(sd1_folder) as checkpoint:
        config, scheduler = checkpoint.config, checkpoint.config.scheduler
        assert (config.prediction_type, config.zero_snr, config.latent_scale) == ("v_prediction", True, 0.5)
        assert scheduler is not None
        assert (scheduler.class_name, scheduler.beta_schedule) == ("DDIMScheduler", "scaled_linear")
        assert (scheduler.beta_start, scheduler.beta_end, scheduler.num_train_timesteps) == (0.00085, 0.012, 1000)
        assert (scheduler.timestep_spacing, scheduler.steps_offset) == ("trailing", 1)
        assert config.raw["unet"]["attention_head_dim"] == 4
        assert config.raw["model_index"] == {"_class_name": "StableDiffusionPipeline"}


def test_a_variant_can_be_chosen(sd1_folder: Path, tiny: Any) -> None:
    assert describe(sd1_folder / "unet").components[0].dtype == torch.float32
    assert describe(sd1_folder / "unet", variant="fp16").components[0].dtype == torch.float16
    with pytest.raises(ValueError, match=r"vae has no variant 'fp16', expected one of \(none\)"):
        open_diffusion_checkpoint(sd1_folder, variant="fp16")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_stable_diffusion_xl_is_opened(
    kind: str, sdxl_folder: Path, sdxl_state: dict[str, Tensor], tmp_path: Path, tiny: Any
) -> None:
    path = sdxl_folder if kind == "folder" else save(sdxl_state, tmp_path / "sdxl.safetensors")
    with open_diffusion_checkpoint(path) as checkpoint:
        assert checkpoint.family == "sdxl"
        assert checkpoint.unet.component == "unet_sdxl"
        assert checkpoint.config.prediction_type == "epsilon"
        assert checkpoint.config.latent_scale == 0.13025
        assert checkpoint.clip_text_encoder is not None
        assert checkpoint.clip_text_encoder.component == "double_text_encoder"
        texts = {"text_encoder/": tiny.text_1, "text_encoder_2/": tiny.text_2}
        states = {f"{prefix}{k}": v for prefix, model in texts.items() for k, v in model.state_dict().items()}
        assert same(checkpoint.clip_text_encoder.state_dict(), read_weights(states))
        dtype = torch.float16 if kind == "folder" else torch.float32
        assert checkpoint.unet.dtype == dtype
        assert same(checkpoint.unet.state_dict(), read_weights(tiny.unet_sdxl.state_dict(), dtype=dtype))


@pytest.mark.parametrize(
    ("extra", "metadata", "expected", "zero_snr"),
    [
        ({}, {}, "epsilon", False),
        ({"v_pred": torch.empty(0)}, {}, "v_prediction", False),
        ({"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, {}, "v_prediction", True),
        ({"edm_mean": torch.ones(4), "edm_std": torch.ones(4)}, {}, "edm", False),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon", False),
    ],
)
def test_a_file_says_what_is_predicted_in_several_ways(
    extra: dict[str, Tensor],
    metadata: dict[str, str],
    expected: str,
    zero_snr: bool,
    sdxl_state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    path = save(sdxl_state | extra, tmp_path / "sdxl.safetensors", metadata)
    with open_diffusion_checkpoint(path) as checkpoint:
        assert (checkpoint.config.prediction_type, checkpoint.config.zero_snr) == (expected, zero_snr)
    assert describe(path).unknown == ()


def test_an_inpainting_model_is_one_of_nine_channels(tmp_path: Path, tiny: Any) -> None:
    state = tiny.unet_sd1.state_dict() | {"conv_in.weight": torch.ones(32, 9, 3, 3)}
    path = save(state, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for where in (path, path.parent, tmp_path):
        with open_diffusion_checkpoint(where) as checkpoint:
            assert checkpoint.config.is_inpainting
            assert checkpoint.lda is None and checkpoint.clip_text_encoder is None
        assert "Stable Diffusion 1 (sd1), inpainting, predicts noise (epsilon)" in str(describe(where))


def test_other_families_are_recognized(tmp_path: Path, tiny: Any, to_open_clip: Any) -> None:
    state = dict(tiny.unet_sd1.state_dict())
    for key, value in state.items():
        if "attn2.to_k" in key or "attn2.to_v" in key:
            state[key] = torch.ones(value.shape[0], 1024)
        elif ".proj_in.weight" in key or ".proj_out.weight" in key:
            state[key] = value[:, :, 0, 0]
    path = save(state, tmp_path / "sd2.safetensors")
    with open_diffusion_checkpoint(path) as checkpoint:
        assert (checkpoint.family, checkpoint.config.prediction_type) == ("sd2", None)
        assert checkpoint.config.cross_attention_dim == 1024
    state = dict(tiny.unet_sdxl.state_dict())
    for key, value in state.items():
        if "attn2.to_k" in key or "attn2.to_v" in key:
            state[key] = torch.ones(value.shape[0], 1280)
    assert describe(save(state, tmp_path / "refiner.safetensors")).family == "sdxl_refiner"


def test_a_description_lists_the_models(sd1_file: Path, sd1_folder: Path, tiny: Any) -> None:
    found = describe(sd1_file)
    assert (found.kind, found.family, found.unknown) == ("file", "sd1", ())
    assert [(each.component, each.format, each.is_whole) for each in found.components] == [
        ("unet_sd1", "ldm (prefix model.diffusion_model.)", True),
        ("autoencoder", "ldm (prefix first_stage_model.)", True),
        ("clip_text", "ldm (prefix cond_stage_model.transformer.)", True),
    ]
    assert found.components[0].parameters == sum(p.numel() for p in tiny.unet_sd1.parameters())
    first, *_, last = str(found).splitlines()
    assert first == f"{sd1_file}: file, Stable Diffusion 1 (sd1), predicts noise (epsilon)"
    assert last.startswith("  clip_text: names of ldm (prefix cond_stage_model.transformer.), 0.0 M param")
    folder = describe(sd1_folder)
    assert (folder.kind, folder.family) == ("pipeline", "sd1")
    assert [each.format for each in folder.components] == ["diffusers", "diffusers", "transformers"]


def test_a_description_says_what_is_wrong(tmp_path: Path, tiny: Any) -> None:
    state = {**tiny.vae.state_dict(), "encoder.extra": torch.ones(1), "loss.discriminator": torch.ones(1)}
    del state["decoder.conv_in.weight"]
    found = describe(save(state, tmp_path / "vae.safetensors"))
    assert found.components[0].missing == ("decoder.conv_in.weight",)
    assert found.components[0].unknown == ("encoder.extra",)
    assert found.family is None and found.config is None
    assert str(found).splitlines()[2:] == ["    1 missing: decoder.conv_in.weight", "    1 unknown: encoder.extra"]
    found = describe(save({"lora.up": torch.ones(1)}, tmp_path / "lora.safetensors"))
    assert (found.components, found.unknown) == ((), ("lora.up",))
    assert str(found).splitlines() == [
        f"{tmp_path / 'lora.safetensors'}: file, no Stable Diffusion",
        "  1 keys of no model that is known: lora.up",
    ]


def test_a_pipeline_that_is_not_whole_is_refused(tmp_path: Path, tiny: Any, sd1_folder: Path) -> None:
    path = save(tiny.vae.state_dict(), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"has no U-Net .*; it holds autoencoder \(diffusers\); first keys: decoder"):
        open_diffusion_checkpoint(path)
    state = dict(tiny.vae.state_dict())
    del state["decoder.conv_in.bias"]
    save(state, sd1_folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"holds no whole autoencoder \(diffusers\):\n1 missing:\n    decoder.conv_in"):
        open_diffusion_checkpoint(sd1_folder)
    (sd1_folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"vae/config.json is no JSON"):
        open_diffusion_checkpoint(sd1_folder)
    (sd1_folder / "vae" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"vae/config.json must hold an object, got list"):
        describe(sd1_folder)
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        open_diffusion_checkpoint(tmp_path / "absent")
