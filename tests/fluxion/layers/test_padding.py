"""Padding by reflection."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_reflection_pad_mirrors_without_repeating_the_edge(in_one_graph: Compiled) -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    layer = fl.ReflectionPad2d(1)
    index = torch.tensor([1, 0, 1, 2, 1])
    assert torch.equal(layer(x), x[:, :, index][:, :, :, index])
    assert torch.equal(in_one_graph(layer, x), layer(x))


def test_the_padding_becomes_one_number_for_each_side() -> None:
    layer = fl.ReflectionPad2d(2)
    assert layer.padding == (2, 2, 2, 2)
    assert str(layer) == "ReflectionPad2d(padding=(2, 2, 2, 2))"
    assert isinstance(layer, nn.ReflectionPad2d)
    assert not isinstance(layer, fl.WeightedModule)
