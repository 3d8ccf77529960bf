"""A LoRA in the place of another, with all that is not its values. In float64, in which rounding hides no mistake."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from small_models import FIRST, TEXT, assert_same, draw, make_sd1, state_of
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import LayerUpdate, LinearLora
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion import StableDiffusion_1
from refiners.foundationals.latent_diffusion.lora import Region, SDLoraManager
from refiners.ops.lora_block import LoraBlockCache

LAYERS = r"attn[12]\.|resnets.*conv1|proj_in"


@pytest.fixture(scope="module")
def sd1() -> StableDiffusion_1:
    return make_sd1().to(dtype=torch.float64)


@cache
def drawn(pattern: str = LAYERS, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return draw(make_sd1(), pattern, rank, seed)


@pytest.fixture(scope="module")
def first() -> dict[str, Tensor]:
    return with_text(drawn(), seed=2)


@pytest.fixture(scope="module")
def second() -> dict[str, Tensor]:
    return with_text(drawn(seed=1), seed=3)


@pytest.fixture
def style(manager: SDLoraManager, sd1: StableDiffusion_1, first: dict[str, Tensor]) -> SDLoraManager:
    manager.add_loras("style", first, 0.02)
    manager.add_loras("other", drawn(r"attn1\.to_q", seed=4), 0.03)
    return manager


def with_text(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    return {**tensors, f"{TEXT}.lora_down.weight": down, f"{TEXT}.lora_up.weight": up}


@torch.no_grad()
def output(model: StableDiffusion_1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    model.unet.set_clip_text_embedding(torch.randn(2, 5, 32, generator=generator, dtype=torch.float64))
    model.unet.set_timestep(torch.tensor([10]))
    image = model.unet(torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64))
    return torch.cat([image.flatten(), model.clip_text_encoder("a cat").flatten()])


def expected(model: StableDiffusion_1, edit: Callable[[SDLoraManager], object]) -> Tensor:
    """Compute what the model gives after an edit, from nothing attached; it is as it was then."""
    manager = SDLoraManager(model)
    edit(manager)
    result = output(model)
    manager.remove_all()
    return result


def assert_near(actual: Tensor, wanted: Tensor) -> None:
    assert (actual - wanted).norm() <= 1e-12 * wanted.norm()


def updates_of(manager: SDLoraManager, name: str = "style") -> list[tuple[LayerUpdate, list[torch.nn.Parameter]]]:
    return [(update, list(update.parameters())) for update in manager.get_loras_by_name(name)]


def are_same(
    one: list[tuple[LayerUpdate, list[torch.nn.Parameter]]], other: list[tuple[LayerUpdate, list[torch.nn.Parameter]]]
) -> bool:
    """Whether the updates and parameters are the very same objects."""
    return [[id(update), *map(id, parameters)] for update, parameters in one] == [
        [id(update), *map(id, parameters)] for update, parameters in other
    ]


def test_values_are_written_into_the_parameters(
    sd1: StableDiffusion_1, second: dict[str, Tensor], manager: SDLoraManager, first: dict[str, Tensor], tmp_path: Path
) -> None:
    wanted = expected(sd1, lambda fresh: fresh.add_loras("style", second, 0.02))
    save_to_safetensors(tmp_path / "second.safetensors", second)
    manager.add_loras("style", first, 0.02)
    before = updates_of(manager)
    for source in (second, tmp_path / "second.safetensors", str(tmp_path / "second.safetensors")):
        plan = manager.replace("style", source)
        assert plan.is_whole and len(plan.of_status("fits")) == len(before)
        assert are_same(updates_of(manager), before) and manager.names == ["style"]
        assert torch.equal(output(sd1), wanted)
        manager.replace("style", first)
        assert not torch.equal(output(sd1), wanted)


def test_what_a_lora_is_multiplied_by_stays(
    style: SDLoraManager, first: dict[str, Tensor], second: dict[str, Tensor]
) -> None:
    wider = with_text(drawn(rank=4, seed=8), seed=9)
    style.set_block_scales("style", {"down.1": 0.5, "up": 0.0})
    schedule = style._schedules.by_name
    style.set_schedule("style", lambda progress: 1 - progress)
    given = schedule["style"]
    for source in (second, wider, first):
        style.replace("style", source)
        assert style.scales == {"style": 0.02, "other": 0.03} and style.names == ["style", "other"]
        factors = style.get_block_scales("style")
        assert factors["down.1"] == 0.5 and factors["up.5"] == 0.0 and factors["down.2"] == 1.0
        assert style._schedules.by_name == {"style": given}
    style.replace("style", second, 0.5)
    assert style.scales == {"style": 0.5, "other": 0.03}
    style.replace("style", wider, 0.25)
    assert style.scales == {"style": 0.25, "other": 0.03}


def test_a_region_stays(style: SDLoraManager, second: dict[str, Tensor], sd1: StableDiffusion_1) -> None:
    region = Region(torch.tensor([[1.0, 0.0]], dtype=torch.float64), elsewhere=0.1)
    style.set_scale("style", region)
    for source in (second, drawn(rank=3, seed=7)):
        style.replace("style", source)
        assert style.get_scale("style") is region
        assert {update.has_places for update, _ in updates_of(style)} == {True, False}


@pytest.mark.parametrize("pattern", [r"attn1\.to_q", LAYERS + "|time_embedding"])
def test_updates_of_other_layers_are_attached_anew(
    style: SDLoraManager, sd1: StableDiffusion_1, pattern: str, first: dict[str, Tensor]
) -> None:
    others = drawn(pattern, seed=5)
    style.replace("style", others)
    result = output(sd1)
    style.remove_loras("other")
    assert style.names == ["style"]
    alone = output(sd1)
    style.remove_all()
    assert_near(alone, expected(sd1, lambda fresh: fresh.add_loras("style", others, 0.02)))
    style.add_loras("other", drawn(r"attn1\.to_q", seed=4), 0.03)
    style.add_loras("style", others, 0.02)
    assert_near(result, output(sd1))


def test_another_rank_is_attached_anew(style: SDLoraManager, sd1: StableDiffusion_1) -> None:
    before = updates_of(style)
    others = drawn(rank=5, seed=5)
    style.replace("style", others)
    assert not are_same(updates_of(style), before)
    style.remove_loras("other")
    assert_near(output(sd1), expected_beside(style, sd1, others))


def expected_beside(manager: SDLoraManager, model: StableDiffusion_1, tensors: dict[str, Tensor]) -> Tensor:
    manager.remove_all()
    result = expected(model, lambda fresh: fresh.add_loras("style", tensors, 0.02))
    manager.add_loras("style", tensors, 0.02)
    return result


def test_the_multiplier_of_the_file_counts(
    sd1: StableDiffusion_1, manager: SDLoraManager, first: dict[str, Tensor]
) -> None:
    third = {key: torch.tensor(0.3) if key.endswith("alpha") else value for key, value in first.items()}
    wanted = expected(sd1, lambda fresh: fresh.add_loras("style", third, 0.02))
    manager.add_loras("style", first, 0.02)
    before = updates_of(manager)
    manager.replace("style", third)
    assert are_same(updates_of(manager), before)
    assert torch.equal(output(sd1), wanted)


def test_values_of_fewer_bits_are_cast_and_kernels_of_one_pixel_spelled_as_matrices(
    sd1: StableDiffusion_1, manager: SDLoraManager, first: dict[str, Tensor], second: dict[str, Tensor]
) -> None:
    half = {key: value.half() for key, value in second.items()}
    for key, value in half.items():
        if "proj_in" in key and value.ndim == 4:
            half[key] = value.flatten(1)
    assert any("proj_in" in key and value.ndim == 2 for key, value in half.items())
    wanted = expected(sd1, lambda fresh: fresh.add_loras("style", half, 0.02))
    manager.add_loras("style", first, 0.02)
    before = updates_of(manager)
    manager.replace("style", half)
    assert are_same(updates_of(manager), before)
    assert torch.equal(output(sd1), wanted)


def test_what_overflows_in_the_dtype_of_the_layers_is_an_error() -> None:
    model = make_sd1().to(dtype=torch.float16)
    manager = SDLoraManager(model)
    tensors = {key: value.clone() for key, value in drawn(r"attn1\.to_q").items()}
    manager.add_loras("style", tensors)
    tensors |= {key: torch.tensor(2.0) for key in tensors if key.endswith("alpha")}  # nothing to multiply with
    tensors[f"{FIRST}.lora_up.weight"][0, 0] = 1e6
    before = state_of(model)
    with pytest.raises(ValueError, match=r"not finite in torch.float16.*attn1_to_q"):
        manager.replace("style", tensors)
    assert_same(before, model)


def _with(tensors: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    changed = {**tensors, key: value}
    return {key: each for key, each in changed.items() if each is not None}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (f"{FIRST}.lora_up.weight", torch.full((32, 2), torch.nan), "are not finite"),
        (f"{FIRST}.lora_up.weight", torch.zeros(31, 2), "shapes do not fit the layer's weight"),
        (f"{FIRST}.lora_up.weight", None, "the matrix 'up' is missing"),
        (f"{FIRST}.alpha", torch.tensor(torch.inf), "alpha must be finite"),
        ("lora_unet_nowhere.lora_down.weight", torch.zeros(2, 32), "the matrix 'up' is missing"),
        ("odd", torch.zeros(2), "no tensor of an update"),
    ],
)
def test_a_failure_changes_nothing(
    style: SDLoraManager,
    sd1: StableDiffusion_1,
    second: dict[str, Tensor],
    key: str,
    value: Tensor | None,
    message: str,
) -> None:
    before, updates = state_of(sd1), updates_of(style)
    with pytest.raises(ValueError, match=message):
        style.replace("style", _with(second, key, value))
    assert_same(before, sd1)
    assert are_same(updates_of(style), updates) and style.scales == {"style": 0.02, "other": 0.03}


def test_the_rest_can_be_left_out(style: SDLoraManager, second: dict[str, Tensor]) -> None:
    before = updates_of(style)
    plan = style.replace("style", {**second, "odd": torch.zeros(2)}, partial=True)
    assert plan.left_over == ("odd",) and are_same(updates_of(style), before)


def test_scopes_leave_updates_out(style: SDLoraManager, second: dict[str, Tensor]) -> None:
    style.replace("style", second, text_encoder_inclusions=[], unet_inclusions=["CrossAttentionBlock"])
    adapters = [update.parent for update, _ in updates_of(style)]
    assert adapters and all(
        any(type(chain).__name__ == "CrossAttentionBlock" for chain in adapter.get_parents())
        for adapter in adapters
        if adapter
    )


def test_wrong_calls(style: SDLoraManager, second: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no LoRA 'stile'"):
        style.replace("stile", second)
    with pytest.raises(FileNotFoundError):
        style.replace("style", tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="finite"):
        style.replace("style", second, float("nan"))
    with pytest.raises(TypeError, match="source"):
        style.replace("style", 3)  # pyright: ignore[reportArgumentType]
    style.merge("style")
    with pytest.raises(ValueError, match="'style' is merged: unmerge it first"):
        style.replace("style", second)
    style.unmerge("style")


def test_a_block_keeps_its_columns_of_the_weight(style: SDLoraManager, second: dict[str, Tensor]) -> None:
    cache = LoraBlockCache(limit=lambda _: 1 << 30)
    adapter = next(each for each in style.lora_adapters if isinstance(each.target, fl.Linear))
    weight, ups = adapter.target.weight, [lora.up.weight for lora in adapter.layers(LinearLora)]
    block = cache.get(weight, ups)
    assert block is not None
    style.replace("style", second)
    assert cache.get(weight, ups) is block
    assert torch.equal(block[:, weight.shape[1] : weight.shape[1] + 2], ups[0])
