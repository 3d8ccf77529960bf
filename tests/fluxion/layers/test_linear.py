"""Linear layers: torch's numbers and random stream, our names and texts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_linear_is_its_formula(device: torch.device, dtype: torch.dtype) -> None:
    layer = fl.Linear(5, 3, device=device, dtype=dtype)
    x = torch.randn(2, 4, 5, device=device).to(dtype)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    assert_close(layer(x), expected.to(dtype))
    assert layer(x[:0]).shape == (0, 4, 3)


def test_linear_takes_its_arguments_in_order() -> None:
    layer = fl.Linear(5, 3, False, "meta", torch.float16)
    assert layer.bias is None
    assert (layer.device, layer.dtype, layer.weight.shape) == (torch.device("meta"), torch.float16, (3, 5))


def test_linear_is_of_both_families_and_ours_win() -> None:
    layer = fl.Linear(1, 2)
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, fl.WeightedModule)
    assert str(layer) == repr(layer) == "Linear(in_features=1, out_features=2, device=cpu, dtype=float32)"
    assert str(fl.Linear(1, 2, bias=False)) == str(layer)
    assert layer.to(dtype=torch.float64) is layer
    assert layer.dtype == torch.float64
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_linear_draws_what_torch_draws() -> None:
    torch.manual_seed(5)
    expected = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    torch.manual_seed(5)
    actual = fl.Chain(fl.Linear(4, 3), fl.Linear(3, 2))
    for a, b in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "build",
    [
        lambda: fl.Linear(2, 2, device="meta"),
        lambda: fl.Conv2d(2, 2, 1, device="meta"),
        lambda: fl.ConvTranspose2d(2, 2, 1, device="meta"),
        lambda: fl.Embedding(2, 2, device="meta"),
        lambda: fl.GroupNorm(2, 2, device="meta"),
        lambda: fl.LayerNorm(2, device="meta"),
    ],
    ids=["linear", "conv", "transposed", "embedding", "group norm", "layer norm"],
)
def test_nothing_is_drawn_on_the_meta_device(build: type[fl.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an initialization ran")

    before = torch.get_rng_state()
    for name in ("kaiming_uniform_", "uniform_", "normal_", "ones_", "zeros_"):
        monkeypatch.setattr(nn.init, name, refuse)
    assert all(parameter.is_meta for parameter in build().parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_multi_linear_alternates_linear_and_relu(in_one_graph: Compiled) -> None:
    model = fl.MultiLinear(input_dim=4, output_dim=3, inner_dim=5, num_layers=3)
    assert list(model._modules) == ["Linear_1", "ReLU_1", "Linear_2", "ReLU_2", "Linear_3"]
    assert [(x.in_features, x.out_features) for x in model.layers(fl.Linear)] == [(4, 5), (5, 5), (5, 3)]
    x = torch.randn(2, 4)
    first, second, third = model.layers(fl.Linear)
    expected = third(torch.relu(second(torch.relu(first(x)))))
    assert_close(model(x), expected)
    assert_close(in_one_graph(model, x), expected)


def test_multi_linear_of_two_layers_has_one_relu_without_number() -> None:
    assert list(fl.MultiLinear(4, 3, 5, 2)._modules) == ["Linear_1", "ReLU", "Linear_2"]


def test_multi_linear_of_one_layer_begins_at_the_inner_dimension() -> None:
    (linear,) = fl.MultiLinear(4, 3, 5, 1).layers(fl.Linear)
    assert (linear.in_features, linear.out_features) == (5, 3)


def test_multi_linear_keeps_no_attributes_and_passes_device_and_dtype_on() -> None:
    model = fl.MultiLinear(4, 3, 5, 2, "meta", torch.float16)
    assert str(model) == "MultiLinear()"
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float16)}


def test_multi_linear_refuses_to_have_no_layer() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        fl.MultiLinear(4, 3, 5, 0)
