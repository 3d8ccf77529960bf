"""What holds for both U-Nets: every weight matters, samples do not meet, copies share weights, sizes are checked."""

import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError
from refiners.fluxion.utils import save_to_safetensors
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.stable_diffusion_xl import SDXLUNet
from refiners.foundationals.latent_diffusion.unet import ResidualAccumulator, ResidualBlock, ResidualConcatenator

MakeUNet = Callable[..., Any]
Call = Callable[..., Tensor]
Conditions = Callable[..., dict[str, Tensor]]


@pytest.mark.parametrize(("in_channels", "size"), [(4, (8, 8)), (9, (7, 13)), (8, (1, 1))], ids=str)
def test_the_output_has_the_size_of_the_latents(
    make_unet: MakeUNet, call: Call, in_channels: int, size: tuple[int, int]
) -> None:
    unet = make_unet(in_channels)
    assert unet.in_channels == in_channels
    assert call(unet, torch.randn(2, in_channels, *size)).shape == (2, 4, *size)


@pytest.mark.parametrize("size", [(8, 8), (7, 13)], ids=str)
def test_samples_of_a_batch_do_not_meet(make_unet: MakeUNet, call: Call, size: tuple[int, int]) -> None:
    unet, x = make_unet(), torch.randn(3, 4, *size)
    assert_close(call(unet, x)[:1], call(unet, x[:1]), rtol=1e-4, atol=1e-5)


def test_every_weight_and_every_condition_matters(
    make_unet: MakeUNet, call: Call, conditions: Conditions, randomize: Callable[[nn.Module], None]
) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 6, 6)
    randomize(unet)
    given = conditions(unet, 2)
    variants = [call(unet, x), call(unet, 2 * x), call(unet, x, timestep=torch.tensor([500]))]
    variants += [call(unet, x, **{key: value.flip(0)}) for key, value in given.items() if key != "timestep"]
    assert len(variants) == (6 if isinstance(unet, SDXLUNet) else 4)
    for a, b in combinations(variants, 2):
        assert not torch.allclose(a, b, rtol=1e-3, atol=1e-3)
    for key, value in given.items():
        getattr(unet, f"set_{key}")(value)
    unet(x).square().sum().backward()
    without = [name for name, weight in unet.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_two_calls_agree_in_every_bit(make_unet: MakeUNet, call: Call) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 7, 6)
    assert torch.equal(call(unet, x), call(unet, x))


def test_what_adapters_add_to_the_residuals_reaches_the_output(make_unet: MakeUNet, call: Call) -> None:
    unet, x = make_unet(), torch.randn(1, 4, 6, 6)
    outputs = [call(unet, x)]
    for n in range(3 * len(unet.channels) + 1):
        unet.set_context("unet", {"residuals": [0.0] * n + [1.0] + [0.0] * (3 * len(unet.channels) - n)})
        outputs.append(call(unet, x))
    for a, b in combinations(outputs, 2):
        assert not torch.allclose(a, b)


def test_a_copy_shares_weights_but_no_conditions(make_unet: MakeUNet, call: Call) -> None:
    unet, x = make_unet(), torch.randn(1, 4, 6, 6)
    expected = call(unet, x)
    other = unet.structural_copy()
    assert repr(other) == repr(unet)
    assert all(a is b for a, b in zip(other.parameters(), unet.parameters()))
    assert torch.equal(call(other, x), expected)
    unet.layer("DownBlocks", fl.Chain).layer(2, fl.Chain).append(fl.Lambda(lambda x: 2 * x))
    assert torch.equal(call(other, x), expected)
    unet.set_timestep(torch.tensor([1]))
    with pytest.raises(ChainError, match="set_timestep"):
        other(x)


@pytest.mark.parametrize("duplicate", [lambda unet: pickle.loads(pickle.dumps(unet)), copy.deepcopy])
def test_a_pickled_unet_is_the_same(make_unet: MakeUNet, call: Call, duplicate: Callable[[Any], Any]) -> None:
    unet, x = make_unet(), torch.randn(1, 4, 6, 6)
    expected = call(unet, x)
    other = duplicate(unet)
    assert torch.equal(call(other, x), expected)
    assert all(a is not b for a, b in zip(other.parameters(), unet.parameters()))


def test_weights_survive_a_file(make_unet: MakeUNet, call: Call, tmp_path: Path) -> None:
    unet, x = make_unet(), torch.randn(1, 4, 6, 6)
    save_to_safetensors(tmp_path / "unet.safetensors", unet.state_dict())
    loaded = make_unet(device="meta").load_from_safetensors(tmp_path / "unet.safetensors")
    assert torch.equal(call(loaded, x), call(unet, x))


def test_the_memory_format_does_not_matter(
    make_unet: MakeUNet, call: Call, error: Callable[..., float], copies: Any
) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 6, 6)
    expected = call(unet, x)
    unet.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    with copies:
        y = call(unet, x)
    assert copies.found == []
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, expected) < 1e-5


def test_half_precision_is_close(
    make_unet: MakeUNet, call: Call, error: Callable[..., float], dtype: torch.dtype
) -> None:
    unet, x = make_unet(), torch.randn(2, 4, 6, 6)
    expected = call(unet, x)
    y = call(unet.to(dtype), x.to(dtype))
    assert y.dtype == dtype
    assert error(y.float(), expected) < {torch.float32: 1e-6, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]


def test_device_and_dtype_reach_every_weight(make_unet: MakeUNet) -> None:
    unet = make_unet(device="meta", dtype=torch.float16)
    assert {(weight.device.type, weight.dtype) for weight in unet.parameters()} == {("meta", torch.float16)}


def test_no_weight_is_drawn_twice(make_unet: MakeUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    for layer in (fl.Linear, fl.Conv2d, fl.GroupNorm, fl.LayerNorm):
        original = layer.reset_parameters

        def reset(self: Any, original: Any = original) -> None:
            drawn.append(id(self))
            original(self)

        monkeypatch.setattr(layer, "reset_parameters", reset)
    unet = make_unet()
    assert sorted(drawn) == sorted(id(layer) for layer in unet.layers(fl.WeightedModule))


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_after_the_construction_as_before_it(make_unet: MakeUNet, enabled: bool) -> None:
    starts: list[str] = []

    def count(phase: str, _: dict[str, int]) -> None:
        starts.append(phase)

    if not enabled:
        gc.disable()
    try:
        for options in ({}, {"in_channels": 0}, {"channels": (12, 24, 48)}):
            gc.callbacks.append(count)
            with suppress(ValueError, AssertionError):
                make_unet(**options)
            gc.callbacks.remove(count)
            assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert len(starts) <= 6  # before and after, and not while layers are built


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"channels": ()}, r"channels must hold a positive number .* got \(\)"),
        ({"channels": (16, 20, 64)}, r"all divisible by num_groups 8, got \(16, 20, 64\)"),
        ({"channels": (7, 14, 28), "num_groups": 7}, r"the first even, .* got \(7, 14, 28\)"),
    ],
)
def test_sizes_that_do_not_fit_are_named(make_unet: MakeUNet, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_unet(**wrong)


def test_the_blocks_are_connected_in_mirrored_order(make_unet: MakeUNet) -> None:
    unet = make_unet()
    down, up = unet.layer("DownBlocks", fl.Chain), unet.layer("UpBlocks", fl.Chain)
    assert [block.layer(-1, ResidualAccumulator).n for block in down] == list(range(len(down)))
    assert [block.layer(0, ResidualConcatenator).n for block in up] == [-n - 2 for n in range(len(up))]
    assert len(list(unet.layers(RangeAdapter2d))) == len(list(unet.layers(ResidualBlock)))
    assert {adapter.context_key for adapter in unet.layers(RangeAdapter2d)} == {"timestep_embedding"}


def test_the_timestep_encoder_writes_to_the_key_it_is_given(make_unet: MakeUNet, call: Call) -> None:
    unet = make_unet()
    encoder = unet.layer("TimestepEncoder", fl.Chain)
    assert encoder.context_key == "timestep_embedding"
    encoder.context_key = "other"
    with pytest.raises(ChainError, match=r"range_adapter\.timestep_embedding is unset"):
        call(unet, torch.randn(1, 4, 6, 6))
    assert unet.use_context("range_adapter")["other"].shape[-1] == 4 * unet.channels[0]
