"""Pixels become channels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_pixel_unshuffle_moves_each_square_into_channels(in_one_graph: Compiled) -> None:
    x = torch.randn(2, 3, 4, 6)
    # [batch, channels, height, dy, width, dx] -> [batch, channels, dy, dx, height, width]
    expected = x.reshape(2, 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    layer = fl.PixelUnshuffle(2)
    assert torch.equal(layer(x), expected)
    assert torch.equal(in_one_graph(layer, x), expected)


def test_pixel_unshuffle_shows_its_factor() -> None:
    layer = fl.PixelUnshuffle(2)
    assert str(layer) == "PixelUnshuffle(downscale_factor=2)"
    assert isinstance(layer, nn.PixelUnshuffle)
    assert not isinstance(layer, fl.WeightedModule)
