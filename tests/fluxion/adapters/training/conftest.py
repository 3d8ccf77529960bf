"""A small tree with layers of both kinds, and what it was before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training import TrainableLoras

State = tuple[dict[str, Tensor], dict[str, int], dict[str, bool]]


class Encoder(fl.Chain):
    pass


class Head(fl.Chain):
    pass


@pytest.fixture
def model() -> fl.Chain:
    """A tree of two blocks: a convolution, a norm and two linear layers, then two linear layers."""
    return fl.Chain(
        Encoder(
            fl.Conv2d(3, 8, kernel_size=3, stride=2, padding=1),
            fl.Flatten(start_dim=2),
            fl.Transpose(1, 2),
            fl.LayerNorm(8),
            fl.Linear(8, 12),
            fl.GeLU(),
            fl.Linear(12, 8, bias=False),
        ),
        Head(fl.Linear(8, 6), fl.SiLU(), fl.Linear(6, 5)),
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 6, 6)


@pytest.fixture
def state_of() -> Callable[[fl.Chain], State]:
    """Give the weights of a tree, its modules, and what is trained."""

    def get(chain: fl.Chain) -> State:
        weights = {key: value.clone() for key, value in chain.state_dict().items()}
        modules = {key: id(module) for key, module in chain.named_modules()}
        return weights, modules, {key: parameter.requires_grad for key, parameter in chain.named_parameters()}

    return get


@pytest.fixture
def assert_same(state_of: Callable[[fl.Chain], State]) -> Callable[[State, fl.Chain], None]:
    def check(before: State, chain: fl.Chain) -> None:
        weights, modules, flags = state_of(chain)
        assert (modules, flags, list(weights)) == (before[1], before[2], list(before[0]))
        assert all(torch.equal(weights[key], value) for key, value in before[0].items())

    return check


@pytest.fixture
def randomize() -> Callable[[TrainableLoras], None]:
    """Give updates weights as after some training: neither matrix is zero."""

    def draw(loras: TrainableLoras) -> None:
        with torch.no_grad():
            for parameter in loras.parameters():
                parameter.add_(torch.randn(parameter.shape) / 10)

    return draw
