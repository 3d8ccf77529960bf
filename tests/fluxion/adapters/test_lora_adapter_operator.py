"""When an adapter runs through the operator, when through its children, and that both agree."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.fluxion.adapters.lora import adapter as module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of updates of each call of the operator."""
    seen: list[int] = []
    operator = module.lora_linear

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None, downs: list[Tensor], *rest: Any) -> Tensor:
        seen.append(len(downs))
        return operator(x, weight, bias, downs, *rest)

    monkeypatch.setattr(module, "lora_linear", spy)
    return seen


def make_lora(name: str, scale: float = 1.0, rank: int = 4) -> LinearLora:
    lora = LinearLora(name, 6, 5, rank=rank, scale=scale)
    lora.load_weights(torch.randn(rank, 6), torch.randn(5, rank))
    return lora


@pytest.fixture
def adapter() -> LoraAdapter:
    return LoraAdapter(fl.Linear(6, 5), make_lora("foo", 2.0), make_lora("bar", -1.0, rank=3))


def one_by_one(adapter: LoraAdapter, x: Tensor) -> Tensor:
    return fl.Sum.forward(adapter, x)


def test_the_canonical_structure_is_one_call_of_the_operator(adapter: LoraAdapter, calls: list[int]) -> None:
    x = torch.randn(2, 3, 6)
    result = adapter(x)
    assert calls == [2]
    torch.testing.assert_close(result, one_by_one(adapter, x))


def test_it_is_so_without_a_bias_and_after_changes_of_the_set(calls: list[int]) -> None:
    adapter = LoraAdapter(fl.Linear(6, 5, bias=False), make_lora("foo"))
    x = torch.randn(3, 6)
    adapter(x)
    adapter.add_lora(make_lora("bar"))
    adapter.scale = {"foo": 3.0}
    torch.testing.assert_close(adapter(x), one_by_one(adapter, x))
    adapter.remove_lora("foo")
    adapter(x)
    assert calls == [1, 2, 1]


EDITS: dict[str, Callable[[LoraAdapter], object]] = {
    "a layer more in an update": lambda adapter: adapter.loras["foo"].append(fl.Identity()),
    "another layer in an update": lambda adapter: adapter.loras["foo"].replace(
        adapter.loras["foo"].up, fl.Linear(4, 5, bias=True)
    ),
    "a child more": lambda adapter: adapter.append(fl.Linear(6, 5)),
    "a child before the target": lambda adapter: adapter.insert(0, fl.Linear(6, 5)),
    "another target": lambda adapter: adapter.replace(adapter.target, fl.Linear(6, 5)),
    "a wrapped target": lambda adapter: adapter.replace(adapter.target, fl.Chain(adapter.target)),
    "a bias of the multiplier": lambda adapter: setattr(adapter.loras["foo"].ensure_find(fl.Multiply), "bias", 1.0),
    "a hook on the target": lambda adapter: adapter.target.register_forward_hook(lambda *_: None),
    "a hook on an update": lambda adapter: adapter.loras["foo"].register_forward_pre_hook(lambda *_: None),
    "a hook on a layer": lambda adapter: adapter.loras["foo"].down.register_forward_hook(lambda *_: None),
}


def test_a_multiplier_that_was_assigned_past_the_update_counts(adapter: LoraAdapter, calls: list[int]) -> None:
    adapter.loras["foo"].ensure_find(fl.Multiply).scale = 5.0
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapter(x), one_by_one(adapter, x))
    assert calls == [2]


@torch.no_grad()
def test_updates_of_scale_0_cost_nothing(adapter: LoraAdapter, calls: list[int]) -> None:
    x = torch.randn(3, 6)
    adapter.scale = dict.fromkeys(adapter.names, 0.0)
    assert torch.equal(adapter(x), adapter.target(x))
    assert calls == []
    adapter.append(fl.Chain(fl.Lambda(lambda x: torch.zeros(3, 5))))  # edited, it calls its children
    adapter.pop(len(adapter) - 1)
    update = adapter.loras["foo"]
    update.insert(1, fl.Lambda(lambda x: pytest.fail("an update of scale 0 was computed")))
    assert torch.equal(adapter(x), adapter.target(x))


def test_updates_of_scale_0_are_trained(adapter: LoraAdapter) -> None:
    adapter.scale = dict.fromkeys(adapter.names, 0.0)
    adapter(torch.randn(3, 6)).sum().backward()
    grads = [lora.up.weight.grad for lora in adapter.loras.values()]
    assert all(grad is not None and not grad.any() for grad in grads)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_structures_run_their_children(
    adapter: LoraAdapter, edit: Callable[[LoraAdapter], object], calls: list[int]
) -> None:
    edit(adapter)
    x = torch.randn(3, 6)
    torch.testing.assert_close(adapter(x), one_by_one(adapter, x))
    assert calls == []


def test_an_adapter_without_updates_or_around_another_layer_runs_its_children(calls: list[int]) -> None:
    class SpecialLinear(fl.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    x = torch.randn(3, 6)
    empty, special = LoraAdapter(fl.Linear(6, 5)), LoraAdapter(SpecialLinear(6, 5), make_lora("foo"))
    assert torch.equal(empty(x), empty.target(x))
    torch.testing.assert_close(special(x), one_by_one(special, x))
    assert calls == []


def test_an_input_of_another_dtype_fails_as_the_children_do(adapter: LoraAdapter) -> None:
    with pytest.raises(RuntimeError):
        adapter(torch.randn(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (3, 7)], ids=["per sample", "per token"])
def test_a_scale_may_be_a_tensor_with_one_number_for_each_row(
    adapter: LoraAdapter, shape: tuple[int, ...], calls: list[int]
) -> None:
    scale, x = torch.randn(shape), torch.randn(3, 7, 6)
    foo, bar = adapter.loras["foo"], adapter.loras["bar"]
    foo.scale = scale
    rows = scale.reshape(*shape, *[1] * (3 - len(shape)))
    update = (x @ foo.down.weight.T) @ foo.up.weight.T
    expected = adapter.target(x) + rows * update - (x @ bar.down.weight.T) @ bar.up.weight.T
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-4)
    assert calls == [2]
    torch.testing.assert_close(foo(x), rows * update, rtol=1e-4, atol=1e-4)
    adapter.append(fl.Lambda(lambda _: torch.zeros(1)))
    torch.testing.assert_close(adapter(x), expected, rtol=1e-4, atol=1e-4)


def test_a_scale_of_zero_gives_the_layer_back(adapter: LoraAdapter) -> None:
    x = torch.randn(3, 6)
    adapter.scale = {"foo": 0.0, "bar": 0.0}
    assert torch.equal(adapter(x), adapter.target(x))
