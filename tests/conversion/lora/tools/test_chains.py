"""Files of any chain get a lower rank without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import refiners.fluxion.layers as fl
from refiners.conversion.lora.tools import resize_lora
from refiners.fluxion.adapters.lora.files import load_loras, save_loras
from refiners.fluxion.adapters.lora.training import add_trainable_loras
from refiners.fluxion.utils import save_to_safetensors
from refiners.lora import main


def make() -> fl.Chain:
    torch.manual_seed(0)
    return fl.Chain(fl.Chain(fl.Conv2d(4, 6, 3), fl.Conv2d(6, 8, 1)), fl.Flatten(start_dim=2), fl.Linear(4, 5))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    chain, path = make(), tmp_path / "chain.safetensors"
    add_trainable_loras("style", chain, rank=4, alpha=6)
    save_loras(chain, "style", path)
    drawn = {key: torch.randn_like(each) if "up" in key else each for key, each in load_file(path).items()}
    save_to_safetensors(path, drawn)
    return path


@torch.no_grad()
def outputs(file: Path) -> torch.Tensor:
    chain = make()
    load_loras(chain, "style", file)
    return chain(torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)))


def test_the_same_rank_is_the_same_function(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    told: list[tuple[int, int]] = []
    written = resize_lora(file, out, rank=4, progress=lambda *each: told.append(each))
    assert [each.rank for each in written.layers] == [4, 4, 4] and told == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(outputs(out), outputs(file), rtol=1e-5, atol=1e-5)


def test_each_layer_is_the_nearest(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["resize", str(file), "--rank", "2", "--out", str(out)]) == 0
    before, after = load_file(file), load_file(out)
    assert before.keys() == after.keys()
    for key in (key for key in before if key.endswith("lora_down.weight")):
        matrices = [
            tensors[key.replace("lora_down.weight", "alpha")].item() / len(tensors[key])
            * tensors[key.replace("down", "up")].double().flatten(1) @ tensors[key].double().flatten(1)
            for tensors in (before, after)
        ]  # fmt: skip
        error = (matrices[1] - matrices[0]).norm()
        torch.testing.assert_close(error, torch.linalg.svdvals(matrices[0])[2:].norm(), rtol=1e-4, atol=0)
        assert len(after[key]) == 2 and after[key].dtype == torch.float32
    load_loras(make(), "style", out)


def test_what_cannot_be_resized(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match="is a file of save_loras, of which the format 'diffusers' has no layers"):
        resize_lora(file, out, rank=2, format="diffusers")
    tensors = load_file(file)
    del tensors["Linear.lora_up.weight"]
    save_to_safetensors(tmp_path / "broken.safetensors", tensors)
    with pytest.raises(ValueError, match="something cannot be attached, nothing was written"):
        resize_lora(tmp_path / "broken.safetensors", out, rank=2)
    assert not out.exists()
