"""Calling a chain: how results travel from child to child."""

from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl


def test_the_children_run_in_order() -> None:
    chain = fl.Chain(fl.Lambda(lambda x: x + 1), fl.Lambda(lambda x: x * 10))
    assert chain(1) == 20


def test_the_first_child_gets_all_arguments() -> None:
    assert fl.Chain(fl.Lambda(lambda x, y: (x, y)))(1, 2) == (1, 2)
    assert fl.Chain(fl.Lambda(lambda: 3))() == 3


def test_arguments_are_positional_only() -> None:
    with pytest.raises(TypeError):
        fl.Chain(fl.Identity())(x=1)


def test_a_tuple_is_passed_on_as_several_arguments() -> None:
    chain = fl.Chain(fl.Lambda(lambda x: (x, x + 1)), fl.Lambda(lambda x, y: x * y))
    assert chain(3) == 12


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, None, 0])
def test_any_other_value_is_passed_on_as_one_argument(value: object) -> None:
    received: list[object] = []
    fl.Chain(fl.Lambda(lambda: value), fl.Lambda(received.append))()
    assert received == [value]


@pytest.mark.parametrize("value", [(1, 2), (1,), (), [1], None])
def test_the_result_of_the_last_child_is_returned_as_it_is(value: object) -> None:
    assert fl.Chain(fl.Lambda(lambda: value))() is value


def test_an_empty_tuple_calls_the_next_child_without_arguments() -> None:
    assert fl.Chain(fl.Lambda(lambda: ()), fl.Lambda(lambda *args: len(args)))() == 0


def test_an_empty_chain_returns_none() -> None:
    assert fl.Chain()(1, 2) is None


def test_edits_during_a_call_do_not_change_that_call() -> None:
    chain = fl.Chain()

    def edit(x: int) -> int:
        chain.pop(0)
        chain.append(fl.Lambda(lambda x: x * 100))
        return x + 1

    chain.append(fl.Lambda(edit))
    chain.append(fl.Lambda(lambda x: x * 10))
    assert chain(1) == 20
    assert chain(1) == 1000


def test_modules_of_torch_run_as_children() -> None:
    linear = torch.nn.Linear(2, 3)
    x = torch.randn(1, 2)
    assert torch.equal(fl.Chain(linear, torch.nn.ReLU())(x), linear(x).relu())


def test_hooks_of_chains_and_of_context_layers_run() -> None:
    seen: list[str] = []

    def hook(module: torch.nn.Module, _args: Any, _output: Any) -> None:
        seen.append(type(module).__name__)

    class Net(fl.Chain):
        def init_context(self) -> dict[str, dict[str, int]]:
            return {"a": {"b": 1}}

    net = Net(fl.SetContext("a", "b"), fl.UseContext("a", "b"))
    for module in net.modules():
        module.register_forward_hook(hook)
    net(3)
    assert seen == ["SetContext", "UseContext", "Net"]


def test_the_same_chain_can_run_inside_itself() -> None:
    class Countdown(fl.Chain):
        def init_context(self) -> dict[str, dict[str, int]]:
            return {"count": {"value": 0}}

    chain = Countdown(fl.Lambda(lambda n: n if n == 0 else chain(n - 1)))
    assert chain(3) == 0


def test_gradients_flow_through_a_chain() -> None:
    x = torch.ones(1, 2, requires_grad=True)
    chain = fl.Chain(fl.Linear(2, 2), fl.Residual(fl.Linear(2, 2)), fl.Lambda(Tensor.sum))
    chain(x).backward()
    assert x.grad is not None and all(parameter.grad is not None for parameter in chain.parameters())
