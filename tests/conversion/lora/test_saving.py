"""Updates written to a file, and mistakes in asking for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

sys.path.append(str(Path(__file__).parents[2] / "foundationals" / "latent_diffusion" / "lora"))

from small_models import draw, names_of

from refiners.conversion.lora import inspect_lora, save_lora
from refiners.fluxion.adapters.lora import ChannelFactors, Conv2dLora, HadamardFactors, LoraAdapter, WeightUpdate
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

PROJECTION = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"


@pytest.fixture(scope="module")
def style(model: StableDiffusion_1) -> dict[str, Tensor]:
    return draw(model, r"attn1|conv1|proj_in")


@pytest.mark.parametrize("format", ["kohya", "diffusers", "refiners"])
def test_the_same_tensors_come_back(
    format: str, manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path
) -> None:
    manager.add_loras("style", style, 0.5)
    before = {lora.get_path(): (lora.down.weight, lora.up.weight) for lora in manager.loras}
    manager.save("style", tmp_path / "a.safetensors", format=format, metadata={"author": "me"})
    manager.remove_all()
    manager.load("style", tmp_path / "a.safetensors")
    assert before.keys() == {lora.get_path() for lora in manager.loras}
    for lora in manager.loras:
        assert all(map(torch.equal, before[lora.get_path()], (lora.down.weight, lora.up.weight)))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "me"}
    report = inspect_lora(tmp_path / "a.safetensors", manager.target)
    assert report.plan.is_whole and report.format.startswith(format)


def test_keys_are_those_of_the_original_file(manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    manager.add_loras("style", style)
    manager.save("style", tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == set(style)


def test_no_updates_of_the_name(manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="no updates of the name 'style' are attached"):
        save_lora(manager.target, "style", path)
    with pytest.raises(ValueError, match="there is no LoRA 'style'"):
        manager.save("style", path)
    manager.add_loras("style", style)
    with pytest.raises(ValueError, match="format must be one of kohya, diffusers, refiners, peft, got 'comfy'"):
        manager.save("style", path, format="comfy")
    manager.merge()
    with pytest.raises(ValueError, match="'style' is merged: unmerge it first"):
        manager.save("style", path)
    assert not path.exists()


def test_what_a_format_has_no_tensors_for(manager: SDLoraManager, tmp_path: Path) -> None:
    path, layer = tmp_path / "a.safetensors", names_of(manager.target)[PROJECTION]
    parent = manager.unet.ensure_find_parent(layer)
    factors = [torch.randn(shape) for shape in ((32, 2), (2, 128), (32, 2), (2, 128))]
    adapter = LoraAdapter(layer, WeightUpdate("loha", layer, HadamardFactors(layer, *factors))).inject(parent)
    with pytest.raises(ValueError, match=r"loha: .*ff.net.2: the format 'diffusers' has no tensors for Hadamard"):
        manager.save("loha", path, format="diffusers")
    adapter.add_lora(WeightUpdate("ia3", layer, ChannelFactors(layer, torch.randn(32), with_bias=True)))
    with pytest.raises(ValueError, match="the format 'kohya' has no tensors for ChannelFactors"):
        manager.save("ia3", path)
    assert not path.exists()


def test_a_second_convolution_that_is_larger(manager: SDLoraManager, tmp_path: Path) -> None:
    layer = names_of(manager.target)["conv_in"]
    lora = Conv2dLora.from_weights("style", down=torch.randn(2, 4, 1, 1), up=torch.randn(32, 2, 3, 3))
    LoraAdapter(layer, lora).inject(manager.unet.ensure_find_parent(layer))
    with pytest.raises(ValueError, match="style: conv_in: the second of two convolutions must be of 1×1 in a file"):
        manager.save("style", tmp_path / "a.safetensors")


def test_ranks_that_differ(manager: SDLoraManager, tmp_path: Path) -> None:
    layer, x = names_of(manager.target)[PROJECTION], torch.randn(2, 3, 128)
    factors = [torch.randn(shape) for shape in ((32, 2), (2, 128), (32, 4), (4, 128))]
    LoraAdapter(layer, WeightUpdate("loha", layer, HadamardFactors(layer, *factors))).inject(
        manager.unet.ensure_find_parent(layer)
    )
    (adapter,) = manager.lora_adapters
    before = adapter(x)
    manager.save("loha", tmp_path / "a.safetensors")
    manager.remove_all()
    manager.load("loha", tmp_path / "a.safetensors")
    (adapter,) = manager.lora_adapters
    assert torch.equal(adapter(x), before)


def test_another_ending(manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    manager.add_loras("style", style)
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got '.*a.pt'"):
        manager.save("style", tmp_path / "a.pt")
