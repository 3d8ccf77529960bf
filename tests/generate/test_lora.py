"""LoRAs of the command that makes images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from refiners.fluxion.utils import load_from_safetensors, save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager
from refiners.generate import main

FolderOf = Callable[[str], Path]


def write(path: Path, width: int = 64) -> Path:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
    torch.manual_seed(0)
    tensors = {f"{key}.lora_down.weight": torch.randn(4, width), f"{key}.lora_up.weight": torch.randn(64, 4)}
    save_to_safetensors(path, tensors)
    return path


def run(folder: Path, out: Path, *more: str) -> int:
    options = ["--prompt", "a cat", "--out", str(out), "--size", "64x64", "--steps", "2", "--seed", "3"]
    return main(["--checkpoint", str(folder), *options, *more])


def test_loras_are_attached(folder_of: FolderOf, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    folder, file = folder_of("SD15"), write(tmp_path / "style.safetensors")
    again = write(tmp_path / "again" / "style.safetensors")
    assert run(folder, tmp_path / "one.png", "--lora", f"{file}:0.5", "--lora", str(again)) == 0
    assert run(folder, tmp_path / "none.png") == 0
    model = StableDiffusion_1.from_pretrained(folder)
    SDLoraManager(model).load("both", file, 1.5)
    expected = model.generate("a cat", size=(64, 64), num_steps=2, seed=3)[0]
    one, none, both = (
        torch.tensor(list(image.tobytes())).double()
        for image in (Image.open(tmp_path / "one.png"), Image.open(tmp_path / "none.png"), expected)
    )
    assert (one - both).abs().max() <= 1 < (one - none).abs().max()


def test_a_file_that_does_not_fit_is_one_line(
    folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "style.safetensors", width=65)
    assert run(folder_of("SD15"), tmp_path / "image.png", "--lora", str(file)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "argument --lora" in error and "1 of 1 updates cannot be attached" in error
    command = f"python -m refiners inspect {file} --checkpoint {folder_of('SD15')}"
    assert error.endswith(f"; {command} lists them, --partial attaches the rest\n")
    assert run(folder_of("SD15"), tmp_path / "image.png", "--partial", "--lora", str(file)) == 2
    error = capsys.readouterr().err
    assert "no update would be attached" in error and error.endswith(f"; {command} lists them\n")


def test_what_fits_can_be_attached_alone(
    folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file, mixed = folder_of("SD15"), write(tmp_path / "style.safetensors"), tmp_path / "mixed.safetensors"
    other = {f"lora_unet_nowhere.lora_{each}.weight": torch.ones(2, 2) for each in ("down", "up")}
    save_to_safetensors(mixed, load_from_safetensors(file) | other | {"what": torch.ones(1)})
    assert run(folder, tmp_path / "whole.png", "--lora", str(file), "--partial") == 0
    assert "warning" not in capsys.readouterr().err
    assert run(folder, tmp_path / "part.png", "--lora", str(mixed), "--partial") == 0
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert warning == (
        f"python -m refiners generate: warning: {mixed}: 1 of 2 updates are left out, 1 keys are left over;"
        f" python -m refiners inspect {mixed} --checkpoint {folder} lists them"
    )
    images = [Image.open(tmp_path / name).tobytes() for name in ("whole.png", "part.png")]
    assert images[0] == images[1]
