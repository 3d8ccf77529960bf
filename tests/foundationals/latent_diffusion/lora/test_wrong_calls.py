"""Calls of the manager with mistakes: told, and nothing changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import assert_same, state_of
from torch import Tensor

from refiners.foundationals.latent_diffusion.checks import check_scale
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

NOT_FINITE = [float("nan"), float("inf"), np.float32("nan"), torch.tensor(torch.inf), torch.tensor([1.0, torch.nan])]


@pytest.mark.parametrize("scale", NOT_FINITE, ids=str)
def test_a_scale_must_be_finite(scale: Any, manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    message = "the scale of 'style' must be finite, got (tensor|nan|inf)"
    with pytest.raises(ValueError, match=message):
        manager.add_loras("style", style, scale)
    assert manager.names == []
    manager.add_loras("style", style, 0.5)
    with pytest.raises(ValueError, match=message):
        manager.set_scale("style", scale)
    with pytest.raises(ValueError, match=message):
        manager.update_scales({"style": scale})
    assert manager.scales == {"style": 0.5}


def test_a_scale_elsewhere_is_not_read() -> None:
    check_scale("style", torch.tensor(torch.nan, device="meta"))  # to read it would fail


def test_a_number_of_numpy_is_a_scale(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    manager.add_loras("style", style, np.float32(0.5))
    manager.add_loras("other", style, np.float64(0.25))
    conditions = manager.target.compute_conditions("a cat", size=(16, 16))
    with torch.no_grad():
        y = manager.target(torch.ones(1, 4, 2, 2), step=0, **conditions)
    assert y.dtype == torch.float32 and y.isfinite().all()
    assert manager.scales == {"style": 0.5, "other": 0.25}


@pytest.mark.parametrize(
    ("scopes", "named"),
    [
        ({"unet_inclusions": []}, r"with unet_inclusions=\[\]:"),
        ({"unet_inclusions": ["ResidualBlock"]}, r"with unet_inclusions=\['ResidualBlock'\]:"),
        ({"unet_exclusions": ["SD1UNet"]}, r"with unet_exclusions=\['SD1UNet'\]:"),
        (
            {"unet_inclusions": [], "text_encoder_exclusions": ["Residual"]},
            r"with unet_inclusions=\[\], text_encoder_exclusions=\['Residual'\]:",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("partial", [False, True])
def test_a_lora_that_attaches_to_no_layer_is_told(
    scopes: dict[str, Any], named: str, partial: bool, manager: SDLoraManager, style: dict[str, Tensor]
) -> None:
    before = state_of(manager.target)
    expected = f"no update would be attached {named}\n  128: unet, left out: outside of the scope that was asked for$"
    with pytest.raises(ValueError, match=expected):
        manager.add_loras("style", style, partial=partial, **scopes)
    assert_same(before, manager.target)
    assert manager.names == []


def test_nothing_of_an_unknown_file_is_attached_in_part(manager: SDLoraManager) -> None:
    tensors = {"lora_unet_a.lora_down.weight": torch.ones(2, 2), "lora_unet_a.lora_up.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"no update would be attached:\n  1: no network, unknown: no layer has this"):
        manager.add_loras("style", tensors, partial=True)
    assert manager.names == []


@pytest.mark.parametrize(
    ("scopes", "message"),
    [
        (
            {"unet_inclusions": "CrossAttentionBlock"},
            "unet_inclusions must be a list of names .* 'CrossAttentionBlock'",
        ),
        ({"text_encoder_exclusions": [3]}, r"text_encoder_exclusions must be a list of names of classes, got \[3\]"),
        ({"unet_exclusions": 3}, "unet_exclusions must be a list of names of classes, got 3"),
    ],
)
def test_scopes_are_lists_of_names(
    scopes: dict[str, Any], message: str, manager: SDLoraManager, style: dict[str, Tensor]
) -> None:
    with pytest.raises(TypeError, match=message):
        manager.add_loras("style", style, **scopes)


def test_unknown_names_are_told_alike(manager: SDLoraManager, style: dict[str, Tensor]) -> None:
    for call in (manager.get_scale, manager.get_lora_weights, manager.remove_loras):
        with pytest.raises(ValueError, match="^there is no LoRA 'b': there are none$"):
            call("b")
    manager.add_loras("a", style)
    expected = r"there is no LoRA 'b': there are \['a'\]$"
    for call in (manager.get_scale, manager.get_lora_weights, manager.remove_loras):
        with pytest.raises(ValueError, match=f"^{expected}"):
            call("b")
    with pytest.raises(AssertionError, match=f"Scales keys must be a subset of the names: {expected}"):
        manager.set_scale("b", 1.0)


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ({"unet_inclusions": ["MidleBlock", "UpBlocks"]}, "no chain in the unet is a 'MidleBlock'.*'MiddleBlock'"),
        ({"unet_exclusions": ["Foo"]}, "no chain in the unet is a 'Foo', as inclusions or exclusions have it$"),
        ({"text_encoder_exclusions": ["TransformerLayr"]}, "in the text_encoder .*did you mean 'TransformerLayer'"),
    ],
    ids=str,
)
def test_names_of_no_chain_are_told(
    scopes: dict[str, Any], expected: str, manager: SDLoraManager, style: dict[str, Tensor]
) -> None:
    with pytest.warns(UserWarning, match=expected) as caught:
        manager.add_loras("style", style, **scopes)
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=expected):
        manager.replace("style", style, **scopes)


@pytest.mark.parametrize("name", ["", 3, None], ids=repr)
def test_names_are_texts(name: Any, manager: SDLoraManager, style: dict[str, Tensor], tmp_path: Path) -> None:
    for call in (lambda: manager.add_loras(name, style), lambda: manager.load(name, tmp_path / "x.safetensors")):
        with pytest.raises((TypeError, ValueError), match="name must"):
            call()


def test_tensors_are_given_by_their_keys(manager: SDLoraManager) -> None:
    with pytest.raises(TypeError, match="tensors must be those of a file by their keys, got list"):
        manager.add_loras("style", [1])  # pyright: ignore[reportArgumentType]
