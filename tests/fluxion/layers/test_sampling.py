"""Changes of resolution, alone and paired through the context."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


class Pyramid(fl.Chain):
    """Layers around which the list of shapes is declared."""

    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"sampling": {"shapes": []}}


def convolved(layer: fl.Chain, x: Tensor, **arguments: Any) -> Tensor:
    conv = layer.ensure_find(fl.Conv2d)
    return F.conv2d(x, conv.weight, conv.bias, **arguments)


@pytest.mark.parametrize(
    ("mode", "antialias"), [("nearest", False), ("bilinear", False), ("bilinear", True), ("bicubic", True)]
)
def test_interpolate_is_torchs(mode: str, antialias: bool, in_one_graph: Compiled) -> None:
    x = torch.rand(1, 2, 8, 9)
    expected = F.interpolate(x, size=(4, 5), mode=mode, antialias=antialias)
    assert torch.equal(fl.Interpolate(mode, antialias)(x, Size([4, 5])), expected)
    assert torch.equal(in_one_graph(fl.Interpolate(mode, antialias), x, Size([4, 5])), expected)


def test_interpolate_repeats_pixels_by_default() -> None:
    assert torch.equal(
        fl.Interpolate()(torch.tensor([[[[1.0, 2.0]]]]), Size([1, 4])), torch.tensor([[[[1.0, 1.0, 2.0, 2.0]]]])
    )
    assert (fl.Interpolate().mode, fl.Interpolate().antialias) == ("nearest", False)


def test_downsample_keeps_what_it_was_built_with() -> None:
    layer = fl.Downsample(4, 2, 1, True, "meta", torch.float16)
    names = ("channels", "in_channels", "out_channels", "scale_factor", "padding")
    assert [getattr(layer, name) for name in names] == [4, 4, 4, 2, 1]
    assert "register_shape" not in layer.__dict__
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float16)}
    assert list(layer.state_dict()) == ["Conv2d.weight", "Conv2d.bias"]


@pytest.mark.parametrize(
    ("padding", "register_shape", "keys"),
    [
        (0, True, ["SetContext", "Lambda", "Conv2d"]),
        (1, True, ["SetContext", "Conv2d"]),
        (0, False, ["Lambda", "Conv2d"]),
        (1, False, ["Conv2d"]),
    ],
)
def test_downsample_has_the_children_it_needs(padding: int, register_shape: bool, keys: list[str]) -> None:
    assert list(fl.Downsample(4, 2, padding=padding, register_shape=register_shape)._modules) == keys


def test_downsample_without_padding_adds_zeros_on_the_right_and_at_the_bottom(in_one_graph: Compiled) -> None:
    layer, x = fl.Downsample(2, 2, register_shape=False), torch.randn(1, 2, 6, 8)
    expected = convolved(layer, torch.cat([torch.cat([x, 0 * x[:, :, :1]], 2), torch.zeros(1, 2, 7, 1)], 3), stride=2)
    assert expected.shape == (1, 2, 3, 4)
    assert_close(layer(x), expected)
    assert_close(in_one_graph(layer, x), expected)


def test_downsample_with_padding_pads_all_sides() -> None:
    layer, x = fl.Downsample(2, 3, padding=1, register_shape=False), torch.randn(1, 2, 6, 9)
    assert_close(layer(x), convolved(layer, x, stride=3, padding=1))


def test_downsample_appends_the_shape_of_its_input() -> None:
    layer, shapes = fl.Downsample(2, 2), []
    layer.set_context("sampling", {"shapes": shapes})
    layer(torch.randn(1, 2, 6, 8))
    layer(torch.randn(1, 2, 4, 2))
    assert shapes == [Size([6, 8]), Size([4, 2])]
    layer.register_shape(shapes, torch.ones(1, 1, 3, 5))
    assert shapes[-1] == Size([3, 5])


@pytest.mark.parametrize("layer", [fl.Downsample(2, 2), fl.Upsample(2)], ids=str)
def test_without_the_context_they_fail(layer: fl.Chain) -> None:
    with pytest.raises(ChainError, match="Context sampling not found"):
        layer(torch.ones(1, 2, 4, 4))


def test_upsample_by_a_factor(in_one_graph: Compiled) -> None:
    layer, x = fl.Upsample(2, 3), torch.randn(1, 2, 4, 5)
    assert (layer.channels, layer.upsample_factor) == (2, 3)
    assert list(layer._modules) == ["Parallel", "Interpolate", "Conv2d"]
    assert list(layer.layer("Parallel", fl.Parallel)._modules) == ["Identity", "Lambda"]
    assert list(layer.state_dict()) == ["Conv2d.weight", "Conv2d.bias"]
    expected = convolved(layer, x.repeat_interleave(3, 2).repeat_interleave(3, 3), padding=1)
    assert_close(layer(x), expected)
    assert_close(in_one_graph(layer, x), expected)


def test_upsample_without_factor_takes_the_last_shape() -> None:
    layer, x = fl.Upsample(2, device="cpu", dtype=torch.float64), torch.randn(1, 2, 2, 2, dtype=torch.float64)
    assert list(layer.layer("Parallel", fl.Parallel)._modules) == ["Identity", "UseContext"]
    shapes = [Size([9, 9]), Size([3, 5])]
    layer.set_context("sampling", {"shapes": shapes})
    assert_close(layer(x), convolved(layer, F.interpolate(x, size=(3, 5)), padding=1))
    assert shapes == [Size([9, 9])]


def test_pairs_match_like_brackets(in_one_graph: Compiled) -> None:
    sizes: list[tuple[int, ...]] = []

    def note(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return x

    pyramid = Pyramid(fl.Downsample(2, 2), fl.Downsample(2, 2), fl.Upsample(2), fl.Lambda(note), fl.Upsample(2))
    x = torch.randn(1, 2, 13, 7)
    y = pyramid(x)
    assert sizes == [(6, 3)]
    assert y.shape == x.shape
    assert pyramid.use_context("sampling") == {"shapes": []}
    pyramid.pop(3)
    assert_close(in_one_graph(pyramid, x), y)


@pytest.mark.parametrize("layer", [fl.Downsample(2, 2), fl.Upsample(2), fl.Upsample(2, 2)], ids=str)
def test_they_can_be_pickled(layer: fl.Chain) -> None:
    copy, x = pickle.loads(pickle.dumps(layer)), torch.randn(1, 2, 4, 4)
    for module in (copy, layer):
        module.set_context("sampling", {"shapes": [Size([5, 6])]})
    assert torch.equal(copy(x), layer(x))
    assert copy.use_context("sampling") == layer.use_context("sampling")
