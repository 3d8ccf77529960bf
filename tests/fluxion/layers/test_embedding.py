"""Embeddings: torch's numbers and random stream, our text."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_embedding_looks_rows_up(in_one_graph: Compiled) -> None:
    layer = fl.Embedding(5, 3, dtype=torch.float64)
    indices = torch.tensor([[0, 4, 4], [2, 1, 0]])
    assert torch.equal(layer(indices), layer.weight[indices])
    assert torch.equal(in_one_graph(layer, indices), layer.weight[indices])
    assert layer(indices[:, :0]).shape == (2, 0, 3)


def test_embedding_draws_what_torch_draws() -> None:
    torch.manual_seed(2)
    expected = nn.Embedding(5, 3)
    torch.manual_seed(2)
    assert torch.equal(fl.Embedding(5, 3).weight, expected.weight)


def test_embedding_is_of_both_families() -> None:
    layer = fl.Embedding(5, 3, "meta", torch.float16)
    assert isinstance(layer, nn.Embedding)
    assert isinstance(layer, fl.WeightedModule)
    assert str(layer) == "Embedding(num_embeddings=5, embedding_dim=3, device=meta, dtype=float16)"
    assert list(layer.state_dict()) == ["weight"]
