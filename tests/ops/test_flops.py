"""torch counts the operations of the operators as those of its own functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import refiners.fluxion.layers as fl
from refiners.fluxion.adapters import LinearLora, LoraAdapter
from refiners.ops import attention, conv2d, lora_linear
from refiners.ops.linear import _OPERATOR as linear  # what takes 16 bits where torch is slow with them


def count(function: Callable[..., Any], *args: Any, **options: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args, **options)
    return counter.get_total_flops()


def make(*shape: int) -> Tensor:
    return torch.randn(*shape)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}], ids=str)
def test_conv2d(options: dict[str, Any], isa: str) -> None:
    x, weight = make(2, 16, 9, 8), make(32, 16 // options.get("groups", 1), 3, 3)
    expected = count(F.conv2d, x, weight, **options)
    assert count(conv2d, x, weight, torch.ones(32), silu=True, **options) == expected > 0


def test_linear(isa: str) -> None:
    x, weight = make(2, 5, 8), make(6, 8)
    assert count(linear, x, weight, None) == count(F.linear, x, weight) > 0


def test_lora_linear(isa: str) -> None:
    x, weight = make(2, 5, 8), make(6, 8)
    downs, ups = [make(2, 8), make(3, 8)], [make(6, 2), make(6, 3)]
    expected = count(F.linear, x, weight) + sum(count(F.linear, x, down) for down in downs)
    expected += sum(count(F.linear, make(2, 5, up.shape[1]), up) for up in ups)
    assert count(lora_linear, x, weight, None, downs, ups, torch.ones(2)) == expected


@pytest.mark.parametrize("with_second", [False, True])
def test_attention(with_second: bool, isa: str) -> None:
    query, key, value = make(2, 7, 16), make(2, 9, 16), make(2, 9, 32)
    second = {"second_key": make(2, 3, 16), "second_value": make(2, 3, 32)} if with_second else {}
    expected = 2 * 2 * 7 * (9 + 3 * with_second) * (16 + 32)
    assert count(attention, query, key, value, 4, **second) == expected


def test_a_tree_counts_what_it_computes(isa: str) -> None:
    layer = fl.Chain(fl.Conv2d(4, 8, 3, padding=1), fl.Flatten(2), fl.Transpose(1, 2), fl.Linear(8, 6))
    lora = LoraAdapter(layer.layer("Linear", fl.Linear), LinearLora("a", 8, 6, rank=2))
    bare = count(layer, make(1, 4, 5, 5))
    assert bare == 2 * 25 * (8 * 4 * 9 + 8 * 6)
    lora.inject(layer)
    assert count(layer, make(1, 4, 5, 5)) == bare + 2 * 25 * (2 * 8 + 2 * 6)
