"""Neighbours are computed at once where nobody can tell, and one after the other where somebody looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
from refiners.fluxion.layers.chain import ChainError

Make = Callable[[], fl.WeightedModule]
FIRST: dict[str, Make] = {
    "group norm": lambda: fl.GroupNorm(8, num_groups=4, eps=1e-3, dtype=torch.float64),
    "convolution": lambda: fl.Conv2d(8, 8, 3, padding=1, stride=2, dilation=2, groups=2, dtype=torch.float64),
    "without a bias": lambda: fl.Conv2d(8, 6, 1, use_bias=False, dtype=torch.float64),
}


@pytest.fixture(params=FIRST.values(), ids=list(FIRST))
def chain(request: pytest.FixtureRequest) -> fl.Chain:
    layer: fl.WeightedModule = request.param()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return fl.Chain(layer, fl.SiLU(), fl.Identity())


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 8, 9, 7, dtype=torch.float64)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[fl.SiLU]:
    """The activations that are called as layers."""
    found: list[fl.SiLU] = []
    forward = fl.SiLU.forward

    def note(self: fl.SiLU, x: Tensor) -> Tensor:
        found.append(self)
        return forward(self, x)

    monkeypatch.setattr(fl.SiLU, "forward", note)
    return found


def one_by_one(chain: fl.Chain, x: Any) -> Any:
    for layer in chain:
        x = layer(x)
    return x


def test_an_activation_is_computed_with_the_layer_before(chain: fl.Chain, x: Tensor, called: list[fl.SiLU]) -> None:
    result = chain(x)
    assert called == []
    torch.testing.assert_close(result, one_by_one(chain, x))
    assert len(called) == 1


def test_gradients_are_those_of_the_layers(chain: fl.Chain, x: Tensor) -> None:
    x.requires_grad_()
    tensors = [x, *chain.parameters()]
    expected = torch.autograd.grad(one_by_one(chain, x).square().sum(), tensors)
    torch.testing.assert_close(torch.autograd.grad(chain(x).square().sum(), tensors), expected)


LOOKS_ON: dict[str, Callable[[fl.Module], Any]] = {
    "a hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "a hook for gradients": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a function": lambda layer: setattr(layer, "forward", layer.forward),
}


@pytest.mark.parametrize("look_on", LOOKS_ON.values(), ids=list(LOOKS_ON))
@pytest.mark.parametrize("index", [0, 1])
def test_whoever_looks_on_sees_both(
    chain: fl.Chain, x: Tensor, called: list[fl.SiLU], index: int, look_on: Callable[[fl.Module], Any]
) -> None:
    expected = chain(x)
    look_on(chain[index])
    torch.testing.assert_close(chain(x), expected)
    assert len(called) == 1


def test_a_hook_for_all_modules_sees_both(chain: fl.Chain, x: Tensor) -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        chain(x)
    finally:
        handle.remove()
    assert seen == [*chain, chain]


def test_the_tree_decides(chain: fl.Chain, x: Tensor, called: list[fl.SiLU]) -> None:
    expected = chain(x)
    chain.insert(1, fl.Identity())
    torch.testing.assert_close(chain(x), expected)
    assert len(called) == 1
    chain.pop(1)
    assert torch.equal(chain(x), expected) and len(called) == 1
    activation = chain.pop(1)
    chain(x)
    assert len(called) == 1
    chain.append(activation)
    chain(x)
    assert called == [activation] * 2


def test_other_classes_are_called(x: Tensor, called: list[fl.SiLU]) -> None:
    class Norm(fl.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Activation(fl.SiLU):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    for norm, activation in ((Norm(8, 4), fl.SiLU()), (fl.GroupNorm(8, 4), Activation())):
        chain = fl.Chain(norm, activation).to(torch.float64)
        assert torch.equal(chain(x), one_by_one(chain, x))
    assert len(called) == 4


@pytest.mark.parametrize("change", ["padding", "mode", "method"])
def test_other_convolutions_are_called(x: Tensor, called: list[fl.SiLU], change: str) -> None:
    options: dict[str, Any] = {"padding": {"padding": "same"}, "mode": {"padding": 1, "padding_mode": "circular"}}
    layer = fl.Conv2d(8, 8, 3, dtype=torch.float64, **options.get(change, {}))
    if change == "method":
        layer._conv_forward = lambda input, weight, bias: nn.functional.conv2d(input, 2 * weight, bias)
    chain = fl.Chain(layer, fl.SiLU())
    torch.testing.assert_close(chain(x), one_by_one(chain, x))
    assert len(called) == 2


def test_one_activation_at_several_places(x: Tensor, called: list[fl.SiLU]) -> None:
    activation = fl.SiLU()
    norms = [fl.GroupNorm(8, 4, dtype=torch.float64) for _ in range(2)]
    chain = fl.Chain(norms[0], activation, activation, norms[1], activation)
    result = chain(x)
    assert len(called) == 1
    torch.testing.assert_close(result, one_by_one(chain, x))


def test_an_error_names_the_layer(chain: fl.Chain) -> None:
    with pytest.raises(ChainError) as failure:
        chain(torch.zeros(1, 5, 4, 4, dtype=torch.float64))
    marked = next(line for line in str(failure.value).splitlines() if ">>>" in line)
    assert type(chain[0]).__name__ in marked


def test_it_is_one_graph(chain: fl.Chain, x: Tensor, called: list[fl.SiLU]) -> None:
    torch._dynamo.reset()
    expected = chain(x)
    compiled = torch.compile(chain, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    chain.insert(1, fl.Identity())
    torch.testing.assert_close(compiled(x), expected)
