"""Files that were converted do the same in diffusers as those that it reads itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from refiners.conversion.lora.tools import convert_lora
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

Compare = Callable[..., None]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[3] / "parity"))
    checkpoints = import_module("checkpoints")
    sys.path.pop(0)
    return checkpoints.write_folder(tmp_path_factory.mktemp("model"), checkpoints.small(checkpoints.SD15))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    options: Any = {"safety_checker": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, **options)


def files(folder: Path, ranks: dict[str, tuple[int, float]]) -> Path:
    """Write a file as kohya does, with a rank and an alpha for each layer."""
    tensors: dict[str, Tensor] = {}
    generator = Generator().manual_seed(0)
    for layer, (rank, alpha) in ranks.items():
        kernel = (3, 3) if layer.endswith("conv1") else ()
        ones = (1,) * len(kernel)
        tensors[f"{layer}.lora_down.weight"] = torch.randn(rank, 64, *kernel, generator=generator)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(64, rank, *ones, generator=generator)
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


@torch.no_grad()
def theirs(pipeline: Any, file: Path) -> Tensor:
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    try:
        text = pipeline.encode_prompt("a cat", "cpu", 1, False)[0]
        return pipeline.unet(torch.randn(1, 4, 8, 8, generator=Generator().manual_seed(1)), 501, text).sample
    finally:
        pipeline.unload_lora_weights()


@torch.no_grad()
def ours(folder: Path, file: Path) -> Tensor:
    model = StableDiffusion_1.from_pretrained(folder)
    SDLoraManager(model).load("a", file)
    conditions = model.compute_conditions("a cat", size=(64, 64))
    model.set_unet_context(timestep=torch.tensor([501]), **conditions)
    x = torch.randn(1, 4, 8, 8, generator=Generator().manual_seed(1))
    return model.unet(torch.cat([x, x]))[1:]


BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
TEXT = "lora_te_text_model_encoder_layers_1_self_attn_q_proj"
RANKS = {
    "as it expects": {f"{BLOCK}_attn1_to_q": (4, 4.0), f"{BLOCK}_attn1_to_v": (4, 4.0)},
    "another alpha": {f"{BLOCK}_attn1_to_q": (4, 1.0), f"{BLOCK}_attn1_to_v": (4, 1.0)},
    "unequal ranks": {f"{BLOCK}_attn1_to_q": (4, 4.0), f"{BLOCK}_attn1_to_v": (8, 8.0)},
    "all unequal": {
        f"{BLOCK}_attn1_to_q": (4, 1.0),
        f"{BLOCK}_attn2_to_out_0": (8, 2.0),
        "lora_unet_mid_block_resnets_0_conv1": (4, 3.0),
        TEXT: (6, 12.0),
    },
}


@pytest.mark.parametrize("case", RANKS)
def test_multipliers(case: str, folder: Path, pipeline: Any, tmp_path: Path, compare: Compare) -> None:
    kohya, converted = files(tmp_path, RANKS[case]), tmp_path / "diffusers.safetensors"
    convert_lora(kohya, converted, format="diffusers", checkpoint=folder)
    expected = ours(folder, kohya)
    compare("ours", ours(folder, converted), expected, 0.0, 0.0)
    compare("theirs", theirs(pipeline, converted), expected)
