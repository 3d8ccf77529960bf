"""Convolutions: torch's numbers, with our order of arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_conv2d_takes_its_arguments_in_order() -> None:
    layer = fl.Conv2d(4, 8, 3, 2, 1, 2, False, 3, "reflect", "cpu", torch.float64)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (4, 8, (3, 3))
    assert (layer.stride, layer.padding, layer.dilation, layer.groups) == ((2, 2), (1, 1), (3, 3), 2)
    assert (layer.use_bias, layer.bias, layer.padding_mode, layer.dtype) == (False, None, "reflect", torch.float64)


def test_conv2d_is_torchs(device: torch.device, dtype: torch.dtype) -> None:
    layer = fl.Conv2d(
        4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, dilation=(1, 2), device=device, dtype=dtype
    )
    x = torch.randn(2, 4, 9, 8, device=device).to(dtype)
    weight, bias = layer.weight.double(), layer.bias.double()  # type: ignore[union-attr]
    expected = F.conv2d(x.double(), weight, bias, stride=(2, 1), padding=(1, 0), groups=2, dilation=(1, 2))
    assert_close(layer(x), expected.to(dtype))


def test_conv2d_pads_as_told() -> None:
    layer = fl.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", use_bias=False)
    x = torch.randn(1, 1, 5, 5)
    assert_close(layer(x), F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), layer.weight))
    assert fl.Conv2d(1, 1, 3, padding="same")(x).shape == x.shape
    assert fl.Conv2d(1, 1, 3, padding="valid")(x).shape == (1, 1, 3, 3)


def test_the_stride_may_be_changed_later() -> None:
    layer = fl.Conv2d(1, 1, 1)
    layer.stride = (2, 2)
    assert layer(torch.ones(1, 1, 4, 4)).shape == (1, 1, 2, 2)


def test_conv2d_is_of_both_families_and_shows_what_is_not_default() -> None:
    layer = fl.Conv2d(3, 8, 3)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer, fl.WeightedModule)
    assert layer.use_bias
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert str(layer) == "Conv2d(in_channels=3, out_channels=8, kernel_size=(3, 3), device=cpu, dtype=float32)"
    assert str(fl.Conv2d(3, 8, (3, 1), stride=2, use_bias=False)) == (
        "Conv2d(in_channels=3, out_channels=8, kernel_size=(3, 1), stride=(2, 2), use_bias=False,"
        " device=cpu, dtype=float32)"
    )


def test_conv_transpose2d_takes_its_arguments_in_order() -> None:
    layer = fl.ConvTranspose2d(4, 8, 3, 2, 1, 1, 2, False, 2, "zeros", "cpu", torch.float64)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.output_padding) == ((3, 3), (2, 2), (1, 1), (1, 1))
    assert (layer.groups, layer.bias, layer.dilation, layer.dtype) == (2, None, (2, 2), torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    expected = F.conv_transpose2d(x, layer.weight, None, 2, 1, 1, 2, 2)
    assert_close(layer(x), expected)


def test_conv_transpose2d_shows_its_tuples_even_where_they_are_default() -> None:
    layer = fl.ConvTranspose2d(2, 3, 2)
    assert isinstance(layer, nn.ConvTranspose2d)
    assert isinstance(layer, fl.WeightedModule)
    assert str(layer) == (
        "ConvTranspose2d(in_channels=2, out_channels=3, kernel_size=(2, 2), stride=(1, 1), padding=(0, 0),"
        " dilation=(1, 1), output_padding=(0, 0), device=cpu, dtype=float32)"
    )


@pytest.mark.parametrize(("ours", "torchs"), [(fl.Conv2d, nn.Conv2d), (fl.ConvTranspose2d, nn.ConvTranspose2d)])
def test_a_convolution_draws_what_torch_draws(ours: type[fl.Conv2d], torchs: type[nn.Conv2d]) -> None:
    torch.manual_seed(1)
    expected = torchs(3, 4, 3)
    torch.manual_seed(1)
    actual = ours(3, 4, 3)
    assert torch.equal(actual.weight, expected.weight)
    assert torch.equal(actual.bias, expected.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [fl.Conv2d(2, 3, 3, padding=1), fl.ConvTranspose2d(2, 3, 2, stride=2)], ids=str)
def test_a_convolution_compiles_into_one_graph(layer: fl.Module, in_one_graph: Compiled) -> None:
    x = torch.randn(1, 2, 4, 4)
    assert_close(in_one_graph(layer, x), layer(x))
