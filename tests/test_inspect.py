"""The command that says what a file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import refiners
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import SD1UNet
from refiners.inspect import main

LAYER = "lora_unet_down_blocks_0_attentions_0_proj_in"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    tensors = {f"{LAYER}.lora_down.weight": torch.zeros(2, 32), f"{LAYER}.lora_up.weight": torch.zeros(32, 2)}
    save_to_safetensors(path, tensors)
    return path


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    path = tmp_path / "unet.safetensors"
    model = SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32)
    save_to_safetensors(path, model.state_dict())
    return path


def test_a_lora(file: Path, unet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file)]) == 0
    assert capsys.readouterr().out == f"{refiners.inspect_lora(file)}\n"
    assert main([str(file), "--checkpoint", str(unet), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["kind"] == "lora" and found["is_checked"] and found["is_whole"] and found["updates"][0]["name"] == LAYER
    )


def test_a_lora_of_another_size(file: Path, unet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_to_safetensors(
        file, {f"{LAYER}.lora_down.weight": torch.zeros(2, 9), f"{LAYER}.lora_up.weight": torch.zeros(9, 2)}
    )
    assert main([str(file), "--checkpoint", str(unet)]) == 1
    text = capsys.readouterr().out
    assert "1: shapes do not fit the layer's weight, which is (32, 32, 1, 1), got down (2, 9), up (9, 2)" in text


def test_other_files(unet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(unet)]) == 0
    assert "unet_sd1: names of refiners" in capsys.readouterr().out
    assert main([str(unet), "--json"]) == 0
    (component,) = json.loads(capsys.readouterr().out)["components"]
    assert component["component"] == "unet_sd1" and component["dtype"] == "float32" and component["missing"] == []


def test_a_variant(unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model" / "unet"
    folder.mkdir(parents=True)
    unet.rename(folder / "model.half.safetensors")
    model = SD1UNet(9, channels=(32, 64, 64, 64), text_embedding_dim=32)
    save_to_safetensors(folder / "model.safetensors", model.state_dict())
    for path in (folder, folder.parent):
        assert main([str(path)]) == main([str(path), "--variant", "half"]) == 0
        plain, half = (line for line in capsys.readouterr().out.splitlines() if line.startswith(str(path)))
        assert "inpainting" in plain and "inpainting" not in half
    assert main([str(folder), "--variant", "other"]) == 2
    assert "has no variant 'other'" in capsys.readouterr().err


def test_what_is_wrong_with_a_model(unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SD1UNet(4, channels=(32, 64, 64, 64), text_embedding_dim=32)
    key = "DownBlocks.Chain_1.Conv2d.bias"
    state = {**model.state_dict(), key: torch.zeros(32, dtype=torch.int64)}
    save_to_safetensors(unet, state)
    assert main([str(unet)]) == 0
    assert f"    1 unfit: {key}: got (32,) in torch.int64\n" in capsys.readouterr().out
    assert main([str(unet), "--json"]) == 0
    assert key in json.loads(capsys.readouterr().out)["components"][0]["unfit"][0]


def test_mistakes_are_one_line(file: Path, unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in (
        ([str(tmp_path / "none.safetensors")], "there is no file or folder"),
        ([str(unet), "--variant", "fp16"], f"argument --variant: {unet} is one file; folders have variants"),
        ([str(unet), "--checkpoint", str(unet)], "argument --checkpoint: unet.safetensors is no LoRA"),
        ([str(file), "--checkpoint", str(file)], "holds neither a U-Net nor a text encoder"),
    ):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith("python -m refiners inspect: error: ") and message in captured.err


def test_other_names_of_the_package_are_unknown() -> None:
    with pytest.raises(AttributeError, match="module 'refiners' has no attribute 'inspect_loras'"):
        _ = refiners.inspect_loras  # pyright: ignore[reportAttributeAccessIssue]
