"""Residual blocks give the sum of their chain and their shortcut, whoever adds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora import Conv2dLora, LoraAdapter
from refiners.foundationals.latent_diffusion.auto_encoder import Resnet
from refiners.foundationals.latent_diffusion.range_adapter import RangeAdapter2d
from refiners.foundationals.latent_diffusion.residual_sum import ResidualSum
from refiners.foundationals.latent_diffusion.unet import ResidualBlock

Call = Callable[..., Tensor]


@pytest.fixture(params=[ResidualBlock, Resnet])
def block(request: pytest.FixtureRequest) -> ResidualSum:
    return request.param(8, 12, num_groups=4, dtype=torch.float64)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 5, 6, dtype=torch.float64)


@pytest.fixture
def additions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What convolutions add themselves."""
    found: list[str] = []
    convolve: Call = fl.Conv2d.convolve

    def note(self: fl.Conv2d, x: Tensor, **others: Any) -> Tensor:
        found.extend(others)
        return convolve(self, x, **others)

    monkeypatch.setattr(fl.Conv2d, "convolve", note)
    return found


def sum_of(block: fl.Chain, x: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*(child(x) for child in block))).sum(0)


def body_of(block: fl.Chain) -> fl.Chain:
    return block.layer("Chain", fl.Chain)


def test_the_last_convolution_adds_the_shortcut(block: ResidualSum, x: Tensor, additions: list[str]) -> None:
    result = block(x)
    assert additions == ["residual"]
    torch.testing.assert_close(result, sum_of(block, x))


@pytest.mark.parametrize("kind", [ResidualBlock, Resnet])
def test_the_input_is_the_shortcut(kind: type[ResidualSum], x: Tensor, additions: list[str]) -> None:
    block = kind(8, 8, num_groups=4, dtype=torch.float64)
    before, result = x.clone(), block(x)
    assert additions == ["residual"] and torch.equal(x, before)
    torch.testing.assert_close(result, sum_of(block, x))


def test_gradients_are_those_of_the_sum(block: ResidualSum, x: Tensor) -> None:
    tensors = [x.requires_grad_(), *block.parameters()]
    expected = torch.autograd.grad(sum_of(block, x).square().sum(), tensors)
    torch.testing.assert_close(torch.autograd.grad(block(x).square().sum(), tensors), expected)


def attach(block: ResidualSum) -> None:
    layer = body_of(block)[-1]
    assert isinstance(layer, fl.Conv2d)
    lora = Conv2dLora("style", 12, 12, rank=2, kernel_size=(3, 1), padding=(1, 0), dtype=torch.float64)
    torch.nn.init.normal_(lora.up.weight)
    LoraAdapter(layer, lora).inject(body_of(block))


EDITS: dict[str, Callable[[ResidualSum], Any]] = {
    "an update": attach,
    "a layer at the end": lambda block: body_of(block).append(fl.Multiply(scale=2.0)),
    "another shortcut": lambda block: block.replace(
        block.layer("Conv2d", fl.Conv2d), fl.Chain(fl.Conv2d(8, 12, 1, dtype=torch.float64))
    ),
    "a hook of the chain": lambda block: body_of(block).register_forward_hook(lambda *_: None),
    "a hook of the convolution": lambda block: body_of(block)[-1].register_forward_hook(lambda *_: None),
    "a sum that is broadcast": lambda block: block.replace(
        block.layer("Conv2d", fl.Conv2d), fl.Conv2d(8, 1, 1, dtype=torch.float64)
    ),
    "another size": lambda block: body_of(block).replace(
        body_of(block)[-1], fl.Conv2d(12, 12, (5, 6), dtype=torch.float64)
    ),
    "a third child": lambda block: block.append(fl.Lambda(lambda x: x[:, :1])),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=list(EDITS))
def test_an_edited_block_is_summed(
    block: ResidualSum, x: Tensor, additions: list[str], edit: Callable[[ResidualSum], Any]
) -> None:
    edit(block)
    torch.testing.assert_close(block(x), sum_of(block, x))
    assert additions == []


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("kind", [ResidualBlock, Resnet])
def test_autocast_gives_what_it_gives_to_the_layers(kind: type[ResidualSum], x: Tensor, channels: int) -> None:
    block = kind(8, channels, num_groups=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, expected = block(x.float()), sum_of(block, x.float())
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


def test_a_sum_of_two_dtypes_under_autocast(x: Tensor) -> None:
    block = ResidualSum(fl.Chain(fl.Conv2d(8, 8, 3, padding=1)), fl.Identity())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(x.float()).dtype == sum_of(block, x.float()).dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 2])
def test_a_convolution_adds_the_embedding_of_the_time(x: Tensor, additions: list[str], batch: int) -> None:
    chain = fl.Chain(fl.Conv2d(8, 12, 3, padding=1, stride=2, dtype=torch.float64))
    chain.set_context("range_adapter", {"time": torch.randn(batch, 1, 6, dtype=torch.float64)})
    adapter = RangeAdapter2d(chain.layer(0, fl.Conv2d), 12, 6, "time", dtype=torch.float64).inject(chain)
    convolution, projection = adapter
    result = chain(x)
    assert additions == ["add"]
    torch.testing.assert_close(result, convolution(x) + projection())
    convolution.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(chain(x), result)
    assert additions == ["add"]


def test_embeddings_of_more_samples_than_images_are_added_after(x: Tensor, additions: list[str]) -> None:
    chain = fl.Chain(fl.Conv2d(8, 12, 3, dtype=torch.float64))
    chain.set_context("range_adapter", {"time": torch.randn(3, 1, 6, dtype=torch.float64)})
    convolution, projection = RangeAdapter2d(chain.layer(0, fl.Conv2d), 12, 6, "time", dtype=torch.float64).inject(
        chain
    )
    torch.testing.assert_close(chain(x[:1]), convolution(x[:1]) + projection())
    assert additions == []
