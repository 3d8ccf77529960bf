"""Normalizations against their formulas in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def normalized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()


def with_random_weights(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))


def test_layer_norm_is_its_formula(device: torch.device, dtype: torch.dtype) -> None:
    layer = fl.LayerNorm([3, 4], eps=0.1, device=device, dtype=dtype)
    with_random_weights(layer)
    x = torch.randn(5, 3, 4, device=device).to(dtype)
    expected = normalized(x.double(), (1, 2), 0.1) * layer.weight.double() + layer.bias.double()
    assert_close(layer(x), expected.to(dtype))


def test_layer_norm_makes_its_shape_a_tuple() -> None:
    assert fl.LayerNorm(8).normalized_shape == (8,)
    assert str(fl.LayerNorm(8)) == "LayerNorm(normalized_shape=(8,), device=cpu, dtype=float32)"
    layer = fl.LayerNorm([2, 8], 1e-3, "meta", torch.float16)
    assert (layer.normalized_shape, layer.eps, layer.device.type, layer.dtype) == ((2, 8), 1e-3, "meta", torch.float16)
    assert fl.LayerNorm(8).eps == 1e-5
    assert isinstance(layer, nn.LayerNorm)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_group_norm_is_its_formula(device: torch.device, dtype: torch.dtype) -> None:
    layer = fl.GroupNorm(6, 2, eps=0.1, device=device, dtype=dtype)
    with_random_weights(layer)
    x = torch.randn(2, 6, 4, 3, device=device).to(dtype)
    groups = normalized(x.double().reshape(2, 2, 3 * 4 * 3), (2,), 0.1).reshape(x.shape)
    expected = groups * layer.weight.double()[:, None, None] + layer.bias.double()[:, None, None]
    assert_close(layer(x), expected.to(dtype))


def test_group_norm_takes_channels_first_and_shows_groups_first() -> None:
    layer = fl.GroupNorm(8, 2)
    assert (layer.channels, layer.num_channels, layer.num_groups, layer.eps) == (8, 8, 2, 1e-5)
    assert str(layer) == "GroupNorm(num_groups=2, channels=8, device=cpu, dtype=float32)"
    assert str(fl.GroupNorm(8, 2, 0.5)) == "GroupNorm(num_groups=2, eps=0.5, channels=8, device=cpu, dtype=float32)"
    assert isinstance(layer, nn.GroupNorm)
    assert isinstance(layer, fl.WeightedModule)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_layer_norm_2d_is_its_formula(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    layer = fl.LayerNorm2d(6, eps=0.1, device=device, dtype=dtype)
    with_random_weights(layer)
    x = torch.randn(2, 6, 4, 3, device=device).to(dtype).contiguous(memory_format=memory_format)
    expected = normalized(x.double(), (1,), 0.1) * layer.weight.double()[:, None, None]
    expected = expected + layer.bias.double()[:, None, None]
    assert_close(layer(x), expected.to(dtype))
    assert layer(x[:0]).shape == (0, 6, 4, 3)


def test_layer_norm_2d_has_the_gradients_of_its_formula() -> None:
    layer = fl.LayerNorm2d(3, dtype=torch.float64)
    with_random_weights(layer)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_layer_norm_2d_takes_at_most_two_kernels() -> None:
    layer, x = fl.LayerNorm2d(4), torch.randn(1, 4, 2, 2)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer(x)
    names = {event.key for event in profile.key_averages()}
    assert "aten::native_layer_norm" in names
    assert not names & {"aten::mean", "aten::var_mean", "aten::sub", "aten::mul", "aten::div", "aten::sqrt"}


def test_layer_norm_2d_begins_as_the_plain_normalization() -> None:
    before = torch.get_rng_state()
    layer = fl.LayerNorm2d(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert layer.eps == 1e-6
    assert torch.equal(layer.weight, torch.ones(4))
    assert torch.equal(layer.bias, torch.zeros(4))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert str(layer) == "LayerNorm2d(device=cpu, dtype=float32)"
    assert set(layer.basic_attributes()) == {"eps", "training"}


def test_instance_norm_2d_is_its_formula_without_state() -> None:
    layer = fl.InstanceNorm2d(3, eps=0.1)
    x = torch.randn(2, 3, 4, 5)
    assert_close(layer(x), normalized(x.double(), (2, 3), 0.1).float())
    assert list(layer.state_dict()) == []
    assert not isinstance(layer, fl.WeightedModule)
    assert str(fl.InstanceNorm2d(3)) == "InstanceNorm2d(num_features=3)"


@pytest.mark.parametrize(
    "layer", [fl.LayerNorm(4), fl.GroupNorm(4, 2), fl.LayerNorm2d(4), fl.InstanceNorm2d(4)], ids=str
)
def test_a_normalization_compiles_into_one_graph(layer: fl.Module, in_one_graph: Compiled) -> None:
    x = torch.randn(2, 4, 4, 4)
    assert_close(in_one_graph(layer, x), layer(x))
