"""Styles: what attaching, training, scaling, ejecting, saving and loading leave unchanged, and what they change."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.demo.diffusion import predict_velocity
from refiners.demo.style import OUTLINED, attach_style, eject_styles, load_style, save_style, set_scales, train_style
from refiners.demo.unet import DigitsUNet, load_base
from refiners.fluxion.adapters import LoraAdapter

BATCH = 3


@pytest.fixture
def unet() -> DigitsUNet:
    return load_base().requires_grad_(False)


def predict(unet: DigitsUNet) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 1, 16, 16, generator=generator)
    return predict_velocity(unet, x, torch.full((BATCH,), 0.5), torch.arange(BATCH))


def attach_filled(unet: DigitsUNet, name: str = "slanted") -> dict[str, fl.Chain]:
    loras = attach_style(unet, name)  # type: ignore[arg-type]
    for lora in loras.values():
        torch.nn.init.normal_(lora.up.weight, std=0.03).requires_grad_(False)
    return loras  # type: ignore[return-value]


def test_fresh_updates_change_nothing_and_are_everywhere(unet: DigitsUNet) -> None:
    before = predict(unet)
    layers = [layer for layer in unet.modules() if isinstance(layer, fl.Linear | fl.Conv2d)]
    loras = attach_style(unet, "slanted")
    assert torch.equal(predict(unet), before)
    assert [adapter.target for adapter in unet.layers(LoraAdapter)] == layers
    assert [adapter.loras["slanted"] for adapter in unet.layers(LoraAdapter)] == list(loras.values())


def test_ejecting_restores_the_tree_and_every_bit(unet: DigitsUNet) -> None:
    before, modules, keys = predict(unet), list(unet.modules()), list(unet.state_dict())
    attach_filled(unet, "slanted")
    attach_filled(unet, "outlined")
    assert not torch.allclose(predict(unet), before)
    eject_styles(unet)
    assert torch.equal(predict(unet), before)
    assert list(unet.modules()) == modules and list(unet.state_dict()) == keys


def test_training_changes_the_updates_alone_and_lowers_the_loss() -> None:
    unet = load_base()  # not frozen
    weights = list(unet.parameters())
    base = {name: weight.clone() for name, weight in unet.state_dict().items()}
    loras = attach_style(unet, "slanted")
    losses = list(train_style(unet, loras, "slanted", 12, torch.Generator().manual_seed(0)))
    assert len(losses) == 12 and sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(lora.up.weight.abs().max() > 0 for lora in loras.values())
    assert all(weight.grad is None for weight in weights)
    assert not any(weight.requires_grad for weight in unet.parameters())
    eject_styles(unet)
    assert all(torch.equal(weight, base[name]) for name, weight in unet.state_dict().items())


def test_training_is_the_same_for_a_seed() -> None:
    results: list[list[Tensor]] = []
    for global_seed in range(2):
        torch.manual_seed(3)
        unet = load_base()
        loras = attach_style(unet, "slanted")
        torch.manual_seed(global_seed)  # the training has a generator of its own
        list(train_style(unet, loras, "slanted", 1, torch.Generator().manual_seed(3)))
        results.append([lora.up.weight for lora in loras.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_saved_style_gives_the_same_output_bit_for_bit(unet: DigitsUNet, tmp_path: Path) -> None:
    loras = attach_filled(unet)
    adapted = predict(unet)
    save_style(loras, tmp_path / "style.safetensors")  # type: ignore[arg-type]
    other = load_base()
    load_style(other, "slanted", tmp_path / "style.safetensors")
    assert torch.equal(predict(other), adapted)


def test_scale_zero_gives_the_base_output(unet: DigitsUNet) -> None:
    before = predict(unet)
    attach_filled(unet)
    set_scales(unet, {"slanted": 0.0})
    torch.testing.assert_close(predict(unet), before)


def test_each_sample_of_a_batch_has_its_own_scales(unet: DigitsUNet) -> None:
    attach_filled(unet, "slanted")
    attach_filled(unet, "outlined")
    mixes = [(0.0, 1.0), (1.0, 0.0), (0.3, 0.6)]
    alone: list[Tensor] = []
    for index, (slanted, outlined) in enumerate(mixes):
        set_scales(unet, {"slanted": slanted, "outlined": outlined})
        alone.append(predict(unet)[index])
    assert not torch.allclose(alone[0], predict(unet)[0])
    for style, values in zip(("slanted", "outlined"), zip(*mixes)):
        set_scales(unet, {style: torch.tensor(values)})
    torch.testing.assert_close(predict(unet), torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_the_shipped_style_fits_and_changes_the_output(unet: DigitsUNet) -> None:
    before = predict(unet)
    load_style(unet, "outlined", OUTLINED)
    assert OUTLINED.stat().st_size <= 3_000_000
    assert (predict(unet) - before).abs().max() > 0.1
