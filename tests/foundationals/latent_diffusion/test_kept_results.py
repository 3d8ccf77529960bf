"""U-Nets that have run before, edited in any way, give what fresh ones give: nothing that is kept is out of date."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.foundationals.latent_diffusion import RangeAdapter2d, RangeEncoder, SD1UNet, SDXLUNet
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock
from refiners.foundationals.latent_diffusion.stable_diffusion_xl.timestep_encoder import (
    TextTimeEmbedding,
    TimestepEncoder,
)

TIMESTEPS = torch.tensor([900, 600, 300])
TEXT = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def small_sd1() -> SD1UNet:
    return SD1UNet(4, channels=(32, 32), text_embedding_dim=16, num_attention_heads=4, num_groups=4)


def run(unet: SD1UNet | SDXLUNet, timestep: Tensor, text: Tensor = TEXT) -> Tensor:
    unet.set_timestep(timestep)
    unet.set_clip_text_embedding(text)
    return unet(X)


def projection(unet: SD1UNet) -> fl.Linear:
    """Find what makes keys of a prompt."""
    return attention(unet).layer(("Distribute", 1), fl.Linear)


def attention(unet: SD1UNet) -> fl.Attention:
    return unet.ensure_find(CrossAttentionBlock).layer(("Residual_2", "Attention"), fl.Attention)


def use_relu(chain: fl.Chain) -> None:
    chain.replace(chain.ensure_find(fl.SiLU), fl.ReLU())


def double(module: object, args: object, output: Tensor) -> Tensor:
    return 2 * output


def double_values_in_place(module: object, args: object, output: tuple[Tensor, ...]) -> None:
    output[2].mul_(2)


def add_lora(unet: SD1UNet) -> None:
    target = projection(unet)
    lora = LinearLora("a", target.in_features, target.out_features, rank=2, device=target.weight.device)
    torch.nn.init.ones_(lora.up.weight)
    torch.nn.init.constant_(lora.down.weight, 0.1)
    LoraAdapter(target, lora).inject(unet)


def change_the_sinusoids(unet: SD1UNet) -> None:
    unet.ensure_find(RangeEncoder).layer(0, fl.Lambda).func = lambda x: torch.ones(*x.shape, 32)


EDITS: dict[str, Callable[[SD1UNet], object]] = {
    "a hook on a projection": lambda unet: projection(unet).register_forward_hook(double),
    "a hook that writes into values": lambda unet: (
        attention(unet).layer("Distribute", fl.Distribute).register_forward_hook(double_values_in_place)
    ),
    "a weight": lambda unet: projection(unet).weight.mul_(2),
    "a LoRA": add_lora,
    "an activation of the encoder": lambda unet: use_relu(unet.ensure_find(RangeEncoder)),
    "an activation of a shift": lambda unet: use_relu(unet.ensure_find(RangeAdapter2d).layer(1, fl.Chain)),
    "a hook on an activation of the encoder": lambda unet: (
        unet.ensure_find(RangeEncoder).layer(3, fl.SiLU).register_forward_hook(double)
    ),
    "a hook on an activation of a shift": lambda unet: (
        unet.ensure_find(RangeAdapter2d).layer((1, 1), fl.SiLU).register_forward_hook(double)
    ),
    "a hook on the chain of a shift": lambda unet: (
        unet.ensure_find(RangeAdapter2d).layer(1, fl.Chain).register_forward_hook(double)
    ),
    "a function of the timestep": change_the_sinusoids,
    "what is read from a context": lambda unet: (
        unet.ensure_find(RangeAdapter2d).layer((1, 0), fl.UseContext).compose(lambda x: 2 * x)
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
@torch.no_grad()
def test_an_edit_takes_effect_at_once(edit: Callable[[SD1UNet], object]) -> None:
    unet = small_sd1()
    for step in range(3):
        run(unet, TIMESTEPS[step : step + 1])
    fresh = copy.deepcopy(unet)
    before = run(unet, TIMESTEPS[1:2])
    edit(unet)
    edit(fresh)
    for step in (1, 2, 1, 0):
        with torch.enable_grad():  # nothing is kept where gradients are recorded
            expected = run(fresh, TIMESTEPS[step : step + 1].clone()).detach()
        torch.testing.assert_close(run(unet, TIMESTEPS[step : step + 1]), expected, atol=1e-4, rtol=1e-4)
    assert (run(unet, TIMESTEPS[1:2]) - before).abs().max() > 1e-4


@torch.no_grad()
def test_copies_with_other_structures_do_not_disturb_each_other() -> None:
    unet = small_sd1()
    expected = run(unet, TIMESTEPS[1:2])
    other = unet.structural_copy()
    use_relu(other.ensure_find(RangeEncoder))
    assert (run(other, TIMESTEPS[1:2]) - expected).abs().max() > 1e-4
    torch.testing.assert_close(run(unet, TIMESTEPS[1:2]), expected)


@torch.no_grad()
def test_a_moved_unet_keeps_nothing_in_the_old_place() -> None:
    unet = small_sd1()
    run(unet, TIMESTEPS[1:2])
    kept = attention(unet).layer("Distribute", fl.Distribute)._reused
    assert any(reused._kept._entry is not None for reused in kept)
    unet.double()
    assert all(reused._kept._entry is None for reused in kept)


POOLED = torch.randn(2, 24, generator=torch.Generator().manual_seed(2))
SHIFTS_XL = 4 + 2 + 6  # one in each residual block of the way down, the middle and the way up
TIME_IDS = torch.tensor([[1024, 1024, 0, 0, 1024, 1024], [512, 512, 0, 0, 512, 768]])


def small_xl() -> SDXLUNet:
    return SDXLUNet(
        4,
        channels=(16, 32),
        text_embedding_dim=16,
        pooled_text_embedding_dim=24,
        num_attention_layers=(0, 1),
        head_dim=8,
        time_ids_embedding_dim=6,
        num_groups=4,
    )


def run_xl(unet: SDXLUNet, timestep: Tensor, pooled: Tensor = POOLED, time_ids: Tensor = TIME_IDS) -> Tensor:
    unet.set_pooled_text_embedding(pooled)
    unet.set_time_ids(time_ids)
    return run(unet, timestep)


def text_time(unet: SDXLUNet) -> TextTimeEmbedding:
    return unet.ensure_find(TextTimeEmbedding)


def add_third_encoding(unet: SDXLUNet) -> None:
    total = unet.ensure_find(TimestepEncoder).layer("Sum", fl.Sum)
    total.append(fl.Chain(fl.UseContext("diffusion", "pooled_text_embedding"), fl.Lambda(mean_of_rows)))


def mean_of_rows(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)


EDITS_XL: dict[str, Callable[[SDXLUNet], object]] = {
    "a weight": lambda unet: text_time(unet).layer("Linear_2", fl.Linear).weight.mul_(2),
    "an activation": lambda unet: use_relu(text_time(unet)),
    "a hook": lambda unet: text_time(unet).register_forward_hook(double),
    "a hook on a linear layer": lambda unet: text_time(unet).layer("Linear_1", fl.Linear).register_forward_hook(double),
    "a hook on the concatenation": lambda unet: (
        text_time(unet).layer("Concatenate", fl.Concatenate).register_forward_hook(double)
    ),
    "a hook on the sinusoids": lambda unet: (
        text_time(unet).layer(("Concatenate", "Chain", "Lambda"), fl.Lambda).register_forward_hook(double)
    ),
    "what is read from a context": lambda unet: (
        text_time(unet).layer(("Concatenate", "UseContext"), fl.UseContext).compose(lambda x: 2 * x)
    ),
    "a third encoding": add_third_encoding,
    "a hook on the sum": lambda unet: (
        unet.ensure_find(TimestepEncoder).layer("Sum", fl.Sum).register_forward_hook(double)
    ),
    "a weight of the timestep's encoder": lambda unet: (
        unet.ensure_find(RangeEncoder).layer("Linear_2", fl.Linear).weight.mul_(2)
    ),
}


@pytest.mark.parametrize("edit", EDITS_XL.values(), ids=list(EDITS_XL))
@torch.no_grad()
def test_an_edit_of_the_larger_unet_takes_effect_at_once(edit: Callable[[SDXLUNet], object]) -> None:
    unet = small_xl()
    for step in range(3):
        run_xl(unet, TIMESTEPS[step : step + 1])
    fresh = copy.deepcopy(unet)
    before = run_xl(unet, TIMESTEPS[1:2])
    edit(unet)
    edit(fresh)
    for step in (1, 2, 1, 0):
        with torch.enable_grad():
            expected = run_xl(fresh, TIMESTEPS[step : step + 1].clone()).detach()
        torch.testing.assert_close(run_xl(unet, TIMESTEPS[step : step + 1]), expected, atol=1e-4, rtol=1e-4)
    assert (run_xl(unet, TIMESTEPS[1:2]) - before).abs().max() > 1e-4


@torch.no_grad()
def test_other_conditions_and_timesteps_take_effect_at_once() -> None:
    unet, fresh = small_xl(), small_xl()
    fresh.load_state_dict(unet.state_dict())
    pooled, time_ids = POOLED.clone(), TIME_IDS.clone()
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: pooled.mul_(2),
        lambda: time_ids[0].fill_(256),
        lambda: TIMESTEPS,
    ]
    for change in changes:
        change()
        for timestep in (TIMESTEPS[:1], TIMESTEPS[2:], torch.tensor([17]), TIMESTEPS[:2], torch.tensor([5, 6])):
            with torch.enable_grad():
                expected = run_xl(fresh, timestep.clone(), pooled.clone(), time_ids.clone()).detach()
            torch.testing.assert_close(run_xl(unet, timestep, pooled, time_ids), expected, atol=1e-4, rtol=1e-4)


def rows_of_linear_layers(function: Callable[[], object]) -> list[int]:
    """Call a function, and give how many rows each linear layer got."""
    rows: list[int] = []

    class Count(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.nn.functional.linear:
                rows.append(args[0].shape[:-1].numel())
            return function(*args, **(kwargs or {}))

    with Count():
        function()
    return rows


@torch.no_grad()
def test_the_third_step_encodes_nothing_again() -> None:
    unet = small_xl()
    names = [name for name, layer in unet.named_modules() if type(layer) is fl.Linear]
    of_time = [name for name in names if "RangeAdapter2d" in name or "TimestepEncoder" in name]
    of_text = sum(
        len(block.layer(("Residual_2", "Attention", "Distribute"), fl.Distribute)) - 1
        for block in unet.layers(CrossAttentionBlock)
    )
    assert len(of_time) == 4 + SHIFTS_XL
    first, second, third = (
        len(rows_of_linear_layers(lambda step=step: run_xl(unet, TIMESTEPS[step : step + 1]))) for step in range(3)
    )
    assert second == first - 4 - of_text  # the shifts again, now for all steps
    assert third == second - SHIFTS_XL


@torch.no_grad()
def test_new_conditions_at_each_step_are_encoded_for_that_step_alone() -> None:
    unet = small_xl()
    steps = [
        rows_of_linear_layers(lambda step=step: run_xl(unet, TIMESTEPS[step : step + 1], POOLED.clone()))
        for step in (0, 1, 2, 0)
    ]
    assert all(each.count(2) >= SHIFTS_XL for each in steps)
    assert not any(each.count(2 * len(TIMESTEPS)) for each in steps)


@torch.no_grad()
def test_what_the_encoder_is_edited_to_give_is_added_up() -> None:
    unet, plain = small_xl(), small_xl()
    plain.load_state_dict(unet.state_dict())
    expected = run_xl(plain, TIMESTEPS[:1])
    unet.ensure_find(RangeEncoder).append(fl.Converter(set_device=False))  # it gives a tuple
    text_time(unet).append(fl.Converter(set_device=False))
    for _ in range(3):
        torch.testing.assert_close(run_xl(unet, TIMESTEPS[:1]), expected)


def test_an_error_names_the_encoder() -> None:
    unet = small_xl()
    unet.ensure_find(TimestepEncoder).layer(("Sum", "Chain"), fl.Chain).append(fl.Linear(3, 3))
    with pytest.raises(Exception, match="TimestepEncoder"), torch.no_grad():
        run_xl(unet, TIMESTEPS[:1])


@torch.no_grad()
def test_what_autocast_made_is_not_used_without_it() -> None:
    unet = small_xl()
    unet.set_pooled_text_embedding(POOLED.double())
    unet.set_time_ids(TIME_IDS)
    with torch.autocast("cpu", torch.bfloat16):
        assert text_time(unet)().dtype == torch.bfloat16
    assert text_time(unet)().dtype == torch.float32
