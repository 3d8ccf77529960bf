"""The blocks of U-Nets, and the residuals that pass from one to another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, silu
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.unet import (
    ResidualAccumulator,
    ResidualBlock,
    ResidualConcatenator,
    adapt_residual_blocks,
)


class Root(fl.Chain):
    def init_context(self) -> dict[str, dict[str, Any]]:
        return {"unet": {"residuals": [0.0, 0.0, 0.0]}}


def test_a_residual_block_is_two_convolutions_and_a_shortcut(randomize: Callable[..., None]) -> None:
    for out_channels, shortcut in ((8, "Identity"), (12, "Conv2d")):
        block = ResidualBlock(8, out_channels, num_groups=4, eps=0.5)
        randomize(block)
        assert list(block._modules) == ["Chain", shortcut]
        w = block.state_dict()
        x = torch.randn(2, 8, 5, 6)
        h = silu(group_norm(x, 4, w["Chain.GroupNorm_1.weight"], w["Chain.GroupNorm_1.bias"], eps=0.5))
        h = conv2d(h, w["Chain.Conv2d_1.weight"], w["Chain.Conv2d_1.bias"], padding=1)
        h = silu(group_norm(h, 4, w["Chain.GroupNorm_2.weight"], w["Chain.GroupNorm_2.bias"], eps=0.5))
        h = conv2d(h, w["Chain.Conv2d_2.weight"], w["Chain.Conv2d_2.bias"], padding=1)
        through = x if shortcut == "Identity" else conv2d(x, w["Conv2d.weight"], w["Conv2d.bias"])
        assert_close(block(x), h + through)


def test_the_defaults_of_a_residual_block() -> None:
    block = ResidualBlock(32, 64)
    assert (block.in_channels, block.out_channels, block.num_groups, block.eps) == (32, 64, 32, 1e-5)
    assert {norm.eps for norm in block.layers(fl.GroupNorm)} == {1e-5}


@pytest.mark.parametrize(("channels", "name"), [((20, 32), "in_channels"), ((32, 20), "out_channels")])
def test_channels_that_groups_do_not_divide_are_named(channels: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and divisible by num_groups 32, got 20"):
        ResidualBlock(*channels)


def test_the_accumulator_adds_to_what_is_there() -> None:
    accumulator = ResidualAccumulator(1)
    root = Root(accumulator, fl.UseContext("unet", "residuals"))
    x = torch.randn(1, 2)
    assert root(x)[1] is not x and torch.equal(root(x)[1], x)
    root.set_context("unet", {"residuals": [0.0, 10.0, 0.0]})  # as an adapter does
    residuals = root(x)
    assert torch.equal(residuals[1], x + 10)
    assert (residuals[0], residuals[2]) == (0.0, 0.0)
    assert list(accumulator._modules) == ["Residual", "SetContext"]


def test_the_accumulator_passes_its_input_on() -> None:
    x = torch.randn(1, 2)
    assert Root(ResidualAccumulator(0))(x)[0] is x


def test_the_concatenator_appends_the_channels_of_the_residual() -> None:
    x, residual = torch.randn(1, 2, 3, 3), torch.randn(1, 4, 3, 3)
    root = Root(ResidualConcatenator(-2))
    root.set_context("unet", {"residuals": [0.0, residual, 0.0]})
    assert torch.equal(root(x), torch.cat([x, residual], dim=1))


def test_indices_can_be_changed() -> None:
    accumulator, concatenator = ResidualAccumulator(0), ResidualConcatenator(-1)
    accumulator.n, concatenator.n = 2, -1
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Root(accumulator, concatenator)(x), torch.cat([x, x], dim=1))


def test_copies_of_blocks_refer_to_themselves() -> None:
    chain = Root(ResidualAccumulator(0), ResidualConcatenator(-1))
    copy = chain.structural_copy()
    chain.layer("ResidualAccumulator", ResidualAccumulator).n = 1
    x = torch.randn(1, 2, 3, 3)
    copy.layer("ResidualConcatenator", ResidualConcatenator).n = 0
    assert torch.equal(copy(x), torch.cat([x, x], dim=1))


def test_the_first_convolution_of_each_residual_block_is_adapted() -> None:
    chain = fl.Chain(ResidualBlock(4, 8, num_groups=4), fl.Chain(ResidualBlock(8, 8, num_groups=4)))
    adapt_residual_blocks(chain, embedding_dim=6, context_key="key")
    assert len(list(chain.layers(RangeAdapter2d))) == 2
    for block in chain.layers(ResidualBlock):
        assert list(block.layer("Chain", fl.Chain)._modules)[2] == "RangeAdapter2d"
    adapter = chain.ensure_find(RangeAdapter2d)
    assert (adapter.channels, adapter.embedding_dim, adapter.context_key) == (8, 6, "key")
    x, embedding = torch.randn(1, 4, 5, 5), torch.randn(1, 6)
    chain.set_context("range_adapter", {"key": embedding})
    outputs: list[Tensor] = [chain(x)]
    chain.set_context("range_adapter", {"key": 2 * embedding})
    outputs.append(chain(x))
    assert not torch.allclose(*outputs)
