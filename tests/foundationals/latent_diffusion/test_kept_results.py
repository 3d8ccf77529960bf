"""U-Nets that have run before, edited in any way, give what fresh ones give: nothing that is kept is out of date."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.foundationals.latent_diffusion import RangeAdapter2d, RangeEncoder, SD1UNet
from refiners.foundationals.latent_diffusion.cross_attention import CrossAttentionBlock

TIMESTEPS = torch.tensor([900, 600, 300])
TEXT = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def run(unet: SD1UNet, timestep: Tensor, text: Tensor = TEXT) -> Tensor:
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
    unet = SD1UNet(4, channels=(32, 32, 32, 32), text_embedding_dim=16, num_attention_heads=4, num_groups=4)
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
    unet = SD1UNet(4, channels=(32, 32, 32, 32), text_embedding_dim=16, num_attention_heads=4, num_groups=4)
    expected = run(unet, TIMESTEPS[1:2])
    other = unet.structural_copy()
    use_relu(other.ensure_find(RangeEncoder))
    assert (run(other, TIMESTEPS[1:2]) - expected).abs().max() > 1e-4
    torch.testing.assert_close(run(unet, TIMESTEPS[1:2]), expected)


@torch.no_grad()
def test_a_moved_unet_keeps_nothing_in_the_old_place() -> None:
    unet = SD1UNet(4, channels=(32, 32, 32, 32), text_embedding_dim=16, num_attention_heads=4, num_groups=4)
    run(unet, TIMESTEPS[1:2])
    kept = attention(unet).layer("Distribute", fl.Distribute)._reused
    assert any(reused._entry is not None for reused in kept)
    unet.double()
    assert all(reused._entry is None for reused in kept)
