"""LoRAs weighed by block, by step and by place. In float64, in which rounding hides no mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import draw, make_sd1, make_xl
from torch import Tensor

from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import Region, SDLoraManager
from refiners.foundationals.latent_diffusion.solvers import DDIM

TEXT = "lora_te_text_model_encoder_layers_1_mlp_fc1"


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1().to(dtype=torch.float64)


@pytest.fixture(scope="module")
def weights(sd1: StableDiffusion_1) -> dict[str, Tensor]:
    text = {f"{TEXT}.lora_down.weight": torch.randn(2, 32), f"{TEXT}.lora_up.weight": torch.randn(32, 2)}
    return {**draw(sd1, r"attn[12]\.|resnets.*conv1|time_embedding"), **text}


@pytest.fixture
def style(manager: SDLoraManager, weights: dict[str, Tensor]) -> SDLoraManager:
    manager.add_loras("style", weights, 0.02)
    return manager


@torch.no_grad()
def output(model: StableDiffusion_1, x: Tensor | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 5, 32, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64) if x is None else x
    model.unet.set_clip_text_embedding(text.expand(x.shape[0], -1, -1))
    model.unet.set_timestep(torch.tensor([10]))
    return model.unet(x)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert (actual - expected).norm() <= 1e-10 * expected.norm()


def within(weights: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if any(part in key for part in parts)}


# --- by block ---------------------------------------------------------------------------------------------------------


def test_the_blocks_of_the_published_models() -> None:
    down, up = [f"down.{i}" for i in range(12)], [f"up.{i}" for i in range(12)]
    assert SDLoraManager(make_sd1()).blocks == ["text_encoder", *down, "middle", *up, "other"]
    assert SDLoraManager(make_xl()).blocks == ["text_encoder", *down[:9], "middle", *up[:9], "other"]


def test_a_block_has_the_layers_of_its_number_in_the_checkpoints(
    style: SDLoraManager, weights: dict[str, Tensor], sd1: StableDiffusion_1
) -> None:
    """`down_blocks.1.attentions.0` of diffusers is `input_blocks.4`, `up_blocks.3.attentions.1` `output_blocks.10`."""
    style.set_block_scales("style", dict.fromkeys(style.blocks, 0.0) | {"down.4": 1.0, "up.10": 1.0})
    some = output(sd1)
    style.remove_loras("style")
    parts = "down_blocks_1_attentions_0", "down_blocks_1_resnets_0", "up_blocks_3_attentions_1", "up_blocks_3_resnets_1"
    style.add_loras("style", within(weights, *parts), 0.02)
    assert_near(some, output(sd1))


def test_factors_and_scales_are_multiplied(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_block_scales("style", {"down": 3.0, "down.2": 0.5, "middle": 3.0, "up": 3.0, "other": 3.0})
    style.set_scale("style", 0.01)
    assert style.get_scale("style") == 0.01
    scales = style.get_block_scales("style")
    assert scales["down.1"] == 3 and scales["down.2"] == 0.5 and scales["text_encoder"] == 1
    both = output(sd1)
    style.set_block_scales("style", {"down.2": 0.5 / 3})
    style.set_scale("style", 0.03)
    assert_near(both, output(sd1))


def test_blocks_of_merged_loras(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_block_scales("style", {"down": 0.0, "up": 2.0})
    expected = output(sd1)
    style.set_block_scales("style", {})
    plain = output(sd1)
    style.merge()
    assert_near(output(sd1), plain)
    style.set_block_scales("style", {"down": 0.0, "up": 2.0})
    assert_near(output(sd1), expected)
    style.unmerge()
    assert_near(output(sd1), expected)


@pytest.mark.parametrize(
    ("scales", "error", "message"),
    [
        ({"down.12": 1.0}, ValueError, "there is no block 'down.12': there are text_encoder, down.0"),
        ({"middle": "1"}, TypeError, "the scale of the block 'middle' must be a number, got str"),
        ({"middle": 1.0, "up": float("inf")}, ValueError, "the scale of the block 'up' must be finite, got inf"),
        ([1.0], TypeError, "scales must be numbers by the names of blocks, got list"),
    ],
    ids=["name", "text", "infinite", "list"],
)
def test_wrong_blocks(style: SDLoraManager, scales: Any, error: type[Exception], message: str) -> None:
    style.set_block_scales("style", {"middle": 0.5})
    with pytest.raises(error, match=message):
        style.set_block_scales("style", scales)
    assert style.get_block_scales("style")["middle"] == 0.5
    with pytest.raises(ValueError, match="there is no LoRA 'other'"):
        style.set_block_scales("other", {})


# --- by step ----------------------------------------------------------------------------------------------------------


def steps_of(sd1: StableDiffusion_1) -> list[Tensor]:
    """Take four steps, each from the same latents, by a solver that looks at no others."""
    sd1.solver = DDIM(4).to(dtype=torch.float64)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return [
            sd1(x, step, clip_text_embedding=text) if step % 2 else sd1(x, step=step, clip_text_embedding=text)
            for step in sd1.steps
        ]


def test_a_schedule(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    by_scale: list[list[Tensor]] = []
    for scale in (0.0, 0.01, 0.02):
        style.set_scale("style", scale)
        by_scale.append(steps_of(sd1))
    asked: list[float] = []

    def schedule(progress: float) -> float:
        asked.append(progress)
        return {0: 0.0, 1: 1.0, 2: 0.5, 3: 1.0}[round(3 * progress)]

    style.set_schedule("style", schedule)
    outside = output(sd1)
    scheduled = steps_of(sd1)
    assert asked == [0, 1 / 3, 2 / 3, 1]
    for step, index in enumerate((0, 2, 1, 2)):
        assert_near(scheduled[step], by_scale[index][step])
    assert style.scales == {"style": 0.02}
    assert_near(output(sd1), outside)  # between steps it does not apply
    style.set_schedule("style", None)
    for ours, expected in zip(steps_of(sd1), by_scale[2]):
        assert_near(ours, expected)
    assert not sd1._forward_pre_hooks and not sd1._forward_hooks


def test_a_schedule_and_blocks(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_block_scales("style", {"up": 0.5})
    style.set_scale("style", 0.01)
    expected = steps_of(sd1)
    style.set_scale("style", 0.02)
    style.set_schedule("style", lambda progress: 0.5)
    for ours, theirs in zip(steps_of(sd1), expected):
        assert_near(ours, theirs)
    assert style.get_block_scales("style")["up.3"] == 0.5


def test_a_step_that_fails_leaves_the_scales(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_schedule("style", lambda progress: 0.25)
    expected = output(sd1)
    sd1.set_inference_steps(4)
    x, text = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.randn(2, 5, 31, dtype=torch.float64)
    with pytest.raises(Exception, match="."):
        sd1(x, step=0, clip_text_embedding=text)
    assert_near(output(sd1), expected)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("1", TypeError, "the schedule of 'style' must give numbers, got str"),
        (float("nan"), ValueError, "the schedule of 'style' must give finite numbers, got nan"),
    ],
    ids=["text", "not finite"],
)
def test_a_schedule_that_gives_no_numbers(
    style: SDLoraManager, sd1: StableDiffusion_1, value: Any, error: type[Exception], message: str
) -> None:
    expected = output(sd1)
    style.set_schedule("style", lambda progress: value)
    with pytest.raises(error, match=message):
        steps_of(sd1)
    assert_near(output(sd1), expected)


def test_wrong_schedules(style: SDLoraManager) -> None:
    with pytest.raises(TypeError, match="schedule must be a function of a number, or None, got list"):
        style.set_schedule("style", [1.0])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="there is no LoRA 'other'"):
        style.set_schedule("other", None)
    style.merge()
    with pytest.raises(ValueError, match="LoRA 'style' is merged: unmerge it first"):
        style.set_schedule("style", lambda progress: 1.0)
    style.unmerge()
    style.set_schedule("style", lambda progress: 1.0)
    with pytest.raises(ValueError, match="LoRA 'style' has another multiplier at each step: it cannot be merged"):
        style.merge()
    assert style.merged_names == []


def test_removed_loras_leave_no_hooks(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    style.set_schedule("style", lambda progress: 1.0)
    style.remove_loras("style")
    assert not sd1._forward_pre_hooks and not sd1._forward_hooks


# --- by place ---------------------------------------------------------------------------------------------------------


def test_a_region_that_is_everything_or_nothing(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    everywhere = output(sd1)
    style.set_scale("style", Region(torch.ones(64, 64), 0.02, elsewhere=0.02))
    assert_near(output(sd1), everywhere)
    style.set_scale("style", Region(torch.zeros(64, 64), 0.02))
    nothing = output(sd1)
    style.set_scale("style", 0.0)
    assert_near(nothing, output(sd1))


def test_layers_of_the_prompt_have_no_places(
    manager: SDLoraManager, weights: dict[str, Tensor], sd1: StableDiffusion_1
) -> None:
    """Five tokens are no square, but six, of two by three, would be an image of these proportions."""
    region = Region(torch.ones(40, 8), 0.02, elsewhere=0.01)
    manager.add_loras("style", weights, region)
    by_place = output(sd1, x := torch.randn(1, 4, 40, 8, dtype=torch.float64))
    of_prompt = within(weights, "attn2_to_k", "attn2_to_v", "time_embedding")
    manager.remove_loras("style")
    manager.add_loras("prompt", of_prompt, 0.01)
    manager.add_loras("image", {key: weights[key] for key in weights if key not in of_prompt}, 0.02)
    assert_near(by_place, output(sd1, x))
    assert region.elsewhere == 0.01


@pytest.mark.parametrize(("layers", "places"), [("attn1", "64 tokens"), ("conv1", "8x8 places")])
def test_a_mask_of_other_proportions_than_the_image(
    manager: SDLoraManager, weights: dict[str, Tensor], sd1: StableDiffusion_1, layers: str, places: str
) -> None:
    manager.add_loras("style", within(weights, layers), Region(torch.ones(8, 16), 0.02))
    with pytest.raises(Exception, match=f"mask must have .*: one of 8x16 fits no result of {places}"):
        output(sd1)
    output(sd1, torch.randn(1, 4, 8, 16, dtype=torch.float64))


def test_masks_mix_loras_in_one_batch_as_if_they_ran_alone(
    manager: SDLoraManager, weights: dict[str, Tensor], sd1: StableDiffusion_1
) -> None:
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    other = draw(sd1, r"attn1\.|ff\.", seed=3)
    manager.add_loras("style", within(weights, "attn1", "conv1"))
    manager.add_loras("other", other)
    manager.update_scales({"style": 0.02, "other": 0.0})
    first = output(sd1, x)[:1]
    manager.update_scales({"style": 0.0, "other": 0.03})
    second = output(sd1, x)[1:]
    ones, zeros = torch.ones(8, 8), torch.zeros(8, 8)
    of_first, of_second = torch.stack((ones, zeros)), torch.stack((zeros, ones))
    manager.update_scales({"style": Region(of_first, 0.02), "other": Region(of_second, 0.03)})
    assert_near(output(sd1, x), torch.cat((first, second)))


def test_regions_are_looked_up_and_saved_like_numbers(style: SDLoraManager) -> None:
    region = Region(torch.ones(8, 8))
    style.set_scale("style", region)
    assert style.get_scale("style") is region and style.scales == {"style": region}
    with pytest.raises(ValueError, match="LoRA 'style' has a multiplier for each place, Region"):
        style.merge()
    style.set_scale("style", 1.0)
    style.merge()
    with pytest.raises(ValueError, match="LoRA 'style' has a multiplier for each place, Region"):
        style.set_scale("style", region)
    assert style.get_scale("style") == 1.0
