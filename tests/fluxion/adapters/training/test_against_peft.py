"""The same weights, inputs and masks give the outputs and gradients that PEFT gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training import add_trainable_loras

RANK = 4
LAYERS = ["linear", "convolution"]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"alpha": 7.0},
    {"alpha": 3.0, "rank_stabilized": True},
    {"alpha": 7.0, "dropout": 0.3},
]


def make_layer(kind: str, dtype: torch.dtype) -> Any:
    if kind == "linear":
        return nn.Linear(24, 20).to(dtype)
    return nn.Conv2d(6, 20, kernel_size=3, stride=2, padding=1).to(dtype)


def ours_of(layer: Any) -> fl.Chain:
    if isinstance(layer, nn.Linear):
        ours: Any = fl.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
    else:
        ours = fl.Conv2d(6, 20, kernel_size=3, stride=2, padding=1, dtype=layer.weight.dtype)
    ours.load_state_dict(layer.state_dict())
    return fl.Chain(ours)


class Pair:
    """A layer with an update of PEFT, and the same of ours."""

    def __init__(self, kind: str, dtype: torch.dtype, settings: dict[str, Any], initialise: Any = False) -> None:
        layer = make_layer(kind, dtype)
        alpha = settings.get("alpha", RANK)
        config = LoraConfig(
            r=RANK,
            lora_alpha=alpha,
            use_rslora=settings.get("rank_stabilized", False),
            lora_dropout=settings.get("dropout", 0.0),
            target_modules=["layer"],
            init_lora_weights=initialise,
        )
        self.chain = ours_of(layer)
        self.theirs: Any = get_peft_model(_Net(layer), config)
        self.ours = add_trainable_loras("style", self.chain, rank=RANK, **settings)
        found = {name: p for name, p in self.theirs.named_parameters() if p.requires_grad}
        assert [name.split(".")[-3] for name in found] == ["lora_A", "lora_B"]
        self.matrices = list(found.values())
        self.x = torch.randn((3, 7, 24) if kind == "linear" else (3, 6, 9, 8)).to(dtype)

    def copy_weights(self) -> None:
        with torch.no_grad():
            for mine, other in zip(self.ours.parameters(), self.matrices, strict=True):
                assert mine.dtype == other.dtype
                mine.copy_(other)

    def run(self, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
        """Give the output and the gradients of input and matrices, of ours and of theirs."""
        results: list[list[Tensor]] = []
        grad: Tensor | None = None
        for model, matrices in ((self.chain, self.ours.parameters()), (self.theirs, self.matrices)):
            torch.manual_seed(seed)
            x = self.x.clone().requires_grad_()
            y = model(x)
            grad = torch.randn(y.shape).to(y.dtype) if grad is None else grad
            results.append([y.detach(), *torch.autograd.grad(y, (x, *matrices), grad)])
        return results[0], results[1]


class _Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_in_float32(kind: str, settings: dict[str, Any]) -> None:
    pair = Pair(kind, torch.float32, settings)
    pair.copy_weights()
    ours, theirs = pair.run()
    assert all(error(mine, other) < 1e-6 for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_master_weights_beside_16_bits(kind: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    pair = Pair(kind, dtype, settings)
    assert {parameter.dtype for parameter in pair.matrices} == {torch.float32}
    pair.copy_weights()
    (y, grad_x, *grads), (their_y, their_grad_x, *their_grads) = pair.run()
    eps = torch.finfo(dtype).eps
    assert error(y, their_y) < eps and error(grad_x, their_grad_x) < eps
    assert all(error(mine, other) < 1e-6 for mine, other in zip(grads, their_grads, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast(kind: str, dtype: torch.dtype) -> None:
    pair = Pair(kind, dtype, {"alpha": 7.0})
    pair.copy_weights()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = pair.run()
    assert {grad.dtype for grad in ours[2:]} == {torch.float32}
    assert all(
        error(mine, other) < 2 * torch.finfo(torch.bfloat16).eps for mine, other in zip(ours, theirs, strict=True)
    )


def train(model: nn.Module, parameters: list[nn.Parameter], x: Tensor, goal: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - goal).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("alpha", [4.0, 3.0])
def test_pissa_is_trained_as_there(alpha: float) -> None:
    pair = Pair("linear", torch.float32, {"alpha": alpha, "initialisation": "pissa"}, "pissa")
    base = copy.deepcopy(pair.chain)
    goal = torch.randn(3, 7, 20)
    (down, up), (their_down, their_up) = pair.ours.parameters(), pair.matrices
    assert error(up @ down, their_up @ their_down) < 1e-5 and error(down @ down.T, their_down @ their_down.T) < 1e-5
    train(pair.chain, pair.ours.parameters(), pair.x, goal, 20)
    train(pair.theirs, pair.matrices, pair.x, goal, 20)
    ours, theirs = pair.chain(pair.x), pair.theirs(pair.x)
    assert error(ours, theirs) < 1e-5
    assert error(base(pair.x), theirs) > 0.05


def test_the_updates_learn_what_those_of_peft_learn() -> None:
    pair = Pair("linear", torch.float32, {"alpha": 7.0, "initialisation": "kaiming"}, True)
    pair.copy_weights()
    goal = torch.randn(3, 7, 20)
    before = pair.chain(pair.x).detach()
    train(pair.chain, pair.ours.parameters(), pair.x, goal, 20)
    train(pair.theirs, pair.matrices, pair.x, goal, 20)
    assert error(pair.chain(pair.x), pair.theirs(pair.x)) < 1e-6
    assert error(before, pair.theirs(pair.x)) > 0.01
