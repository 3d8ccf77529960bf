"""The activations against their formulas in float64, and the gate."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`

SIGMOID_GELU = fl.GeLU(fl.GeLUApproximation.SIGMOID)

FORMULAS: list[tuple[fl.Activation, Callable[[Tensor], Tensor]]] = [
    (fl.SiLU(), lambda x: x / (1 + torch.exp(-x))),
    (fl.ReLU(), lambda x: torch.where(x > 0, x, 0 * x)),
    (fl.Sigmoid(), lambda x: 1 / (1 + torch.exp(-x))),
    (fl.GeLU(), lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
    (
        fl.GeLU(fl.GeLUApproximation.TANH),
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    (SIGMOID_GELU, lambda x: x / (1 + torch.exp(-1.702 * x))),
]
IDS = ["silu", "relu", "sigmoid", "gelu", "gelu-tanh", "gelu-sigmoid"]


@pytest.mark.parametrize(("layer", "formula"), FORMULAS, ids=IDS)
def test_an_activation_is_its_formula(
    layer: fl.Activation, formula: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    x = (4 * torch.randn(5, 7)).to(device=device, dtype=dtype)
    before = x.clone()
    y = layer(x)
    assert y.dtype == dtype
    if layer is SIGMOID_GELU and dtype != torch.float32:  # 1.702 * x is rounded before the exponential
        assert_close(y, formula(x.double()).to(dtype), rtol=0.02, atol=0.01)
    else:
        assert_close(y, formula(x.double()).to(dtype))
    assert torch.equal(x, before)
    assert layer(x[:0]).shape == (0, 7)


@pytest.mark.parametrize(("layer", "formula"), FORMULAS, ids=IDS)
def test_an_activation_has_the_gradient_of_its_formula(
    layer: fl.Activation, formula: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad(layer(x).sum(), x)
    (expected,) = torch.autograd.grad(formula(x).sum(), x)
    assert_close(actual, expected)


@pytest.mark.parametrize("layer", [layer for layer, _ in FORMULAS], ids=IDS)
def test_an_activation_compiles_into_one_graph(layer: fl.Activation, in_one_graph: Compiled) -> None:
    x = torch.randn(5)
    assert_close(in_one_graph(layer, x), layer(x))


def test_the_base_class_can_be_instantiated_without_arguments() -> None:
    assert str(fl.Activation()) == "Activation()"
    assert all(isinstance(layer, fl.Activation) for layer, _ in FORMULAS)
    with pytest.raises(TypeError):
        fl.SiLU(1)  # type: ignore[call-arg]


def test_the_approximation_of_gelu_is_an_attribute_that_is_not_shown() -> None:
    assert fl.GeLU().approximation is fl.GeLUApproximation.NONE
    layer = fl.GeLU(fl.GeLUApproximation.TANH)
    assert layer.approximation is fl.GeLUApproximation.TANH
    assert str(layer) == "GeLU()"
    assert {item.name: item.value for item in fl.GeLUApproximation} == {
        "NONE": "none",
        "TANH": "tanh",
        "SIGMOID": "sigmoid",
    }


def test_glu_multiplies_the_first_half_by_the_activation_of_the_second(in_one_graph: Compiled) -> None:
    x = torch.randn(2, 3, 8)
    expected = x[..., :4] * torch.sigmoid(x[..., 4:])
    layer = fl.GLU(fl.Sigmoid())
    assert torch.equal(layer(x), expected)
    assert torch.equal(in_one_graph(layer, x), expected)


def test_glu_refuses_an_odd_number_of_features() -> None:
    with pytest.raises(AssertionError, match="Non-batch input dimension must be divisible by 2"):
        fl.GLU(fl.ReLU())(torch.ones(4, 3))


@pytest.mark.parametrize("activation", [fl.ReLU(), fl.GeLU()], ids=["by torch", "by the operator"])
def test_glu_refuses_an_input_without_dimensions(activation: fl.Activation) -> None:
    with pytest.raises(ValueError, match=r"x must have at least one dimension, got shape \(\)"):
        fl.GLU(activation)(torch.tensor(1.0))


def test_glu_registers_its_activation_as_a_child() -> None:
    activation = fl.GeLU()
    layer = fl.GLU(activation)
    assert layer.activation is activation
    assert dict(layer.named_children()) == {"activation": activation}
    chain = fl.Chain(layer)
    assert [module for module, _ in chain.walk(recurse=True)] == [layer]  # not a chain: `walk` does not enter it


def test_glu_shows_its_activation_in_repr_and_as_a_branch_of_the_tree() -> None:
    layer = fl.GLU(fl.ReLU())
    assert repr(layer) == "GLU(activation=ReLU())"
    assert str(layer) == "GLU()"
    assert repr(fl.Chain(layer)) == "(CHAIN)\n    └── GLU()\n        └── ReLU()"
