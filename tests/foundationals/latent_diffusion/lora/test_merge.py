"""LoRAs in the weights of a model, by their names. In float64, in which rounding hides no mistake."""

from __future__ import annotations

import pytest
import torch
from small_models import assert_same, draw, make_sd1, state_of
from torch import Tensor

from refiners.fluxion.adapters.lora import MergedLoras
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1().to(dtype=torch.float64)


@pytest.fixture(scope="module")
def other(sd1: StableDiffusion_1) -> dict[str, Tensor]:
    return draw(sd1, r"resnets.*conv|attn2.*to_[kv]", seed=1)


@pytest.fixture
def two(manager: SDLoraManager, style: dict[str, Tensor], other: dict[str, Tensor]) -> SDLoraManager:
    manager.add_loras("style", style, 0.02)
    manager.add_loras("other", other, 0.02)
    return manager


@torch.no_grad()
def output(model: StableDiffusion_1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    model.unet.set_clip_text_embedding(torch.randn(1, 5, 32, generator=generator, dtype=torch.float64))
    model.unet.set_timestep(torch.tensor([10]))
    return model.unet(torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).norm() <= 1e-10 * expected.norm()


def test_the_model_computes_the_same_without_adapters(two: SDLoraManager, sd1: StableDiffusion_1) -> None:
    adapted = output(sd1)
    two.merge()
    assert two.merged_names == two.names == ["style", "other"] and two.lora_adapters == []
    assert_near(output(sd1), adapted)
    two.unmerge()
    assert two.merged_names == [] and two.names == ["style", "other"]
    assert_near(output(sd1), adapted)


def test_some_are_merged(two: SDLoraManager, sd1: StableDiffusion_1) -> None:
    adapted = output(sd1)
    two.merge("other")
    assert two.merged_names == ["other"] and two.scales == {"style": 0.02, "other": 0.02}
    assert_near(output(sd1), adapted)
    two.unmerge("other")
    assert_near(output(sd1), adapted)


def test_a_new_scale_takes_effect_at_once(two: SDLoraManager, sd1: StableDiffusion_1) -> None:
    two.update_scales({"style": 0.01, "other": -0.02})
    adapted = output(sd1)
    two.update_scales({"style": 1.0, "other": 1.0})
    two.merge()
    two.update_scales({"style": 0.01, "other": -0.02})
    assert_near(output(sd1), adapted)


def test_a_scale_for_each_sample_cannot_be_merged(two: SDLoraManager, sd1: StableDiffusion_1) -> None:
    two.merge("style")
    before = state_of(sd1)
    with pytest.raises(ValueError, match="'style' has a multiplier for each sample"):
        two.update_scales({"other": 1.0, "style": torch.ones(2)})
    assert two.scales == {"style": 0.02, "other": 0.02}
    two.set_scale("other", torch.ones(2))
    with pytest.raises(ValueError, match="'other' has a multiplier for each sample"):
        two.merge("other")
    assert two.merged_names == ["style"]
    assert_same(before, sd1)


def test_what_is_merged_can_be_removed(two: SDLoraManager, sd1: StableDiffusion_1, other: dict[str, Tensor]) -> None:
    two.remove_loras("other")
    two.merge()
    merged = output(sd1)
    two.unmerge()
    two.add_loras("other", other)
    two.merge()
    assert not torch.equal(output(sd1), merged)
    two.remove_loras("other")
    assert two.names == two.merged_names == ["style"]
    assert torch.equal(output(sd1), merged)


def test_names(two: SDLoraManager) -> None:
    with pytest.raises(ValueError, match="there is no LoRA 'none'"):
        two.merge("none")
    two.merge("style")
    with pytest.raises(AssertionError, match="LoRA style already exists"):
        two.add_loras("style", {})
    with pytest.raises(ValueError, match="'style' is merged: unmerge it first"):
        two.get_lora_weights("style")
    two.merge()
    two.merge()
    assert sorted(two.merged_names) == ["other", "style"]


def test_pristine_weights_are_kept_where_asked(two: SDLoraManager, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(MergedLoras, "merge", lambda merged, names: asked.append((merged.keep_on, names)))
    two.merge("style", keep_on="cpu")
    two.merge()
    assert asked == [("cpu", ["style"]), (None, ["style", "other"])]
