"""Models that are not alone: copies of them, several managers, interrupted steps, layers that all samples share."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from small_models import draw, make_sd1
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import SDLoraManager

LAYERS = r"attn1\.|time_emb_proj|time_embedding"


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1().to(dtype=torch.float64)


@pytest.fixture(scope="module")
def weights(sd1: StableDiffusion_1) -> dict[str, Tensor]:
    return draw(sd1, LAYERS)


@pytest.fixture
def style(manager: SDLoraManager, weights: dict[str, Tensor]) -> SDLoraManager:
    manager.add_loras("style", weights, 0.02)
    return manager


@torch.no_grad()
def step_of(model: StableDiffusion_1, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in ((4, 8, 8), (5, 32)))
    return model(x, step=0, clip_text_embedding=torch.cat((text, text)), condition_scale=1.5)


def test_multipliers_for_each_sample_reach_the_layers_of_the_timestep(
    style: SDLoraManager, sd1: StableDiffusion_1
) -> None:
    """The model calls them with one timestep for all samples."""
    each = [0.02, 0.0, -0.01]
    alone: list[Tensor] = []
    for scale in each:
        style.set_scale("style", scale)
        alone.append(step_of(sd1, 3))
    style.set_scale("style", torch.tensor(each * 2, dtype=torch.float64))
    together = step_of(sd1, 3)
    for index, expected in enumerate(alone):
        assert (together[index] - expected[index]).norm() <= 1e-10 * expected[index].norm()


def _constant(progress: float, value: float) -> float:
    return value


def test_a_copy_of_a_model_has_schedules_of_its_own(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    expected = {}
    for factor in (0.0, 0.5, 1.0):
        style.set_scale("style", 0.02 * factor)
        expected[factor] = step_of(sd1)
    style.set_scale("style", 0.02)
    style.set_schedule("style", partial(_constant, value=0.5))
    for copied in (copy.deepcopy(sd1), pickle.loads(pickle.dumps(sd1))):
        assert torch.equal(step_of(copied), step_of(sd1))
        assert torch.allclose(step_of(copied), expected[0.5], rtol=1e-10)
        SDLoraManager(copied).set_schedule("style", partial(_constant, value=0.0))
        assert torch.allclose(step_of(copied), expected[0.0], rtol=1e-10)
        assert torch.allclose(step_of(sd1), expected[0.5], rtol=1e-10)
        SDLoraManager(copied).set_schedule("style", None)
        assert torch.allclose(step_of(copied), expected[1.0], rtol=1e-10)
    assert torch.allclose(step_of(sd1), expected[0.5], rtol=1e-10)


def test_an_interrupted_step_leaves_nothing(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_schedule("style", lambda progress: 0.5)
    expected = step_of(sd1)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for look in (step_of, lambda _: None):
        handle = sd1.unet.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            step_of(sd1)
        handle.remove()
        look(sd1)
        assert set(style.get_block_scales("style").values()) == {1.0}
        assert torch.equal(step_of(sd1), expected)


def test_managers_of_one_model_share_its_schedules(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    other = SDLoraManager(sd1)
    style.set_schedule("style", lambda progress: 0.5)
    with pytest.raises(ValueError, match="LoRA 'style' has another multiplier at each step: it cannot be merged"):
        other.merge("style")
    other.remove_loras("style")
    assert not sd1._forward_pre_hooks and not sd1._forward_hooks and style.names == []


class Without(fl.Chain, fl.Adapter[fl.Chain]):
    """Do without the target."""

    def __init__(self, target: fl.Chain) -> None:
        with self.setup_adapter(target):
            super().__init__(fl.Identity())


@pytest.mark.parametrize("is_merged", [True, False])
@pytest.mark.parametrize("how", ["remove_all", "remove_loras"])
def test_nothing_stays_behind_an_adapter_that_does_without_layers(
    style: SDLoraManager, sd1: StableDiffusion_1, is_merged: bool, how: str
) -> None:
    if is_merged:
        style.merge()
    adapter = Without(sd1.unet.ensure_find(fl.SelfAttention)).inject()
    assert style.names == ["style"]
    if is_merged:
        with pytest.raises(ValueError, match="is in no chain any more"):
            style.unmerge()
        assert style.merged_names == ["style"]
        adapter.eject()
    style.remove_all() if how == "remove_all" else style.remove_loras("style")
    if not is_merged:
        adapter.eject()
    assert style.names == []  # and the model is what it was, as the fixture asserts


def test_multipliers_for_half_of_the_batch_are_told(manager: SDLoraManager, sd1: StableDiffusion_1) -> None:
    manager.add_loras("style", draw(sd1, r"attn1\."), torch.tensor([1.0, 0.0]))
    with pytest.raises(Exception, match=r"a scale of shape \(2,\) does not fit .*: with guidance, the batch has the"):
        step_of(sd1, 2)
