"""Small models, LoRA files for them, and what a U-Net makes of these."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[3] / "foundationals" / "latent_diffusion" / "lora"))

from small_models import draw, make_sd1

from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

Run = Callable[..., Tensor]


@pytest.fixture(scope="session")
def model() -> StableDiffusion_1:
    torch.manual_seed(0)
    return make_sd1()


@pytest.fixture
def manager(model: StableDiffusion_1) -> Iterator[SDLoraManager]:
    made = SDLoraManager(model)
    yield made
    made.remove_all()


@pytest.fixture
def run(model: StableDiffusion_1, manager: SDLoraManager) -> Run:
    """Give what the U-Net predicts with files attached, each with its scale."""

    @torch.no_grad()
    def predict(files: dict[Path, float]) -> Tensor:
        for file, scale in files.items():
            manager.load(str(file), file, scale)
        generator = torch.Generator().manual_seed(1)
        model.unet.set_clip_text_embedding(torch.randn(1, 5, 32, generator=generator))
        model.unet.set_timestep(torch.tensor([10]))
        y = model.unet(torch.randn(1, 4, 8, 8, generator=generator))
        manager.remove_all()
        return y

    return predict


@pytest.fixture
def write(model: StableDiffusion_1, tmp_path: Path) -> Callable[..., Path]:
    """Write a file as kohya does, of the layers whose names a pattern matches, with small numbers."""

    def write_file(name: str, pattern: str = r"attn1|conv1|proj_in", rank: int = 2, seed: int = 0) -> Path:
        tensors = draw(model, pattern, rank, seed)
        small = {key: 0.05 * value if "lora_up" in key else value for key, value in tensors.items()}
        save_to_safetensors(tmp_path / name, small, {"modelspec.title": name, "sshs_model_hash": "0"})
        return tmp_path / name

    return write_file
