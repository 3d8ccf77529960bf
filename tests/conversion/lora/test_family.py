"""What a file itself looks like, and apart from it what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from refiners import inspect_lora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import LatentDiffusionModel, SD1UNet
from refiners.inspect import main

NAMES = {  # files of models, by their names, and what they look like
    "flux": (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_3_linear1"], 3072, None),
    "flux and clip": (
        [
            *(f"lora_unet_double_blocks_{i}_img_attn_qkv" for i in range(4)),
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        ],
        768,
        None,
    ),
    "sd3": (
        [
            *(f"lora_unet_joint_blocks_{i}_x_block_attn_qkv" for i in range(4)),
            "lora_te2_text_model_encoder_layers_30_mlp_fc1",
        ],
        1536,
        None,
    ),
    "llm": (["base_model.model.model.layers.0.self_attn.q_proj"], 4096, None),
    "sd2": (["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"], 1024, "sd2"),
    "sdxl": (["lora_unet_down_blocks_2_attentions_0_transformer_blocks_9_attn2_to_k"], 2048, "sdxl"),
}


def tensors_of(names: list[str], width: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= {f"{name}.lora_down.weight": torch.zeros(4, width), f"{name}.lora_up.weight": torch.zeros(64, 4)}
    return tensors


@pytest.mark.parametrize("kind", NAMES)
def test_a_file_is_what_it_looks_like_whatever_it_is_compared_with(
    kind: str, tmp_path: Path, model_of: Callable[[str], LatentDiffusionModel], capsys: pytest.CaptureFixture[str]
) -> None:
    names, width, family = NAMES[kind]
    path, unet = tmp_path / "file.safetensors", tmp_path / "unet.safetensors"
    save_to_safetensors(path, tensors_of(names, width))
    save_to_safetensors(unet, SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=768).state_dict())
    alone, beside = inspect_lora(path), inspect_lora(path, model_of("sd1"))
    assert (alone.family, alone.model_family, alone.compared_with) == (family, None, None)
    assert (beside.family, beside.model_family) == (family, "sd1")
    assert beside.compared_with == type(model_of("sd1")).__name__ and beside.is_checked and not beside.is_whole
    assert beside.format == alone.format and str(beside).splitlines()[0] == str(alone).splitlines()[0]
    assert main([str(path), "--checkpoint", str(unet)]) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == str(alone).splitlines()[0] and second == f"compared with {unet}: Stable Diffusion 1 (sd1)"
    assert main([str(path), "--checkpoint", str(unet), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["family"], found["model_family"], found["compared_with"]) == (family, "sd1", str(unet))


def test_what_fits_nothing_is_counted_all_the_same() -> None:
    (row,) = inspect_lora(tensors_of(*NAMES["flux"][:2])).table()
    assert (row.part, row.kind, row.rank, row.count) == ("", "LoRA", 4, 2)


def test_names_of_several_models_are_told_as_such(model_of: Callable[[str], LatentDiffusionModel]) -> None:
    tensors = tensors_of(["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"], 64)
    for report in (inspect_lora(tensors), inspect_lora(tensors, model_of("sd1"))):
        assert report.family is None and report.is_of_several
        assert str(report).startswith("the state dict: LoRA for one of several models, written by kohya")
    assert not inspect_lora(tensors_of(*NAMES["flux"][:2])).is_of_several
