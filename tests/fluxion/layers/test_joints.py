"""Neighbours are computed at once where nobody can tell, and one after the other where somebody looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refiners.fluxion.layers as fl
import refiners.fluxion.layers.chain.chain as chain_module
from refiners.fluxion.layers.chain import ChainError
from refiners.fluxion.layers.chain.joints import join

Make = Callable[[torch.dtype], fl.WeightedModule]
FIRST: dict[str, Make] = {
    "group norm": lambda dtype: fl.GroupNorm(8, num_groups=4, eps=1e-3, dtype=dtype),
    "convolution": lambda dtype: fl.Conv2d(8, 8, 3, padding=1, stride=2, dilation=2, groups=2, dtype=dtype),
    "without a bias": lambda dtype: fl.Conv2d(8, 6, 1, use_bias=False, dtype=dtype),
    "3x3": lambda dtype: fl.Conv2d(8, 24, 3, padding=1, dtype=dtype),
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """One that there are kernels for, and one that torch computes."""
    return request.param


@pytest.fixture(params=FIRST.values(), ids=list(FIRST))
def chain(request: pytest.FixtureRequest, dtype: torch.dtype) -> fl.Chain:
    layer: fl.WeightedModule = request.param(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return fl.Chain(layer, fl.SiLU(), fl.Identity()).requires_grad_(False)


@pytest.fixture
def x(dtype: torch.dtype) -> Tensor:
    return torch.randn(2, 8, 9, 7, dtype=dtype)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the layers that were computed with the one before."""
    found: list[str] = []

    def note(layer: fl.Module, following: Any, x: Any) -> Tensor | None:
        result = join(layer, following, x)
        if result is not None:
            found.append(type(following).__name__)
        return result

    monkeypatch.setattr(chain_module, "join", note)
    return found


def one_by_one(chain: fl.Chain, x: Any) -> Any:
    for layer in chain:
        x = layer(x)
    return x


def test_an_activation_is_computed_with_the_layer_before(chain: fl.Chain, x: Tensor, joined: list[str]) -> None:
    result = chain(x)
    assert joined == ["SiLU"]
    torch.testing.assert_close(result, one_by_one(chain, x))


def test_gradients_are_those_of_the_layers(chain: fl.Chain, x: Tensor, joined: list[str]) -> None:
    tensors = [each.requires_grad_() for each in (x, *chain.parameters())]
    expected = torch.autograd.grad(one_by_one(chain, x).square().sum(), tensors)
    found = torch.autograd.grad(chain(x).square().sum(), tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert joined == (["SiLU"] if isinstance(chain[0], fl.GroupNorm) else [])  # a convolution would be computed twice


LOOKS_ON: dict[str, Callable[[fl.Module], Any]] = {
    "a hook": lambda layer: layer.register_forward_hook(lambda *_: None),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "a hook for gradients": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "a function": lambda layer: setattr(layer, "forward", layer.forward),
    "a compiler": lambda layer: layer.compile(backend="eager"),
}


@pytest.mark.parametrize("look_on", LOOKS_ON.values(), ids=list(LOOKS_ON))
@pytest.mark.parametrize("index", [0, 1])
def test_whoever_looks_on_sees_both(
    chain: fl.Chain, x: Tensor, joined: list[str], index: int, look_on: Callable[[fl.Module], Any]
) -> None:
    expected = chain(x)
    joined.clear()
    look_on(chain[index])
    torch.testing.assert_close(chain(x), expected)
    assert joined == []


def test_a_hook_for_all_modules_sees_both(chain: fl.Chain, x: Tensor) -> None:
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        chain(x)
    finally:
        handle.remove()
    assert seen == [*chain, chain]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(nn.Module, "__call__"), (fl.SiLU, "forward"), (nn.Conv2d, "forward"), (fl.Conv2d, "_conv_forward")],
)
def test_what_takes_the_place_of_a_method_is_called(
    x: Tensor, dtype: torch.dtype, joined: list[str], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    before, seen = getattr(owner, name), list[Any]()
    chain = fl.Chain(fl.Conv2d(8, 8, 1, dtype=dtype), fl.SiLU()).requires_grad_(False)

    def call(self: nn.Module, *args: Any) -> Any:
        seen.append(self)
        return before(self, *args)

    monkeypatch.setattr(owner, name, call)
    chain(x)
    assert joined == [] and seen


def test_the_tree_decides(chain: fl.Chain, x: Tensor, joined: list[str]) -> None:
    expected = chain(x)
    chain.insert(1, fl.Identity())
    torch.testing.assert_close(chain(x), expected)
    assert len(joined) == 1
    chain.pop(1)
    assert torch.equal(chain(x), expected) and len(joined) == 2
    activation = chain.pop(1)
    chain(x)
    chain.append(activation)
    chain(x)
    assert len(joined) == 2


def test_other_classes_are_called(x: Tensor, dtype: torch.dtype, joined: list[str]) -> None:
    class Norm(fl.GroupNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Activation(fl.SiLU):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    for norm, activation in ((Norm(8, 4), fl.SiLU()), (fl.GroupNorm(8, 4), Activation())):
        chain = fl.Chain(norm, activation).to(dtype)
        assert torch.equal(chain(x), one_by_one(chain, x))
    assert joined == []


@pytest.mark.parametrize("change", ["padding", "mode", "method"])
def test_other_convolutions_are_called(x: Tensor, dtype: torch.dtype, joined: list[str], change: str) -> None:
    options: dict[str, Any] = {"padding": {"padding": "same"}, "mode": {"padding": 1, "padding_mode": "circular"}}
    layer = fl.Conv2d(8, 8, 3, dtype=dtype, **options.get(change, {})).requires_grad_(False)
    if change == "method":
        layer._conv_forward = lambda input, weight, bias: nn.functional.conv2d(input, 2 * weight, bias)
    chain = fl.Chain(layer, fl.SiLU())
    torch.testing.assert_close(chain(x), one_by_one(chain, x))
    assert joined == []


class Doubled(Tensor):
    """A tensor of which functions give twice as much."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result.as_subclass(Tensor) if func is nn.functional.silu else result


def test_other_tensors_are_given_to_the_layers(chain: fl.Chain, x: Tensor, joined: list[str]) -> None:
    torch.testing.assert_close(chain(x.as_subclass(Doubled)), 2 * chain(x))
    assert joined == ["SiLU"]


def test_one_activation_at_several_places(x: Tensor, dtype: torch.dtype, joined: list[str]) -> None:
    activation = fl.SiLU()
    norms = [fl.GroupNorm(8, 4, dtype=dtype) for _ in range(2)]
    chain = fl.Chain(norms[0], activation, activation, norms[1], activation)
    torch.testing.assert_close(chain(x), one_by_one(chain, x))
    assert len(joined) == 2


def test_an_error_names_the_layer(chain: fl.Chain, dtype: torch.dtype) -> None:
    wrong = torch.zeros(1, 5, 4, 4, dtype=dtype)
    for tree, arguments in ((chain, (wrong,)), (fl.Chain(fl.Identity(), *chain.structural_copy()), (wrong,))):
        with pytest.raises(ChainError) as failure:
            tree(*arguments)
        line = next(line for line in str(failure.value).splitlines() if ">>>" in line)
        assert type(chain[0]).__name__ in line


def test_several_arguments_are_given_to_the_layer(chain: fl.Chain, x: Tensor) -> None:
    tree = fl.Chain(fl.Parallel(fl.Identity(), fl.Identity()), *chain.structural_copy())
    with pytest.raises(ChainError, match=r"forward\(\) takes 2 positional arguments but 3 were given"):
        tree(x)


@pytest.mark.parametrize("index", [0, 1])
def test_a_compiled_chain_follows_what_changes(chain: fl.Chain, x: Tensor, index: int) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(chain, backend="eager", fullgraph=True)
    compiled(x)  # and nothing else before the change, which a call of the chain itself would tell
    layer = chain[index]
    before = layer.forward
    layer.forward = lambda x: 3 * before(x)
    torch.testing.assert_close(compiled(x), one_by_one(chain, x))
    chain.insert(1, fl.Multiply(scale=2.0))
    torch.testing.assert_close(compiled(x), one_by_one(chain, x))
