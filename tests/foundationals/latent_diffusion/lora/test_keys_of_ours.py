"""Our own files are understood, and updates of unknown names go by order and shape where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import draw, make_sd1, make_xl
from torch import Tensor

from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import (
    LatentDiffusionModel,
)
from refiners.foundationals.latent_diffusion.lora import SDLoraManager


@pytest.mark.parametrize("make", [make_sd1, make_xl])
def test_weights_are_given_with_keys_that_are_understood(make: Callable[[], LatentDiffusionModel]) -> None:
    model = make()
    manager = SDLoraManager(model)
    manager.add_loras("one", draw(model, r"."), scale=0.3)
    weights = manager.get_lora_weights("one")
    expected = {id(adapter.target): adapter.loras["one"] for adapter in manager.lora_adapters}
    assert len(weights) == 2 * len(expected)
    manager.add_loras("two", dict(reversed(weights.items())))
    for adapter in manager.lora_adapters:
        one, two = adapter.loras["one"], adapter.loras["two"]
        assert torch.equal(one.down.weight, two.down.weight) and torch.equal(one.up.weight, two.up.weight)


def test_keys_are_those_of_the_tree(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("one", style)
    block = "SD1UNet.DownBlocks.Chain_2.CLIPLCrossAttention.Chain_2.CrossAttentionBlock.Residual_1.SelfAttention"
    assert list(manager.get_lora_weights("one"))[:8] == [
        f"{block}.{layer}.{part}.weight"
        for layer in ("Distribute.1.Linear", "Distribute.2.Linear", "Distribute.3.Linear", "1.Linear")
        for part in ("down", "up")
    ]


def test_numbers_that_may_mean_several_layers_are_told(manager: SDLoraManager) -> None:
    manager.add_loras("one", draw(manager.target, r"down_blocks\.0\.attentions\.0.*attn1\.to_[qv]"))
    weights = manager.get_lora_weights("one")
    assert len(weights) == 4
    with pytest.raises(ValueError, match="the name may mean several layers: unet .*Linear_1, unet .*Linear_2"):
        manager.add_loras("two", weights)


def unknown(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give names that no library has, in the order of the tree."""
    order = [key for key in tensors if not key.endswith("alpha")]
    names = [f"unet_{i // 50}_layer_{i % 50}.lora_{part}.weight" for i in range(len(order)) for part in ("down", "up")]
    return {name: tensors[key] for name, key in zip(names, order)}


@pytest.mark.parametrize("asked", [{"by_order": True}, {"unet_preprocess": {}}], ids=str)
def test_unknown_names_go_by_order_with_a_warning(
    manager: SDLoraManager, style: dict[str, Tensor], asked: dict[str, Any]
) -> None:
    manager.add_loras("known", {key: value for key, value in style.items() if "alpha" not in key})
    with pytest.warns(UserWarning, match="no layers are known by the names of 128 updates, such as unet_0_layer_0"):
        plan = manager.add_loras("order", unknown(style), scale=0.5, unet_inclusions=["CrossAttentionBlock"], **asked)
    assert plan.is_whole and len(plan.of_status("by order")) == 128 and manager.scales["order"] == 0.5
    for adapter in manager.lora_adapters:
        assert torch.equal(adapter.loras["known"].down.weight, adapter.loras["order"].down.weight)


def test_nothing_goes_by_order_that_is_not_asked_to(
    manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path
) -> None:
    tensors = unknown(style)
    save_to_safetensors(tmp_path / "order.safetensors", tensors)
    expected = r"one of the names of its 128 updates, such as unet_0_layer_0: it may be for another .* \(by_order=True"
    with pytest.raises(ValueError, match=expected):
        manager.add_loras("order", tensors)
    with pytest.raises(ValueError, match=expected):
        manager.load("order", tmp_path / "order.safetensors")
    with pytest.raises(ValueError, match="no update would be attached"):
        manager.add_loras("order", tensors, partial=True)
    assert manager.names == []
    with pytest.warns(UserWarning, match="by the names of 128 updates"):
        manager.load("order", tmp_path / "order.safetensors", unet_inclusions=["CrossAttentionBlock"], by_order=True)


@pytest.mark.filterwarnings("ignore:no layers are known by the names:UserWarning")
def test_unknown_names_that_do_not_cover_a_shape_are_an_error(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    tensors = unknown(draw(manager.target, r"attn2\."))
    with pytest.raises(ValueError, match="sanity check failed: .* attached twice"):
        manager.add_loras("order", tensors, by_order=True)  # there are layers of these shapes in self-attention
    half = {**style, "unet_other.lora_down.weight": torch.randn(2, 5), "unet_other.lora_up.weight": torch.randn(5, 2)}
    with pytest.raises(ValueError, match="1 of 129 updates cannot be attached, .*\n  1: no layer has this name"):
        manager.add_loras("half", half, by_order=True)
    assert manager.names == []


def test_keys_of_no_known_ending_go_by_order_two_by_two(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    pairs = {f"layer_{i:03}.{i % 2}.weight": value for i, value in enumerate(unknown(style).values())}
    with pytest.warns(UserWarning, match="by the names of 128 updates"):
        manager.add_loras("order", pairs, unet_inclusions=["CrossAttentionBlock"], by_order=True)
    assert len(manager.loras) == 128


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a_1_b_to_q", ("a_01_b_to", 1)),
        ("a_to_k_lora", ("a_to", 2)),
        ("a_10_to_v", ("a_10_to", 3)),
        ("proj_in", ("proj", 3)),
        ("to_out_0", ("to", 4)),
        ("to_out0_lora", ("to", 4)),
        ("proj_out", ("proj", 4)),
        ("a_2_ff", ("a_02_ff", 5)),
    ],
)
def test_keys_are_sorted_by(key: str, expected: tuple[str, int]) -> None:
    assert SDLoraManager.sort_keys(key) == expected
