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


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """One that there are kernels for, and one that torch computes."""
    return request.param


@pytest.fixture(params=[ResidualBlock, Resnet])
def block(request: pytest.FixtureRequest, dtype: torch.dtype) -> ResidualSum:
    return request.param(8, 12, num_groups=4, dtype=dtype)


@pytest.fixture
def x(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 8, 5, 6, dtype=dtype)


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
def test_the_input_is_the_shortcut(
    kind: type[ResidualSum], x: Tensor, dtype: torch.dtype, additions: list[str]
) -> None:
    block = kind(8, 8, num_groups=4, dtype=dtype)
    before, result = x.clone(), block(x)
    assert additions == ["residual"] and torch.equal(x, before)
    torch.testing.assert_close(result, sum_of(block, x))


def test_gradients_are_those_of_the_sum(block: ResidualSum, x: Tensor) -> None:
    tensors = [x.requires_grad_(), *block.parameters()]
    expected = torch.autograd.grad(sum_of(block, x).square().sum(), tensors)
    found = torch.autograd.grad(block(x).square().sum(), tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def attach(block: ResidualSum) -> None:
    layer = body_of(block)[-1]
    assert isinstance(layer, fl.Conv2d)
    lora = Conv2dLora("style", 12, 12, rank=2, kernel_size=(3, 1), padding=(1, 0), dtype=layer.dtype)
    torch.nn.init.normal_(lora.up.weight)
    LoraAdapter(layer, lora).inject(body_of(block))


def replace_shortcut(block: ResidualSum, shortcut: fl.Module) -> None:
    block.replace(block.layer("Conv2d", fl.Conv2d), shortcut.to(dtype=block.dtype))


EDITS: dict[str, Callable[[ResidualSum], Any]] = {
    "an update": attach,
    "a layer at the end": lambda block: body_of(block).append(fl.Multiply(scale=2.0)),
    "no layer at the end": lambda block: body_of(block).append(fl.Identity()),
    "an early end": lambda block: body_of(block).insert(5, fl.Return()),
    "another shortcut": lambda block: replace_shortcut(block, fl.Chain(fl.Conv2d(8, 12, 1))),
    "a sum for a shortcut": lambda block: replace_shortcut(block, fl.Sum(fl.Conv2d(8, 12, 1), fl.Conv2d(8, 12, 1))),
    "a hook of the chain": lambda block: body_of(block).register_forward_hook(lambda *_: None),
    "a hook of the convolution": lambda block: body_of(block)[-1].register_forward_hook(lambda *_: None),
    "a hook of the shortcut": lambda block: block.layer("Conv2d", fl.Conv2d).register_forward_hook(lambda *_: None),
    "a hook that comes later": lambda block: body_of(block)[0].register_forward_hook(
        lambda *_: setattr(body_of(block)[-1], "forward", lambda x: 0 * x)
    ),
    "a sum that is broadcast": lambda block: replace_shortcut(block, fl.Conv2d(8, 1, 1)),
    "another size": lambda block: body_of(block).replace(
        body_of(block)[-1], fl.Conv2d(12, 12, (5, 6), dtype=block.dtype)
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


@pytest.mark.parametrize("kind", [ResidualBlock, Resnet])
def test_children_are_called_in_their_order(kind: type[ResidualSum], x: Tensor, dtype: torch.dtype) -> None:
    block = kind(8, 12, num_groups=4, dtype=dtype)
    body_of(block).insert(0, fl.Lambda(lambda x: x.mul_(2)))
    torch.testing.assert_close(block(x.clone()), sum_of(block, x.clone()))


def test_a_convolution_of_any_step_adds(x: Tensor, dtype: torch.dtype, additions: list[str]) -> None:
    options: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 2), "dtype": dtype}
    block = ResidualSum(fl.Chain(fl.Conv2d(8, 12, 3, **options)), fl.Conv2d(8, 12, 3, **options))
    torch.testing.assert_close(block(x), sum_of(block, x))
    assert additions == ["residual"]


def test_images_without_a_batch(x: Tensor, dtype: torch.dtype) -> None:
    block = ResidualSum(fl.Chain(fl.Conv2d(8, 8, 3, padding=1, dtype=dtype)), fl.Identity())
    torch.testing.assert_close(block(x[0]), sum_of(block, x[0]))


def test_an_empty_chain_is_a_neighbour_too(x: Tensor, dtype: torch.dtype, additions: list[str]) -> None:
    block = ResidualSum(fl.Chain(fl.Conv2d(8, 8, 3, padding=1, dtype=dtype), fl.Chain()), fl.Identity())
    assert block(x) is x and additions == []


def test_an_empty_chain_adds_nothing(x: Tensor) -> None:
    with pytest.raises(TypeError):
        ResidualSum(fl.Identity(), fl.Chain())(x)


@pytest.mark.parametrize("channels", [8, 12])
@pytest.mark.parametrize("kind", [ResidualBlock, Resnet])
def test_autocast_gives_what_it_gives_to_the_layers(kind: type[ResidualSum], x: Tensor, channels: int) -> None:
    block = kind(8, channels, num_groups=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, expected = block(x.float()), sum_of(block, x.float())
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)


def test_a_sum_of_two_dtypes(x: Tensor) -> None:
    options: dict[str, Any] = {"padding": 1, "dtype": torch.float32}
    chain = fl.Chain(fl.Lambda(lambda x: x.float()), fl.Conv2d(8, 8, 3, **options))
    block = ResidualSum(chain, fl.Identity())
    assert block(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block = ResidualSum(fl.Chain(fl.Conv2d(8, 8, 3, **options)), fl.Identity())
        assert block(x.float()).dtype == sum_of(block, x.float()).dtype == torch.float32


def adapted(dtype: torch.dtype, *shape: int) -> tuple[fl.Chain, fl.Module, fl.Module]:
    """Give a chain of a convolution with an embedding, and both parts."""
    chain = fl.Chain(fl.Conv2d(8, 12, 3, padding=1, stride=2, dtype=dtype))
    chain.set_context("range_adapter", {"time": torch.randn(*shape, dtype=dtype)})
    adapter = RangeAdapter2d(chain.layer(0, fl.Conv2d), 12, 6, "time", dtype=dtype).inject(chain)
    return chain, adapter[0], adapter[1]


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 1, 6), (1, 6), (2, 6)], ids=str)
def test_a_convolution_adds_the_embedding_of_the_time(
    x: Tensor, dtype: torch.dtype, additions: list[str], shape: tuple[int, ...]
) -> None:
    chain, convolution, projection = adapted(dtype, *shape)
    result = chain(x)
    assert additions == ["add"]
    torch.testing.assert_close(result, convolution(x) + projection())
    convolution.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(chain(x), result)
    assert additions == ["add"]


def test_embeddings_of_more_samples_than_images_are_added_after(
    x: Tensor, dtype: torch.dtype, additions: list[str]
) -> None:
    chain, convolution, projection = adapted(dtype, 3, 1, 6)
    torch.testing.assert_close(chain(x[:1]), convolution(x[:1]) + projection())
    assert additions == []


@pytest.mark.parametrize("shape", [(1, 2, 6), (2, 2, 6), (6,)], ids=str)
def test_embeddings_of_other_shapes_are_refused(x: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    chain, _, _ = adapted(dtype, *shape)
    with pytest.raises(RuntimeError, match="shape"):
        chain(x)


def test_what_is_done_to_the_embedding_is_done(x: Tensor, dtype: torch.dtype, additions: list[str]) -> None:
    chain, convolution, projection = adapted(dtype, 2, 1, 6)
    assert isinstance(projection, fl.Chain)
    projection[-1].register_forward_hook(lambda _, __, result: 2 * result)
    torch.testing.assert_close(chain(x), convolution(x) + projection())
    projection.pop()
    projection.append(fl.Reshape(12, 1, 1))
    projection.append(fl.Multiply(scale=3.0))
    torch.testing.assert_close(chain(x), convolution(x) + projection())
    assert additions == ["add"]


def test_images_without_a_batch_have_embeddings(dtype: torch.dtype) -> None:
    chain, convolution, projection = adapted(dtype, 1, 1, 6)
    image = torch.randn(8, 5, 6, dtype=dtype)
    torch.testing.assert_close(chain(image), convolution(image) + projection())


def test_embeddings_of_columns_are_added_after(dtype: torch.dtype) -> None:
    chain, convolution, projection = adapted(dtype, 2, 1, 6)
    assert isinstance(projection, fl.Chain)
    projection.pop()
    projection.append(fl.Reshape(1, 1, 12))
    images = torch.randn(2, 8, 5, 24, dtype=dtype)
    torch.testing.assert_close(chain(images), convolution(images) + projection())


def test_it_is_one_graph(block: ResidualSum, x: Tensor, additions: list[str]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    compiled(x)  # and nothing else before the change, which a call of the block itself would tell
    last = body_of(block)[-1]
    before = last.forward
    last.forward = lambda x: 2 * before(x)
    torch.testing.assert_close(compiled(x), sum_of(block, x))
    assert additions == []


def test_initial_weights_are_drawn_in_the_order_of_the_children() -> None:
    torch.manual_seed(0)
    block = Resnet(8, 12, num_groups=4)
    torch.manual_seed(0)
    assert torch.equal(block.layer("Conv2d", fl.Conv2d).weight, fl.Conv2d(8, 12, 1).weight)
