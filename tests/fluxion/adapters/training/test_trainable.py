"""One update as it is trained: what it computes, on each of its ways, and in each dtype."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LoraAdapter
from refiners.fluxion.adapters.lora import adapter as adapter_module
from refiners.fluxion.adapters.lora.training import TrainableConv2dLora, TrainableLinearLora
from refiners.ops import lora_block_cache

Make = Callable[..., LoraAdapter]


def linear(dtype: torch.dtype = torch.float32, layer_dtype: torch.dtype | None = None, **options: Any) -> LoraAdapter:
    layer = fl.Linear(12, 8, dtype=layer_dtype or dtype)
    return fill(LoraAdapter(layer, TrainableLinearLora("style", layer, rank=3, dtype=dtype, **options)))


def convolution(
    dtype: torch.dtype = torch.float32, layer_dtype: torch.dtype | None = None, **options: Any
) -> LoraAdapter:
    layer = fl.Conv2d(12, 8, kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dtype=layer_dtype or dtype)
    return fill(LoraAdapter(layer, TrainableConv2dLora("style", layer, rank=3, dtype=dtype, **options)))


def fill(adapter: LoraAdapter) -> LoraAdapter:
    for lora in adapter.loras.values():
        for parameter in lora.parameters():
            nn.init.normal_(parameter, std=0.3)
    return adapter


def input_of(make: Make, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((3, 5, 12) if make is linear else (3, 12, 9, 8)).to(dtype)


def update_of(adapter: LoraAdapter, x: Tensor, multiplier: float) -> Tensor:
    """The formula, in float64: the layer with the difference as its weight."""
    lora: Any = adapter.loras["style"]
    down, up = lora.down.weight.double(), lora.up.weight.double()
    weight = multiplier * torch.einsum("or,r...->o...", up.flatten(1), down)
    layer: Any = adapter.target
    if isinstance(layer, fl.Linear):
        return F.linear(x.double(), weight)
    return F.conv2d(x.double(), weight, None, layer.stride, layer.padding, layer.dilation)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that adapters call."""
    seen: list[str] = []
    for name in ("lora_linear", "lora_linear_masters"):
        operator = getattr(adapter_module, name)
        monkeypatch.setattr(adapter_module, name, lambda *args, o=operator, n=name: seen.append(n) or o(*args))
    return seen


OPTIONS: list[tuple[dict[str, Any], float]] = [
    ({}, 1.0),
    ({"alpha": 1.5}, 0.5),
    ({"alpha": 2.0, "rank_stabilized": True}, 2 / 3**0.5),
    ({"rank_stabilized": True}, 3**0.5),
    ({"scale": -0.7, "alpha": 1.5}, -0.35),
]


@pytest.mark.parametrize("make", [linear, convolution])
@pytest.mark.parametrize(("options", "multiplier"), OPTIONS, ids=str)
@pytest.mark.parametrize("records", [True, False], ids=["gradients", "no gradients"])
def test_the_update_is_multiplied(
    make: Make, options: dict[str, Any], multiplier: float, records: bool, calls: list[str]
) -> None:
    adapter, x = make(**options), input_of(make)
    expected = adapter.target(x) + update_of(adapter, x, multiplier).float()
    with torch.set_grad_enabled(records):
        torch.testing.assert_close(adapter(x), expected)
        torch.testing.assert_close(fl.Sum.forward(adapter, x), expected)
    assert calls == ["lora_linear"] * (make is linear)


@pytest.mark.parametrize("make", [linear, convolution])
def test_an_update_that_starts_where_it_is_adds_nothing(make: Make) -> None:
    adapter, x = make(alpha=6.0), input_of(make)
    lora: Any = adapter.loras["style"]
    before = update_of(adapter, x, 2.0)
    lora.start_here()
    assert torch.equal(adapter(x), adapter.target(x))
    assert lora.rank == 3 and [tuple(f.shape[:2]) for f in lora.factors()] == [(6, 12), (8, 6)]
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(torch.randn(parameter.shape) / 10)
    expected = adapter.target(x) + (update_of(adapter, x, 2.0) - before).float()
    torch.testing.assert_close(adapter(x), expected)
    torch.testing.assert_close(fl.Sum.forward(adapter, x), expected)
    merged = copy.deepcopy(adapter.target)
    with torch.no_grad():
        merged.weight += lora.differences({"weight": merged.weight})["weight"]
    torch.testing.assert_close(merged(x), expected)


@pytest.mark.parametrize("make", [linear, convolution])
def test_small_changes_of_a_large_start_survive_16_bits(make: Make) -> None:
    adapter = make(torch.float32, torch.bfloat16)
    lora: Any = adapter.loras["style"]
    lora.start_here()
    with torch.no_grad():
        lora.up.weight.add_(2.0**-14)  # less than the last bit that bfloat16 has of it
    x = torch.ones_like(input_of(make, torch.bfloat16))
    adapter.target.weight.data.zero_()
    adapter.target.bias.data.zero_()
    change = torch.einsum("or,r...->o...", torch.full((8, 3), 2.0**-14), lora.down.weight)
    whole = adapter(x).float()
    layer: Any = adapter.target
    expected = (
        F.linear(x.float(), change)
        if make is linear
        else F.conv2d(x.float(), change, None, layer.stride, layer.padding)
    )
    assert (whole - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("make", [linear, convolution])
def test_dropout_is_that_of_torch_on_the_input_and_only_while_training(make: Make, calls: list[str]) -> None:
    adapter, x = make(dropout=0.4, alpha=1.5), input_of(make)
    torch.manual_seed(3)
    y = adapter(x)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.4)
    torch.testing.assert_close(y, adapter.target(x) + update_of(adapter, dropped, 0.5).float())
    assert calls == []
    state = torch.get_rng_state()
    torch.testing.assert_close(adapter.eval()(x), adapter.target(x) + update_of(adapter, x, 0.5).float())
    assert torch.equal(torch.get_rng_state(), state)
    assert calls == ["lora_linear"] * (make is linear)


def test_the_tree_says_what_there_is() -> None:
    adapter = linear(dropout=0.1, alpha=6.0)
    lora: Any = adapter.loras["style"]
    assert [type(child).__name__ for child in lora] == ["Dropout", "Linear", "Linear", "Multiply"]
    assert str(lora[0]) == "Dropout(p=0.1)"
    assert lora.down is lora[1] and lora.up is lora[2] and lora.dropout == 0.1
    assert set(adapter.state_dict()) == {
        *("Linear.weight", "Linear.bias", "TrainableLinearLora.Linear_1.weight", "TrainableLinearLora.Linear_2.weight")
    }


EDITS: dict[str, Callable[[Any], object]] = {
    "a layer more": lambda lora: lora.append(fl.Lambda(lambda x: 2 * x)),
    "a layer between": lambda lora: lora.insert(1, fl.Lambda(lambda x: 2 * x)),
    "a multiplier of its own": lambda lora: setattr(lora[-1], "scale", 2.0),
    "a hook": lambda lora: lora.down.register_forward_hook(lambda _, __, y: 2 * y),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_updates_run_their_children(edit: Callable[[Any], object], calls: list[str]) -> None:
    adapter, x = linear(alpha=1.5), input_of(linear)
    expected = adapter.target(x) + update_of(adapter, x, 1.0).float()
    edit(adapter.loras["style"])
    torch.testing.assert_close(adapter(x), expected)
    assert calls == []


def test_a_scale_for_each_row(calls: list[str]) -> None:
    adapter, x = linear(alpha=1.5), input_of(linear)
    scale = torch.tensor([1.0, 0.0, -2.0])
    adapter.scale = {"style": scale}
    expected = adapter.target(x) + scale[:, None, None] * update_of(adapter, x, 0.5).float()
    torch.testing.assert_close(adapter(x), expected)
    torch.testing.assert_close(fl.Sum.forward(adapter, x), expected)
    assert calls == ["lora_linear"]


# --- master weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, convolution])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("records", [True, False], ids=["gradients", "no gradients"])
def test_weights_in_float32_beside_a_layer_in_16_bits(
    make: Make, dtype: torch.dtype, records: bool, calls: list[str]
) -> None:
    adapter, x = make(torch.float32, dtype, alpha=1.5), input_of(make, dtype)
    exact = copy.deepcopy(adapter.target).double()(x.double()) + update_of(adapter, x, 0.5)
    with torch.set_grad_enabled(records):
        ways = [adapter(x), fl.Sum.forward(adapter, x)]
    for y in ways:
        assert y.dtype == dtype
        assert (y.double() - exact).norm() < 2 * torch.finfo(dtype).eps * exact.norm()
    expected = "lora_linear_masters" if records else "lora_linear"
    assert calls == [expected] * (make is linear)


def test_where_nothing_is_recorded_rounded_matrices_are_kept_until_they_change() -> None:
    adapter, x = linear(torch.float32, torch.bfloat16, alpha=1.5), input_of(linear, torch.bfloat16)
    lora: Any = adapter.loras["style"]
    with torch.no_grad():
        first = lora.operands(torch.bfloat16)
        assert all(one is other for one, other in zip(first, lora.operands(torch.bfloat16)))
        before = adapter(x)
        lora.up.weight.mul_(2)
        second = lora.operands(torch.bfloat16)
        assert second[0] is first[0] and torch.equal(second[1], 2 * first[1])
        assert not torch.equal(adapter(x), before)


def test_a_multiplier_may_change() -> None:
    adapter, x = linear(alpha=1.5), input_of(linear)
    with torch.no_grad():
        adapter(x)
        adapter.loras["style"].alpha = 3.0
        torch.testing.assert_close(adapter(x), adapter.target(x) + update_of(adapter, x, 1.0).float())


def test_frozen_updates_beside_what_is_trained_leave_no_blocks_behind(calls: list[str]) -> None:
    layer = fl.Linear(12, 8, dtype=torch.bfloat16)
    style, other = (TrainableLinearLora(name, layer, rank=3, alpha=1.5) for name in ("style", "other"))
    adapter = LoraAdapter(layer, style, other).requires_grad_(False)
    x = input_of(linear, torch.bfloat16).requires_grad_()
    lora_block_cache.clear()
    for _ in range(3):
        adapter(x).sum().backward()
    assert calls == ["lora_linear"] * 3 and len(lora_block_cache) <= 1
    lora_block_cache.clear()


def test_other_dtypes_fail_as_layers_do() -> None:
    adapter = linear(torch.bfloat16, torch.float32)
    with pytest.raises(RuntimeError, match="dtype"):
        adapter(input_of(linear))


@pytest.mark.parametrize("make", [linear, convolution])
@pytest.mark.parametrize("layer_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_all_is_computed_in_its_dtype(make: Make, layer_dtype: torch.dtype) -> None:
    adapter = make(torch.float32, layer_dtype, alpha=1.5)
    for x in (input_of(make), input_of(make, torch.bfloat16)):
        exact = copy.deepcopy(adapter.target).double()(x.double()) + update_of(adapter, x, 0.5)
        for records in (True, False):
            with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(records):
                ways = [adapter(x), fl.Sum.forward(adapter, x)]
            for y in ways:
                assert y.dtype == torch.bfloat16
                assert (y.double() - exact).norm() < 2 * torch.finfo(torch.bfloat16).eps * exact.norm()


@pytest.mark.parametrize("make", [linear, convolution])
def test_autocast_may_ask_for_other_16_bits(make: Make) -> None:
    adapter, x = make(torch.float32, torch.bfloat16), input_of(make, torch.bfloat16)
    for records in (True, False):
        with torch.autocast("cpu", torch.float16), torch.set_grad_enabled(records):
            assert adapter(x).dtype == fl.Sum.forward(adapter, x).dtype == torch.float16


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, convolution])
def test_copies_and_pickles_compute_the_same_with_weights_of_their_own(make: Make) -> None:
    adapter, x = make(alpha=1.5, dropout=0.3).eval(), input_of(make)
    lora: Any = adapter.loras["style"]
    lora.start_here()
    with torch.no_grad():
        lora.up.weight.add_(0.1)
        expected = adapter(x)
        for copied in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
            assert torch.equal(copied(x), expected)
            copied.loras["style"].up.weight.add_(1)
            assert not torch.equal(copied(x), expected) and torch.equal(adapter(x), expected)


def test_a_structural_copy_shares_the_weights_and_has_its_own_scale() -> None:
    adapter, x = linear(alpha=1.5), input_of(linear)
    copied = adapter.structural_copy()
    copied.scale = {"style": 0.0}
    assert copied.loras["style"].down.weight is adapter.loras["style"].down.weight
    torch.testing.assert_close(copied(x), adapter.target(x))
    torch.testing.assert_close(adapter(x), adapter.target(x) + update_of(adapter, x, 0.5).float())


def test_a_convolution_of_several_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="layer must be a convolution of one group"):
        TrainableConv2dLora("style", fl.Conv2d(4, 4, kernel_size=1, groups=2))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": (1, 3), "stride": (1, 3), "padding": (0, 2), "dilation": (1, 2)},
    ],
    ids=str,
)
def test_convolutions_of_any_geometry(options: dict[str, Any]) -> None:
    layer = fl.Conv2d(4, 6, **options)
    adapter = fill(LoraAdapter(layer, TrainableConv2dLora("style", layer, rank=2, alpha=1.0)))
    x = torch.randn(2, 4, 9, 8)
    changed = copy.deepcopy(layer)
    with torch.no_grad():
        changed.weight += adapter.loras["style"].differences({"weight": layer.weight})["weight"]
    torch.testing.assert_close(adapter(x), changed(x))
