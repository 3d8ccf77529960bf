"""Convolutions with updates: one call of the operator where it computes what the children do, else the children."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import Conv2dLora, LoraAdapter, auto_attach_loras

X = torch.randn(2, 6, 9, 8, dtype=torch.float64)


def make_adapter(*kernels: tuple[int, int], **options: Any) -> LoraAdapter:
    given: dict[str, Any] = {"kernel_size": 3, "padding": 1, "dtype": torch.float64, **options}
    layer = fl.Conv2d(6, 5, **given)
    adapter = LoraAdapter(layer)
    for index, kernel_size in enumerate(kernels):
        lora = Conv2dLora(
            str(index),
            6,
            5,
            rank=3 + index,
            kernel_size=kernel_size,
            padding=(kernel_size[0] // 2, kernel_size[1] // 2),
        ).to(dtype=torch.float64)
        lora.down.stride = layer.stride
        torch.nn.init.normal_(lora.up.weight)
        adapter.add_lora(lora)
    return adapter


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of updates in each call of the operator."""
    module = import_module("refiners.fluxion.adapters.lora.adapter")
    operator = module.lora_conv2d
    seen: list[int] = []

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None, downs: list[Tensor], *rest: Any) -> Tensor:
        seen.append(len(downs))
        return operator(x, weight, bias, downs, *rest)

    monkeypatch.setattr(module, "lora_conv2d", spy)
    return seen


def one_by_one(adapter: LoraAdapter, x: Tensor) -> Tensor:
    return fl.Sum.forward(adapter, x)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"use_bias": False}, {"kernel_size": 1, "padding": 0}], ids=str)
def test_one_call_of_the_operator(options: dict[str, Any], calls: list[int]) -> None:
    size = options.get("kernel_size", 3)
    adapter = make_adapter((size, 1), (1, size), (size, 1), **options)
    adapter.scale = {"0": 2.0, "2": torch.tensor([0.5, -1.0])}
    torch.testing.assert_close(adapter(X), one_by_one(adapter, X))
    assert calls == [3]


def result_of(run: Callable[[Tensor], Tensor]) -> Tensor | None:
    try:
        return run(X)
    except Exception:
        return None


EDITS: dict[str, Callable[[LoraAdapter], object]] = {
    "the stride of A": lambda adapter: setattr(adapter.loras["0"].down, "stride", (1, 1)),
    "the padding of A": lambda adapter: setattr(adapter.loras["0"].down, "padding", (0, 0)),
    "the dilation of A": lambda adapter: setattr(adapter.loras["0"].down, "dilation", (2, 2)),
    "the stride of B": lambda adapter: setattr(adapter.loras["0"].up, "stride", (2, 2)),
    "the padding of B": lambda adapter: setattr(adapter.loras["0"].up, "padding", (1, 1)),
    "how B pads": lambda adapter: setattr(adapter.loras["0"].up, "padding_mode", "circular"),
    "the dilation of the layer": lambda adapter: setattr(adapter.target, "dilation", (2, 2)),
    "the words of its padding": lambda adapter: setattr(adapter.target, "padding", "valid"),
    "a bias of B": lambda adapter: setattr(adapter.loras["0"].up, "bias", torch.nn.Parameter(torch.ones(5).double())),
    "a layer in an update": lambda adapter: adapter.loras["0"].append(fl.Identity()),
    "a hook on a layer": lambda adapter: adapter.loras["0"].down.register_forward_hook(print),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("stride", [1, 2])
def test_edited_updates_run_their_children(
    stride: int, edit: Callable[[LoraAdapter], object], calls: list[int]
) -> None:
    """Whatever was edited, the children decide: also where they give results of sizes that do not fit."""
    adapter = make_adapter((3, 1), stride=stride)
    edit(adapter)
    ours, expected = result_of(adapter), result_of(lambda x: one_by_one(adapter, x))
    assert (ours is None) == (expected is None)
    if ours is not None and expected is not None:
        torch.testing.assert_close(ours, expected)
    assert calls == ([1] if (stride, edit) == (1, EDITS["the stride of A"]) else [])  # it has this stride already


@torch.no_grad()
def test_a_scale_of_0_costs_nothing(calls: list[int]) -> None:
    adapter = make_adapter((3, 1), (1, 3))
    adapter.scale = {"0": 0.0, "1": 0.0}
    assert torch.equal(adapter(X), adapter.target(X))
    assert calls == []


def test_gradients() -> None:
    adapter = make_adapter((3, 1), (1, 3))
    adapter(X).square().sum().backward()
    ours = {name: parameter.grad for name, parameter in adapter.named_parameters()}
    adapter.zero_grad()
    one_by_one(adapter, X).square().sum().backward()
    for name, parameter in adapter.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad)


def test_images_without_a_batch() -> None:
    adapter = make_adapter((3, 1))
    torch.testing.assert_close(adapter(X[0]), one_by_one(adapter, X[0]))


@pytest.mark.parametrize("kernel_size", [(1, 3), (3, 1)], ids=["up", "down"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1, "groups": 2},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 5, "padding": 2},
        {"kernel_size": 1},
        {"kernel_size": (3, 5), "padding": (1, 2)},
    ],
    ids=str,
)
def test_convolutions_that_go_otherwise_over_an_image(kernel_size: tuple[int, int], options: dict[str, Any]) -> None:
    lora = Conv2dLora("foo", 16, 8, kernel_size=kernel_size, padding=(kernel_size[0] // 2, kernel_size[1] // 2))
    assert lora.is_compatible(fl.Conv2d(16, 8, 3, padding="same"))
    chain = fl.Chain(fl.Conv2d(16, 8, stride=1, **options))
    with pytest.raises(ValueError, match="LoRA 'foo' must be for Conv2d"):
        auto_attach_loras({"": lora}, chain)
    assert not lora.is_compatible(chain.layer(0, fl.Conv2d)) and lora.parent is None
    assert lora.auto_attach(chain) is None


def test_what_is_padded_after_the_stride_has_another_size() -> None:
    lora = Conv2dLora("foo", 16, 8, kernel_size=(3, 1))  # by default the second one pads
    assert lora.is_compatible(fl.Conv2d(16, 8, 3, padding=1))
    assert not lora.is_compatible(fl.Conv2d(16, 8, 3, padding=1, stride=2)) and lora.down.stride == (1, 1)
