"""LoRAs of all layers of the published models change these as diffusers and PEFT do: the changes are compared, too."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from lora_files import CASES, write_files
from lora_reference import BASE, NEGATIVE, PROMPT, TIMESTEP, latents, run_apart, run_loras
from torch import Tensor

from refiners.foundationals.latent_diffusion import LatentDiffusionModel, StableDiffusion_1, StableDiffusion_XL
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

KINDS: dict[str, tuple[type[LatentDiffusionModel], Any]] = {
    "sd15": (StableDiffusion_1, checkpoints.SD15),
    "sdxl": (StableDiffusion_XL, checkpoints.SDXL),
}
# The layers of a file for all attention of the U-Net and all text encoders, those that ours does without included.
COUNTS = {"sd15": 192 + 72, "sdxl": 722 + 72 + 192}
FULL = pytest.param("full", marks=pytest.mark.parity)


@torch.no_grad()
def outputs(model: LatentDiffusionModel) -> dict[str, Tensor]:
    """Compute what text encoders and U-Net give."""
    conditions = model.compute_conditions(PROMPT, NEGATIVE, size=(128, 128))
    model.set_unet_context(timestep=torch.tensor([TIMESTEP]), **conditions)
    found = {"text": conditions["clip_text_embedding"], "noise": model.unet(latents())}
    return found | ({"pooled": conditions["pooled_text_embedding"]} if isinstance(model, StableDiffusion_XL) else {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [pytest.param("small", marks=pytest.mark.slow), FULL])
def test_loras_change_a_model_as_diffusers_does(
    scale: str, kind: str, checkpoints_folder: Path, tmp_path: Path, compare: Callable[..., None]
) -> None:
    make, components = KINDS[kind]
    components = checkpoints.small(components) if scale == "small" else components
    folder = checkpoints.write_folder(checkpoints_folder / f"{kind}_{scale}", components)
    files = write_files(tmp_path, components)

    model = make.from_pretrained(folder)
    manager = SDLoraManager(model)
    base, ours = outputs(model), dict[str, dict[str, Tensor]]()
    for title, scales in CASES.items():
        for name, value in scales.items():
            plan = manager.load(name, files[name], value)
            assert plan.is_whole
            assert scale == "small" or name not in ("kohya", "peft") or len(plan.updates) == COUNTS[kind]
        ours[title] = outputs(model)
        manager.remove_all()
    assert all(torch.equal(value, base[what]) for what, value in outputs(model).items())
    del model, manager
    gc.collect()  # chains know their parents: now, before the other implementation has it in memory, too

    theirs = run_loras(folder, files, CASES) if scale == "small" else run_apart(folder, files, CASES, tmp_path)
    for title, found in ours.items():
        for what, value in found.items():
            expected, before = theirs[f"{title}: {what}"], theirs[f"{BASE}: {what}"]
            compare(f"{kind} with a LoRA, {title}: {what}", value, expected)
            if (expected - before).norm() > 0:
                assert (expected - before).norm() > 0.2 * before.norm()
                compare(f"{kind} with a LoRA, {title}: change of {what}", value - base[what], expected - before)
            else:
                assert torch.equal(value, base[what])
