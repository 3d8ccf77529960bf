"""The chains that call their children side by side, or around a value."""

from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl


def add(number: float) -> fl.Lambda:
    return fl.Lambda(lambda x: x + number)


def give(value: Any) -> fl.Lambda:
    return fl.Lambda(lambda *_: value)


@pytest.mark.parametrize(
    "cls", [fl.Parallel, fl.Distribute, fl.Passthrough, fl.Sum, fl.Residual, fl.Concatenate, fl.Matmul]
)
def test_all_are_chains(cls: type[fl.Chain]) -> None:
    assert issubclass(cls, fl.Chain)
    chain = cls(fl.Linear(1, 1), fl.Linear(1, 1))
    assert list(chain._modules) == ["Linear_1", "Linear_2"]
    chain.insert(0, fl.Chain())
    assert chain.layer(0, fl.Chain).parent is chain


def test_parallel_gives_the_same_arguments_to_each() -> None:
    assert fl.Parallel(add(1), add(2))(10) == (11, 12)
    assert fl.Parallel(fl.Lambda(lambda x, y: x * y), fl.GetArg(1))(3, 4) == (12, 4)
    assert fl.Parallel()(1) == ()
    assert fl.Parallel(add(1))(1) == (2,)


def test_distribute_gives_one_argument_to_each() -> None:
    assert fl.Distribute(add(1), add(2))(10, 20) == (11, 22)
    assert fl.Distribute()() == ()


@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_distribute_wants_as_many_arguments_as_children(args: tuple[int, ...]) -> None:
    message = rf"Number of positional arguments \({len(args)}\) must match number of sub-modules \(2\)."
    with pytest.raises(AssertionError, match=message):
        fl.Distribute(add(1), add(2))(*args)


def test_passthrough_runs_as_a_chain_and_returns_the_tuple_of_its_inputs() -> None:
    seen: list[int] = []
    chain = fl.Passthrough(add(1), fl.Lambda(seen.append))
    assert chain(1) == (1,) and seen == [2]
    assert fl.Passthrough(fl.Lambda(lambda x, y: None))(1, 2) == (1, 2)
    assert fl.Chain(fl.Passthrough(fl.Identity()), add(1))(1) == 2


def test_sum_adds_the_results_in_the_order_of_the_children() -> None:
    assert fl.Sum(add(1), add(2), add(3))(10) == 36
    assert fl.Sum(give("a"), give("b"), give("c"))(0) == "abc"


def test_sum_of_a_tuple_contributes_the_sum_of_its_items() -> None:
    assert fl.Sum(give((1, 2, 3)), give(10))(0) == 16
    assert fl.Sum(give(10), give((torch.ones(2), torch.ones(2))))(0).tolist() == [12, 12]


def test_sum_passes_over_leading_none_and_fails_on_a_later_one() -> None:
    assert fl.Sum(give(None), give(None), give(3), give(4))(0) == 7
    assert fl.Sum(give(None))(0) is None
    with pytest.raises(TypeError):
        fl.Sum(give(3), give(None))(0)


def test_sum_without_children_is_none() -> None:
    assert fl.Sum()(1) is None


def test_sum_does_not_write_into_the_results() -> None:
    x = torch.ones(2)
    assert fl.Sum(fl.Identity(), fl.Identity(), fl.Identity())(x).tolist() == [3, 3]
    assert x.tolist() == [1, 1]


def test_residual_adds_its_one_input_to_the_result_of_the_chain() -> None:
    assert fl.Residual(add(1), add(2))(10) == 23
    for args in ((), (1, 2)):
        with pytest.raises(AssertionError, match="Residual connection can only be used with a single input."):
            fl.Residual(fl.Identity())(*args)


def test_concatenate_joins_results_along_a_dimension_and_drops_none() -> None:
    x = torch.zeros(2, 3)
    assert fl.Concatenate(fl.Identity(), fl.Identity())(x).shape == (4, 3)
    chain = fl.Concatenate(give(None), fl.Identity(), give(None), fl.Identity(), dim=1)
    assert chain.dim == 1 and chain(x).shape == (2, 6)


def test_matmul_multiplies_the_results_of_both_children() -> None:
    x, y = torch.randn(2, 3), torch.randn(3, 4)
    assert torch.equal(fl.Matmul(fl.GetArg(0), fl.GetArg(1))(x, y), x @ y)
    assert torch.equal(fl.Matmul(input=fl.Identity(), other=fl.Lambda(Tensor.t))(x), x @ x.t())


@pytest.mark.parametrize("base", [fl.Parallel, fl.Sum, fl.Distribute, fl.Concatenate])
def test_declared_contexts_are_there_in_these_chains_too(base: type[fl.Chain]) -> None:
    declaring = type("Declares", (base,), {"init_context": lambda self: {"foo": {"bar": torch.ones(1)}}})
    chain = declaring(fl.UseContext("foo", "bar"))
    result = chain(torch.zeros(1))
    assert (result[0] if isinstance(result, tuple) else result).tolist() == [1]


@pytest.mark.parametrize("base", [fl.Parallel, fl.Distribute, fl.Sum, fl.Concatenate, fl.Matmul])
def test_these_chains_declare_their_contexts_once_and_do_not_reset_them(base: type[fl.Chain]) -> None:
    declaring = type("Declares", (base,), {"init_context": lambda self: {"foo": {"bar": torch.zeros(1)}}})
    chain, x = declaring(*[fl.SetContext("foo", "bar")] * (2 if base is fl.Matmul else 1)), torch.ones(1)
    assert chain.use_context("foo")["bar"].item() == 0
    chain(x)
    assert chain.use_context("foo")["bar"] is x


def test_all_walk_and_edit_as_chains() -> None:
    total = fl.Sum(fl.Linear(1, 1), fl.Residual(fl.Linear(1, 1)))
    assert len(list(total.layers(fl.Linear))) == 2
    total.layer("Residual", fl.Residual).append(fl.ReLU())
    assert list(total.layer(1, fl.Residual)._modules) == ["Linear", "ReLU"]
