"""A file is attached as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_models import FIRST, assert_same, draw, state_of
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion.lora import LoraAdapter, SDLoraManager


def without(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name != key}


def swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    down, up = f"{FIRST}.lora_down.weight", f"{FIRST}.lora_up.weight"
    return {**tensors, down: tensors[up], up: tensors[down]}


DOTTED = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
MISTAKES: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    ("no up", lambda t: without(t, f"{FIRST}.lora_up.weight"), "the matrix 'up' is missing"),
    ("no down", lambda t: without(t, f"{FIRST}.lora_down.weight"), "the matrix 'down' is missing"),
    ("swapped", swapped, r"down and up must have one rank, got down \(32, 2\), up \(2, 32\)|do not fit"),
    ("size", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(33, 2)}, r"do not fit the layer's weight, which is"),
    ("rank", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32, 3)}, "must have one rank"),
    ("dimensions", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32)}, "must be those of linear layers"),
    ("empty", lambda t: t | {f"{FIRST}.lora_up.weight": torch.randn(32, 0)}, "must be those of linear layers"),
    ("NaN", lambda t: t | {f"{FIRST}.lora_up.weight": torch.full((32, 2), torch.nan)}, "up of .*to_q holds numbers"),
    ("infinite", lambda t: t | {f"{FIRST}.lora_down.weight": torch.full((2, 32), torch.inf)}, "down of .*to_q holds"),
    ("alpha", lambda t: t | {f"{FIRST}.alpha": torch.tensor(torch.nan)}, "alpha must be finite, got nan"),
    ("alphas", lambda t: t | {f"{FIRST}.alpha": torch.ones(3)}, r"alpha must be one number, got shape \(3,\)"),
    ("lone alpha", lambda t: t | {"lora_unet_conv_in.alpha": torch.ones(())}, "a multiplier without matrices"),
    ("integers", lambda t: t | {f"{FIRST}.lora_up.weight": torch.ones(32, 2, dtype=torch.int8)}, "up is of torch.int8"),
    (
        "twice",
        lambda t: t | {f"{DOTTED}.lora_A.weight": torch.randn(2, 32), f"{DOTTED}.lora_B.weight": torch.randn(32, 2)},
        "has several updates",
    ),
    ("role twice", lambda t: t | {f"{FIRST}.lora_A.weight": torch.randn(2, 32)}, "down is given twice"),
    ("left over", lambda t: t | {"something.else": torch.randn(2)}, "no tensor of an update that is known"),
    (
        "kernel",
        lambda t: (
            t
            | {
                "lora_unet_conv_in.lora_down.weight": torch.randn(2, 4, 1, 1),
                "lora_unet_conv_in.lora_up.weight": torch.randn(32, 2, 1, 1),
            }
        ),
        r"do not fit the layer's weight, which is \(32, 4, 3, 3\)",
    ),
    (
        "norm",
        lambda t: (
            t
            | {
                "lora_unet_conv_norm_out.lora_down.weight": torch.randn(2, 32),
                "lora_unet_conv_norm_out.lora_up.weight": torch.randn(32, 2),
            }
        ),
        "the layer is a GroupNorm, expected Linear or Conv2d",
    ),
    ("DoRA", lambda t: t | {f"{FIRST}.dora_scale": torch.randn(31, 1)}, "one magnitude for each row or column"),
    ("LoHa", lambda t: t | {"lora_unet_conv_in.hada_w1_a": torch.randn(2, 2)}, "the matrix 'hada_w1_b' is missing"),
    ("OFT", lambda t: t | {"lora_unet_conv_in.oft_blocks": torch.randn(2, 2)}, "OFT is not supported yet"),
]


@pytest.mark.parametrize("change, message", [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES])
def test_a_wrong_file_changes_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    message: str,
    manager: SDLoraManager,
    style: dict[str, Tensor],
) -> None:
    before = state_of(manager.target)
    with pytest.raises(ValueError, match=message):
        manager.add_loras("wrong", change(dict(style)))
    assert_same(before, manager.target)
    assert manager.names == []


@pytest.mark.parametrize("change", [each[1] for each in MISTAKES if "NaN" != each[0] != "infinite"])
def test_the_rest_of_a_wrong_file_is_attached_if_asked_for(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], manager: SDLoraManager, style: dict[str, Tensor]
) -> None:
    plan = manager.add_loras("rest", change(dict(style)), partial=True)
    assert not plan.is_whole
    assert len(manager.loras) == len(plan.of_status("fits")) in (127, 128)


def test_a_failure_in_the_middle_changes_nothing(
    manager: SDLoraManager, style: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = draw(manager.target, r".")
    manager.add_loras("first", style)
    before = state_of(manager.target)
    inject, calls = LoraAdapter.inject, iter(range(1000))

    def fail(self: LoraAdapter, parent: fl.Chain | None = None) -> LoraAdapter:
        if next(calls) == 20:
            raise MemoryError("no more")
        return inject(self, parent)

    monkeypatch.setattr(LoraAdapter, "inject", fail)
    with pytest.raises(MemoryError, match="no more"):
        manager.add_loras("second", everything)
    monkeypatch.undo()
    assert_same(before, manager.target)
    assert manager.names == ["first"]


def test_files(manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_to_safetensors(path, style)
    manager.load("style", path, 0.5)
    assert manager.scales == {"style": 0.5} and len(manager.loras) == 128
    manager.remove_all()
    torch.save(style, tmp_path / "style.pt")
    assert manager.load("style", tmp_path / "style.pt").is_whole
    manager.remove_all()
    before = state_of(manager.target)
    for end in (4, 1000, path.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:end])
        with pytest.raises(ValueError, match="is not a safetensors file|is cut off"):
            manager.load("cut", tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError):
        manager.load("none", tmp_path / "none.safetensors")
    assert_same(before, manager.target)
