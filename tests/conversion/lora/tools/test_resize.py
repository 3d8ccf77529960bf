"""A LoRA file of a lower rank is the nearest one to what it was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from refiners.conversion.lora.tools import resize_lora
from refiners.fluxion.utils import save_to_safetensors

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"

Write = Callable[..., Path]
Run = Callable[..., Tensor]


def product(tensors: dict[str, Tensor], layer: str) -> Tensor:
    """Give what a pair adds to a weight, in float64."""
    down, up = (tensors[f"{layer}.lora_{role}.weight"].double() for role in ("down", "up"))
    return tensors[f"{layer}.alpha"].item() / down.shape[0] * up.flatten(1) @ down.flatten(1)


@pytest.mark.parametrize("format", ["kohya", "diffusers", "refiners"])
def test_the_same_rank_is_the_same_function(format: Any, write: Write, run: Run, tmp_path: Path) -> None:
    source, out = write("a.safetensors", r"attn1|conv|proj_in", 3), tmp_path / "b.safetensors"
    written = resize_lora(source, out, rank=3, format=format)
    assert {each.rank for each in written.layers} == {3}
    before, after, none = run({source: 1.0}), run({out: 1.0}), run({})
    assert (after - before).norm() <= 1e-5 * (before - none).norm()


def test_each_layer_is_the_nearest(write: Write, tmp_path: Path) -> None:
    source, out = write("a.safetensors", r"attn1|conv1", 8), tmp_path / "b.safetensors"
    written = resize_lora(source, out, rank=3)
    before, after = load_file(source), load_file(out)
    kept = {each.name: each.kept for each in written.layers}
    for layer in (LAYER, CONV):
        matrix = product(before, layer)
        values = torch.linalg.svdvals(matrix)
        error = (product(after, layer) - matrix).norm().item()
        assert error == pytest.approx(values[3:].norm().item(), rel=1e-5)
        name = "unet.down_blocks.0." + (
            "attentions.0.transformer_blocks.0.attn1.to_q" if layer == LAYER else "resnets.0.conv1"
        )
        assert kept[name] == pytest.approx((values[:3].square().sum() / values.square().sum()).item(), rel=1e-9)
    assert after[f"{CONV}.lora_down.weight"].shape == (3, 32, 3, 3)
    assert after[f"{CONV}.lora_up.weight"].shape == (32, 3, 1, 1) and after[f"{CONV}.alpha"] == 3
    with safe_open(out, "pt") as file:
        said = file.metadata()
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["modelspec.title"]) == ("3", "3", "a.safetensors")
    assert "sshs_model_hash" not in said


def test_energy_gives_each_layer_its_rank(write: Write, tmp_path: Path) -> None:
    source, out = write("a.safetensors", r"attn1", 8), tmp_path / "b.safetensors"
    resize_lora(source, out, energy=0.7)
    before, after = load_file(source), load_file(out)
    ranks = set[int]()
    for layer in {key.partition(".")[0] for key in before}:
        squares = torch.linalg.svdvals(product(before, layer)).square()
        expected = int((squares.cumsum(0) / squares.sum() < 0.7).sum()) + 1
        assert after[f"{layer}.lora_down.weight"].shape[0] == expected
        ranks.add(expected)
    assert len(ranks) > 1
    with safe_open(out, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "Dynamic"
    resize_lora(source, out, energy=0.7, rank=min(ranks))
    assert {each.shape[0] for key, each in load_file(out).items() if "lora_down" in key} == {min(ranks)}


def test_kinds_without_a_rank_are_copied(run: Run, tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    norm = "lora_unet_down_blocks_0_attentions_0_norm"
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(2, 32).half(),
        f"{LAYER}.lora_up.weight": torch.randn(32, 2).half(),
        f"{LAYER}.dora_scale": torch.rand(32, 1) + 1,
        f"{norm}.w_norm": torch.randn(32),
        f"{norm}.b_norm": torch.randn(32),
        f"{CONV}.lora_down.weight": torch.randn(2, 32, 1, 1),
        f"{CONV}.lora_up.weight": torch.randn(32, 2, 1, 1),
        f"{CONV}.lora_mid.weight": torch.randn(2, 2, 3, 3),
    }
    save_to_safetensors(source, tensors)
    written = resize_lora(source, out, rank=2, dtype=torch.float32)
    after = load_file(out)
    assert all(torch.equal(after[key], tensors[key]) for key in tensors if "norm" in key or "dora" in key)
    assert {each.kind for each in written.layers} == {"DoRA", "norm difference", "LoCon"}
    before, resized = run({source: 1.0}), run({out: 1.0})
    assert (resized - before).norm() <= 1e-5 * before.norm()


def test_mistakes(write: Write, tmp_path: Path) -> None:
    source, out = write("a.safetensors"), tmp_path / "b.safetensors"
    with pytest.raises(ValueError, match="rank or energy must be given, or both"):
        resize_lora(source, out)
    with pytest.raises(ValueError, match="dtype must be one of .*, got torch.int8"):
        resize_lora(source, out, rank=1, dtype=torch.int8)
    huge = {key: value.double() * 1e30 if "lora_up" in key else value for key, value in load_file(source).items()}
    save_to_safetensors(tmp_path / "huge.safetensors", huge)
    with pytest.raises(ValueError, match="(up|down) has numbers that are too large for torch.float16"):
        resize_lora(tmp_path / "huge.safetensors", out, rank=1, dtype=torch.float16)
    infinite = load_file(source) | {f"{LAYER}.lora_up.weight": torch.full((32, 2), torch.inf)}
    save_to_safetensors(tmp_path / "infinite.safetensors", infinite)
    with pytest.raises(ValueError, match=f"{LAYER}.lora_up.weight holds numbers that are not finite"):
        resize_lora(tmp_path / "infinite.safetensors", out, rank=1)
    loha = {f"{LAYER}.hada_w{i}_{j}": torch.ones(32, 32) for i in "12" for j in "ab"}
    save_to_safetensors(tmp_path / "loha.safetensors", loha)
    with pytest.raises(ValueError, match="LoHa has no rank that could be lower, .* compose_loras makes pairs"):
        resize_lora(tmp_path / "loha.safetensors", out, rank=1)
    assert not out.exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
