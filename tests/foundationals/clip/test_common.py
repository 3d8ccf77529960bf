"""The layers that both encoders are made of."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl
from refiners.foundationals.clip.common import FeedForward, PositionalEncoder


def test_positions_are_looked_up_by_number() -> None:
    encoder = PositionalEncoder(7, 4)
    weight = encoder.layer("Embedding", fl.Embedding).weight
    assert list(encoder.state_dict()) == ["Embedding.weight"] and weight.shape == (7, 4)
    for shape in [(2, 7), (1, 3, 5), (4, 1), (0, 2)]:
        y = encoder(torch.randn(shape))
        assert y.shape == (1, shape[1], 4) and torch.equal(y[0], weight[: shape[1]])


def test_position_ids() -> None:
    encoder = PositionalEncoder(5, 4)
    assert encoder.position_ids.tolist() == [[0, 1, 2, 3, 4]] and encoder.position_ids.dtype == torch.int64
    assert encoder.get_position_ids(torch.zeros(2, 3)).tolist() == [[0, 1, 2]]
    assert PositionalEncoder(5, 4, device="meta").position_ids.device.type == "meta"


def test_too_long_a_sequence_is_named() -> None:
    with pytest.raises(ValueError, match=r"x must be at most 5 long, got shape \(2, 6\)"):
        PositionalEncoder(5, 4).get_position_ids(torch.zeros(2, 6))


def test_a_structural_copy_looks_at_its_own_weights() -> None:
    encoder = PositionalEncoder(5, 4)
    clone = encoder.structural_copy()
    clone.pop()
    clone.append(fl.Embedding(5, 4, device="meta"))
    assert clone(torch.zeros(1, 3)).device.type == "meta"
    assert encoder(torch.zeros(1, 3)).device.type == "cpu"


def test_feed_forward_is_two_linear_layers_around_a_gelu() -> None:
    block = FeedForward(4, 9)
    assert list(block._modules) == ["Linear_1", "GeLU", "Linear_2"]
    w1, b1, w2, b2 = (tensor.double() for tensor in block.state_dict().values())
    x = torch.randn(2, 3, 4)

    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    assert_close(block(x), (gelu(x.double() @ w1.T + b1) @ w2.T + b2).float())


def test_device_and_dtype_reach_the_weights() -> None:
    for module in (PositionalEncoder(3, 4, "meta", torch.float64), FeedForward(4, 8, "meta", torch.float64)):
        assert all(weight.is_meta and weight.dtype == torch.float64 for weight in module.parameters())
