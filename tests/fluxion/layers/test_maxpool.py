"""Maxima over windows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_max_pool_1d_takes_its_arguments_in_order() -> None:
    layer = fl.MaxPool1d(3, 2, 1, 2, True, True)
    x = torch.randn(2, 3, 10)
    expected = F.max_pool1d_with_indices(x, 3, 2, 1, 2, True)
    actual = layer(x)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert isinstance(layer, nn.MaxPool1d)


def test_max_pool_2d_takes_its_arguments_in_order() -> None:
    layer = fl.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2), True, True)
    x = torch.randn(2, 3, 10, 9)
    expected = F.max_pool2d_with_indices(x, (3, 2), (2, 1), (1, 0), (1, 2), True)
    actual = layer(x)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert isinstance(layer, nn.MaxPool2d)


@pytest.mark.parametrize("cls", [fl.MaxPool1d, fl.MaxPool2d])
def test_indices_are_asked_for_before_the_rounding(cls: type[fl.MaxPool1d | fl.MaxPool2d]) -> None:
    x = torch.randn(2, 5, 5)  # without batch for 2-D windows
    maxima, indices = cls(2, 2, 0, 1, True, False)(x)
    assert maxima.shape == indices.shape and maxima.shape[-1] == 2
    assert cls(2, 2, 0, 1, False, True)(x).shape[-1] == 3


def test_the_stride_defaults_to_the_size_of_the_window() -> None:
    assert fl.MaxPool1d(3).stride == 3
    assert fl.MaxPool2d((3, 2)).stride == (3, 2)
    assert torch.equal(fl.MaxPool1d(2)(torch.tensor([[1.0, 3.0, 2.0, 0.0]])), torch.tensor([[3.0, 2.0]]))
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(fl.MaxPool2d(2)(x), torch.tensor([[[[5.0, 7.0], [13.0, 15.0]]]]))


def test_max_pools_have_no_weight_and_show_their_window() -> None:
    for layer in (fl.MaxPool1d(2), fl.MaxPool2d(2)):
        assert not isinstance(layer, fl.WeightedModule)
        assert str(layer) == repr(layer) == f"{type(layer).__name__}(kernel_size=2, stride=2)"


def test_max_pools_compile_into_one_graph(in_one_graph: Compiled) -> None:
    x = torch.randn(2, 3, 8)
    assert torch.equal(in_one_graph(fl.MaxPool1d(2), x), fl.MaxPool1d(2)(x))
    assert torch.equal(in_one_graph(fl.MaxPool2d(2), x[None]), fl.MaxPool2d(2)(x[None]))
