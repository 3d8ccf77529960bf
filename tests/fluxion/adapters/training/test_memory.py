"""What the backward pass keeps alive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters.lora.training import add_trainable_loras

ROWS, RANK = 64, 2


class Saved:
    """The tensors that are saved while this is entered, but for some that are there anyway."""

    def __init__(self, *known: Tensor) -> None:
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.tensors: dict[int, Tensor] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self.known:
            self.tensors[address] = tensor
        return tensor

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self.hooks.__exit__(*args)

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


CASES: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {}),
    (torch.float32, {"alpha": 1.0}),
    (torch.float32, {"initialisation": "pissa"}),
    (torch.bfloat16, {}),
    (torch.bfloat16, {"alpha": 1.0}),
    (torch.bfloat16, {"initialisation": "pissa"}),
]


@pytest.mark.parametrize(("dtype", "options"), CASES, ids=str)
def test_a_linear_layer_saves_its_input_and_nothing_of_its_size(dtype: torch.dtype, options: dict[str, Any]) -> None:
    chain = fl.Chain(fl.Linear(96, 80, dtype=dtype))
    loras = add_trainable_loras("style", chain, rank=RANK, **options)
    x = torch.randn(ROWS, 96, dtype=dtype)
    with Saved(x, *chain.parameters(), *chain.buffers()) as saved:
        y = chain(x)
    factors = 4 * RANK * (96 + 80)  # of master weights, in bytes
    allowed = {1: 0, 2: factors}[len(options) + 1] * (1 + ("initialisation" in options)) + 4  # and the scale
    assert saved.bytes <= allowed < min(x.nbytes, y.nbytes) / 2
    y.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in loras.parameters())
    assert all(p.grad is None for p in chain.parameters() if not p.requires_grad)


@pytest.mark.parametrize("options", [{}, {"alpha": 1.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_convolution_saves_its_input_and_what_is_between(dtype: torch.dtype, options: dict[str, Any]) -> None:
    chain = fl.Chain(fl.Conv2d(16, 20, kernel_size=3, padding=1, dtype=dtype))
    add_trainable_loras("style", chain, rank=RANK, **options)
    x = torch.randn(2, 16, 10, 10, dtype=dtype)
    with Saved(x, *chain.parameters()) as saved:
        y = chain(x)
    between = 2 * RANK * 10 * 10 * dtype.itemsize
    assert saved.bytes <= between < min(x.nbytes, y.nbytes) / 2


def test_the_next_layer_alone_saves_what_a_frozen_layer_returns() -> None:
    chain = fl.Chain(fl.Linear(96, 80), fl.Linear(80, 64))
    loras = add_trainable_loras("style", chain, rank=RANK)
    x = torch.randn(ROWS, 96)
    with Saved(x, *chain.parameters()) as saved:
        chain(x).sum().backward()
    assert saved.bytes <= ROWS * 80 * 4 + 3 * 4  # the input of the second layer, and scales
    assert all(parameter.grad is not None for parameter in loras.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_frozen_layer_without_an_update_saves_nothing(dtype: torch.dtype) -> None:
    linear = fl.Chain(fl.Linear(96, 80, dtype=dtype), fl.Linear(80, 64, dtype=dtype))
    convolution = fl.Chain(
        fl.Conv2d(16, 20, kernel_size=3, padding=1, dtype=dtype), fl.Conv2d(20, 24, kernel_size=3, dtype=dtype)
    )
    for chain, x in ((linear, torch.randn(ROWS, 96, dtype=dtype)), (convolution, torch.randn(2, 16, 9, 9).to(dtype))):
        first = type(chain[0]).__name__ + "_1"
        loras = add_trainable_loras("style", chain, rank=RANK, paths=first)
        with Saved(x, *chain.parameters()) as saved:
            y = chain(x)
        inner = chain[0](x)
        assert saved.bytes < inner.nbytes / 2
        y.float().square().sum().backward()
        up = loras.parameters()[1]
        assert up.grad is not None and up.grad.any()
        once = up.grad.clone()
        weight = chain[1].weight.double()
        layer = torch.nn.functional.linear if chain is linear else torch.nn.functional.conv2d
        wide = inner.detach().double().requires_grad_()
        layer(wide, weight, chain[1].bias.double()).square().sum().backward()
        inner.backward(wide.grad.to(dtype))  # the gradients again, by the formula of the second layer
        assert (up.grad - 2 * once).norm() < 0.02 * once.norm()
