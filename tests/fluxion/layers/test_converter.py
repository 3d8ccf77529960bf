"""The converter follows the weights around it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.fluxion.layers.chain import ChainError

Compiled = Callable[..., Any]  # the fixture `in_one_graph`


def test_the_dtype_is_that_of_the_first_weight_after() -> None:
    chain = fl.Chain(fl.Converter(set_device=False), fl.Linear(2, 3, dtype=torch.float64), fl.Linear(3, 3).double())
    assert chain(torch.ones(1, 2)).dtype == torch.float64


def test_the_result_is_always_a_tuple_of_all_inputs() -> None:
    converter = fl.Converter()
    fl.Chain(converter, fl.Linear(2, 3, dtype=torch.float64))
    x, y = torch.ones(2, dtype=torch.float64), torch.ones(3, dtype=torch.int32)
    results = converter(x, y)
    assert isinstance(results, tuple)
    assert results[0] is x
    assert (results[1].dtype, results[1].tolist()) == (torch.float64, [1.0, 1.0, 1.0])
    assert converter(x) == (x,)
    assert converter() == ()


def test_several_inputs_are_converted_on_their_way() -> None:
    linears = fl.Linear(2, 2, dtype=torch.float64), fl.Linear(3, 2, dtype=torch.float64)
    results = fl.Chain(fl.Converter(), fl.Distribute(*linears))(torch.ones(1, 2), torch.ones(1, 3))
    assert [result.dtype for result in results] == [torch.float64, torch.float64]


def test_only_what_is_asked_for_is_changed() -> None:
    x = torch.ones(2)
    for device, dtype in [(True, True), (True, False), (False, True), (False, False)]:
        converter = fl.Converter(set_device=device, set_dtype=dtype)
        fl.Chain(converter, fl.Linear(2, 3, device="meta", dtype=torch.float64))
        (y,) = converter(x)
        assert y.device.type == ("meta" if device else "cpu")
        assert y.dtype == (torch.float64 if dtype else torch.float32)


@pytest.mark.cuda
def test_inputs_are_moved_to_the_device_of_the_weights() -> None:
    chain = fl.Chain(fl.Converter(), fl.Distribute(fl.Linear(2, 2, device="cuda"), fl.Linear(3, 2, device="cuda")))
    results = chain(torch.ones(1, 2), torch.ones(1, 3))
    assert [result.device.type for result in results] == ["cuda", "cuda"]


def test_an_adapted_first_layer_changes_nothing() -> None:
    linear = fl.Linear(2, 3, dtype=torch.float64)
    chain = fl.Chain(fl.Converter(), linear)
    LoraAdapter(linear, LinearLora("lora", 2, 3, rank=1, dtype=torch.float64)).inject(chain)
    assert chain(torch.ones(1, 2)).dtype == torch.float64


def test_it_fails_where_there_is_nothing_to_follow() -> None:
    with pytest.raises(AssertionError, match="parent"):
        fl.Converter()(torch.ones(1))
    for converter, what in ((fl.Converter(), "device"), (fl.Converter(set_device=False), "dtype")):
        chain = fl.Chain(fl.Lambda(lambda x: x), converter)
        with pytest.raises(AssertionError, match=f"parent has no {what}"):
            converter(torch.ones(1))
        with pytest.raises(ChainError, match=f"parent has no {what}"):
            chain(torch.ones(1))


def test_repr_shows_all_and_str_what_is_not_default() -> None:
    converter = fl.Converter(set_dtype=False)
    assert repr(converter) == "Converter(set_device=True, set_dtype=False)"
    assert str(converter) == "Converter(set_dtype=False)"
    assert str(fl.Converter()) == "Converter()"
    assert repr(fl.Chain(fl.Converter())) == "(CHAIN)\n    └── Converter()"


def test_it_compiles_into_one_graph(in_one_graph: Compiled) -> None:
    chain = fl.Chain(fl.Converter(), fl.Chain(fl.ReLU(), fl.Linear(2, 3, dtype=torch.float64)))
    x = torch.ones(1, 2)
    assert torch.equal(in_one_graph(chain, x), chain(x))
