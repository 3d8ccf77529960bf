"""The encoding of a number from a range, and its use to shift the channels of a convolution."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Adapter
from refiners.foundationals.latent_diffusion.range_adapter import (
    RangeAdapter2d,
    RangeEncoder,
    compute_sinusoidal_embedding,
)


class IdentityAdapter(fl.Chain, Adapter[fl.Linear]):
    def __init__(self, target: fl.Linear) -> None:
        with self.setup_adapter(target):
            super().__init__(target)


class Block(fl.Chain):
    def __init__(self) -> None:
        super().__init__(fl.Conv2d(2, 3, kernel_size=3, padding=1))

    def init_context(self) -> dict[str, dict[str, Tensor | None]]:
        return {"range_adapter": {"one": None, "two": None}}


def test_the_embedding_is_cosines_then_sines() -> None:
    embedding = compute_sinusoidal_embedding(torch.tensor([[3]]), embedding_dim=4)
    angles = [3.0, 3.0 / 100]
    expected = [math.cos(angles[0]), math.cos(angles[1]), math.sin(angles[0]), math.sin(angles[1])]
    assert embedding.dtype == torch.float32
    assert_close(embedding, torch.tensor([[expected]]))
    far = compute_sinusoidal_embedding(torch.tensor([[1000]]), embedding_dim=4)
    assert_close(far[0, 0, 1].item(), math.cos(10.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape,expected", [((5, 1), (5, 1, 8)), ((5,), (5, 8)), ((2, 6, 1), (2, 1, 6, 8)), ((0, 1), (0, 1, 8))]
)
def test_the_shape_of_the_embedding(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert compute_sinusoidal_embedding(torch.zeros(shape), embedding_dim=8).shape == expected
    assert compute_sinusoidal_embedding(torch.zeros(1, 1), embedding_dim=2).tolist() == [[[1, 0]]]


@pytest.mark.parametrize("embedding_dim", [3, 0, -2])
def test_the_embedding_dimension_is_even_and_positive(embedding_dim: int) -> None:
    with pytest.raises(ValueError, match=f"embedding_dim must be even and positive, got {embedding_dim}"):
        compute_sinusoidal_embedding(torch.zeros(1, 1), embedding_dim=embedding_dim)


def test_the_encoder_is_a_perceptron_on_the_embedding() -> None:
    encoder = RangeEncoder(8, 16)
    assert list(encoder._modules) == ["Lambda", "Converter", "Linear_1", "SiLU", "Linear_2"]
    x = torch.tensor([[7], [501]])
    first, second = encoder.layer("Linear_1", fl.Linear), encoder.layer("Linear_2", fl.Linear)
    expected = second(torch.nn.functional.silu(first(compute_sinusoidal_embedding(x, embedding_dim=8))))
    assert torch.equal(encoder(x), expected)
    assert encoder(x).shape == (2, 1, 16)


def test_the_encoder_prints_its_dimensions_and_its_embedding() -> None:
    lines = repr(RangeEncoder(8, 16)).splitlines()
    assert lines[0] == "(CHAIN) RangeEncoder(sinusoidal_embedding_dim=8, embedding_dim=16)"
    annotations = "x: jaxtyping.Int[Tensor, '*batch 1']) -> jaxtyping.Float[Tensor, '*batch 1 embedding_dim']"
    assert lines[2] == "    ├── Converter(set_device=False)"
    assert lines[1] == f"    ├── Lambda(compute_sinusoidal_embedding({annotations})"


def test_the_encoder_keeps_its_dtype_when_its_first_linear_is_adapted() -> None:
    encoder = RangeEncoder(8, 16, dtype=torch.float64)
    adapter = IdentityAdapter(encoder.layer("Linear_1", fl.Linear)).inject(encoder)
    assert adapter.parent is encoder
    assert encoder(torch.tensor([[7]])).dtype == torch.float64


def test_the_adapter_adds_a_projection_per_channel() -> None:
    block = Block()
    conv = block.layer("Conv2d", fl.Conv2d)
    adapter = RangeAdapter2d(conv, channels=3, embedding_dim=4, context_key="one").inject(block)
    x, encoding = torch.randn(1, 2, 5, 6), torch.randn(1, 1, 4)
    block.set_context("range_adapter", {"one": encoding})
    linear = adapter.layer(("Chain", "Linear"), fl.Linear)
    shift = linear(torch.nn.functional.silu(encoding)).reshape(1, 3, 1, 1)
    assert_close(block(x), conv(x) + shift)


def test_the_structure_of_the_adapter() -> None:
    block = Block()
    conv = block.layer("Conv2d", fl.Conv2d)
    adapter = RangeAdapter2d(conv, channels=3, embedding_dim=4, context_key="one").inject(block)
    assert adapter.target is conv
    assert list(block._modules) == ["RangeAdapter2d"]
    assert list(adapter._modules) == ["Conv2d", "Chain"]
    assert list(adapter.layer("Chain", fl.Chain)._modules) == ["UseContext", "SiLU", "Linear", "Reshape"]
    assert str(adapter) == "RangeAdapter2d(channels=3, embedding_dim=4)"
    adapter.eject()
    assert list(block) == [conv]


def test_the_context_key_can_be_changed() -> None:
    block = Block()
    adapter = RangeAdapter2d(block.layer("Conv2d", fl.Conv2d), 3, 4, context_key="one").inject(block)
    assert adapter.context_key == "one"
    x, one, two = torch.randn(1, 2, 5, 6), torch.randn(1, 1, 4), torch.randn(1, 1, 4)
    block.set_context("range_adapter", {"one": one, "two": two})
    with_one = block(x)
    adapter.context_key = "two"
    assert adapter.context_key == adapter.layer(("Chain", "UseContext"), fl.UseContext).key == "two"
    block.set_context("range_adapter", {"one": one, "two": two})
    assert not torch.equal(block(x), with_one)


def test_device_and_dtype_reach_the_weights() -> None:
    conv = fl.Conv2d(2, 3, kernel_size=1, device="meta", dtype=torch.float64)
    adapter = RangeAdapter2d(conv, 3, 4, context_key="one", device="meta", dtype=torch.float64)
    encoder = RangeEncoder(8, 16, device="meta", dtype=torch.float64)
    for parameter in (*adapter.parameters(), *encoder.parameters()):
        assert parameter.is_meta and parameter.dtype == torch.float64
