"""Whole pipelines compared with those of diffusers, from the same checkpoint with random weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from PIL import Image, ImageDraw
from reference import run_apart, run_pipeline
from single_file import write_single_file
from torch import Generator, Tensor

from refiners.foundationals.latent_diffusion import (
    LatentDiffusionModel,
    StableDiffusion_1,
    StableDiffusion_1_Inpainting,
    StableDiffusion_XL,
)
from refiners.foundationals.latent_diffusion.solvers import DDIM
from refiners.generate import main as generate

KINDS: dict[str, tuple[type[LatentDiffusionModel], dict[str, dict[str, Any]]]] = {
    "sd15": (StableDiffusion_1, checkpoints.SD15),
    "sd15_inpainting": (StableDiffusion_1_Inpainting, checkpoints.SD15_INPAINTING),
    "sdxl": (StableDiffusion_XL, checkpoints.SDXL),
}
TEXT: dict[str, Any] = {
    "kind": "text",
    "prompt": ["a cute cat, oil on canvas", "two dogs"],
    "negative": ["", "blurry"],
    "steps": 4,
    "scale": 6.0,
    "seeds": [3, 4],
}
ONE = {**TEXT, "prompt": TEXT["prompt"][:1], "negative": ["ugly"], "seeds": [7]}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15, text to image, two prompts": ("sd15", TEXT),
    "sd15, without guidance": ("sd15", {**ONE, "scale": 1.0}),
    "sd15, image to image": ("sd15", {**ONE, "kind": "image", "strength": 0.5}),
    "sd15, inpainting": ("sd15_inpainting", {**ONE, "kind": "inpaint"}),
    "sdxl, text to image": ("sdxl", ONE),
    "sdxl, image to image": ("sdxl", {**ONE, "kind": "image", "strength": 0.5}),
}
FULL = pytest.param("full", marks=pytest.mark.parity)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", ["small", FULL])
def test_latents_and_images(
    scale: str, name: str, checkpoints_folder: Path, tmp_path: Path, compare: Callable[..., None]
) -> None:
    kind, case = CASES[name]
    make, components = KINDS[kind]
    folder = checkpoints.write_folder(
        checkpoints_folder / f"{kind}_{scale}", checkpoints.small(components) if scale == "small" else components
    )
    case = {**case, "size": [64, 72] if scale == "small" else [256, 256]}
    height, width = case["size"]
    image = Image.effect_noise((width, height), 60).convert("RGB")
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((16, 8, 47, 39), fill=255)

    model = make.from_pretrained(folder, solver=DDIM(case["steps"]))
    with torch.no_grad():
        if case["kind"] == "image":
            case["init_latents"] = model.lda.image_to_latents(image)
        if isinstance(model, StableDiffusion_1_Inpainting):
            masked = model.set_inpainting_conditions(image, mask)[1]
            case |= {"image": image, "mask": mask, "masked_latents": masked}
        ours = sample(model, case, image if case["kind"] == "image" else None)
        lda = model.lda
        del model
        gc.collect()  # chains know their parents: now, before the other implementation has it in memory, too
        theirs = run_pipeline(folder, case) if scale == "small" else run_apart(folder, case, tmp_path)
        compare(f"{name}: latents", ours, theirs["latents"], norm=1e-4, largest=None)
        compare(f"{name}: image of the same latents", lda.decode(theirs["latents"][:1]), theirs["image"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ["small", FULL])
def test_a_single_file_gives_the_same_weights(scale: str, kind: str, checkpoints_folder: Path) -> None:
    make, components = KINDS[kind]
    components = checkpoints.small(components) if scale == "small" else components
    folder = checkpoints.write_folder(checkpoints_folder / f"{kind}_{scale}", components)
    path = write_single_file(checkpoints_folder / f"{kind}_{scale}.safetensors", folder)
    one, other = (make.from_pretrained(source, dtype=torch.float16) for source in (path, folder))
    assert repr(one) == repr(other)
    expected = other.state_dict()
    assert all(torch.equal(value, expected.pop(key)) for key, value in one.state_dict().items())
    assert not expected


def sample(model: LatentDiffusionModel, case: dict[str, Any], image: Image.Image | None) -> Tensor:
    """Run our pipeline as a program does."""
    height, width = case["size"]
    model.classifier_free_guidance = case["scale"] != 1
    model.set_inference_steps(case["steps"], case["steps"] // 2 if image else 0)
    conditions = model.compute_conditions(case["prompt"], case["negative"], size=(height, width))
    generators = [Generator().manual_seed(seed) for seed in case["seeds"]]
    x = model.init_latents((height, width), init_image=image, generator=generators)
    for step in model.steps:
        x = model(x, step=step, condition_scale=case["scale"], **conditions)
    return x


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("scale", ["small", FULL])
def test_the_command_makes_the_same_picture(scale: str, kind: str, checkpoints_folder: Path, tmp_path: Path) -> None:
    """From a folder and from a single file; a step of 8 bits apart, as ours cuts off what theirs rounds."""
    components = checkpoints.small(KINDS[kind][1]) if scale == "small" else KINDS[kind][1]
    folder = checkpoints.write_folder(checkpoints_folder / f"{kind}_{scale}", components)
    single = write_single_file(checkpoints_folder / f"{kind}_{scale}.safetensors", folder)
    case = {**ONE, "size": [64, 72] if scale == "small" else [256, 256]}
    height, width = case["size"]
    theirs = run_pipeline(folder, case) if scale == "small" else run_apart(folder, case, tmp_path / "reference")
    expected = ((theirs["image"][0] / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0)
    for path in (folder, single):
        out = tmp_path / f"{path.stem}.png"
        options = ["--prompt", case["prompt"][0], "--negative", case["negative"][0], "--scale", str(case["scale"])]
        options += ["--size", f"{width}x{height}", "--steps", str(case["steps"]), "--seed", str(case["seeds"][0])]
        assert generate(["--checkpoint", str(path), "--solver", "ddim", "--out", str(out), *options]) == 0
        gc.collect()
        picture = torch.tensor(list(Image.open(out).tobytes())).view(height, width, 3)
        assert (picture - expected).abs().max() <= 1
