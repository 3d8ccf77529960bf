"""What a picture says of how it was made, and that this suffices to make it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from PIL import Image

from refiners.fluxion.utils import save_to_safetensors
from refiners.generate import main

FolderOf = Callable[[str], Path]

# What the options are called in the JSON of a picture; paths are left out there but for the name.
TEXTS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative",
    "variant": "--variant",
    "num_steps": "--steps",
    "condition_scale": "--scale",
    "seed": "--seed",
    "solver": "--solver",
    "prediction": "--prediction",
    "device": "--device",
    "dtype": "--dtype",
    "strength": "--strength",
}
FLAGS = {"partial": "--partial", "trailing": "--trailing", "tiled": "--tiled", "download": "--download"}
FILES = {"checkpoint": "--checkpoint", "init_image": "--init", "mask_image": "--mask"}


def settings_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["refiners"])


def to_argv(settings: dict[str, Any], folder: Path) -> list[str]:
    """Give the settings of a picture as options; its files are in a folder."""
    height, width = settings.pop("size")
    argv = ["--size", f"{width}x{height}"]
    for lora in settings.pop("loras"):
        argv += ["--lora", f"{folder / lora['file']}:{lora['scale']}"]
    del settings["version"]
    for name, value in settings.items():
        if name in FLAGS:
            argv += [FLAGS[name]] * value
        elif value is not None:
            argv += [FILES[name], str(folder / value)] if name in FILES else [TEXTS[name], str(value)]
    return argv


def write_lora(path: Path, **more: torch.Tensor) -> None:
    key, generator = (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v",
        torch.Generator().manual_seed(0),
    )
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 64), (64, 4)))
    save_to_safetensors(path, {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, **more})


CASES: dict[str, tuple[str, list[str]]] = {
    "nothing chosen": ("SD15", []),
    "XL": ("SDXL", ["--negative", "böse"]),
    "solver": ("SD15", ["--solver", "dpm-karras", "--scale", "4.5", "--seed", "5"]),
    "few steps": ("SDXL", ["--solver", "euler", "--trailing", "--scale", "0"]),
    "prediction": ("SD15", ["--prediction", "velocity", "--dtype", "bfloat16"]),
    "trailing alone": ("SD15", ["--trailing"]),
    "LoRA": ("SD15", ["--lora", "style.safetensors:0.7", "--lora", "other.safetensors:-1", "--partial"]),
    "image": ("SD15", ["--init", "in.png", "--tiled"]),
    "strength": ("SD15", ["--init", "in.png", "--strength", "0.4", "--solver", "euler-ancestral"]),
    "mask": ("SD15_INPAINTING", ["--init", "in.png", "--mask", "mask.png"]),
}


@pytest.mark.parametrize("kind, argv", CASES.values(), ids=list(CASES))
def test_the_settings_of_a_picture_make_it_again(
    kind: str, argv: list[str], folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / kind).symlink_to(folder_of(kind))
    write_lora(tmp_path / "style.safetensors")
    write_lora(tmp_path / "other.safetensors", foreign=torch.zeros(1))
    Image.effect_noise((64, 72), 60).convert("RGB").save(tmp_path / "in.png")
    Image.effect_noise((64, 72), 60).point(lambda value: 255 * (value > 128)).save(tmp_path / "mask.png")
    size = [] if "--init" in argv else ["--size", "64x72"]
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    monkeypatch.chdir(tmp_path)
    assert main(["--checkpoint", kind, "--prompt", "a cat", "--steps", "2", *size, *argv, "--out", str(first)]) == 0
    monkeypatch.chdir("/")
    settings = settings_of(first)
    assert main([*to_argv(dict(settings), tmp_path), "--out", str(again)]) == 0
    assert Image.open(first).tobytes() == Image.open(again).tobytes()
    assert settings_of(again) == settings


def test_what_the_model_chose_is_named_as_the_options_are(folder_of: FolderOf, tmp_path: Path) -> None:
    folder, out = copytree(folder_of("SD15"), tmp_path / "model-1.5"), tmp_path / "image.png"
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    config |= {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    config["_class_name"] = "EulerAncestralDiscreteScheduler"
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    argv = ["--checkpoint", str(folder), "--prompt", "a", "--steps", "1", "--size", "64x64", "--out", str(out)]
    assert main([*argv, "--seed", "2"]) == 0
    settings = settings_of(out)
    expected = {"solver": "euler-ancestral", "trailing": True, "prediction": "velocity", "dtype": "float32"}
    expected |= {"checkpoint": "model-1.5", "condition_scale": 7.5, "tiled": False, "variant": None}
    assert {name: settings[name] for name in expected} == expected
    with Image.open(out) as image:
        assert image.text["parameters"] == (
            "a\nSteps: 1, Sampler: euler-ancestral, Seed: 2, Size: 64x64, Model: model-1.5, CFG scale: 7.5"
        )


def test_the_text_that_other_programs_read(folder_of: FolderOf, tmp_path: Path) -> None:
    out = tmp_path / "image.png"
    argv = ["--checkpoint", str(folder_of("SD15")), "--prompt", "a cat", "--size", "72x64", "--steps", "3"]
    argv += ["--seed", "5", "--negative", "böse", "--scale", "4.5", "--solver", "euler", "--out", str(out)]
    write_lora(tmp_path / "style.safetensors")
    assert main([*argv, "--lora", f"{tmp_path / 'style.safetensors'}:0.5"]) == 0
    with Image.open(out) as image:
        assert image.text["parameters"] == (
            "a cat <lora:style:0.5>\nNegative prompt: böse\n"
            "Steps: 3, Sampler: euler, Seed: 5, Size: 72x64, Model: SD15, CFG scale: 4.5"
        )
    settings = settings_of(out)
    assert settings["prompt"] == "a cat" and settings["size"] == [64, 72]
    assert settings["loras"] == [{"file": "style.safetensors", "scale": 0.5}]
