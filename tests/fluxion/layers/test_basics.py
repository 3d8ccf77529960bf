"""The leaves without weights: what they return, and that it is the argument itself where the layer says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import refiners.fluxion.layers as fl

Compiled = Callable[..., Any]  # the fixture `in_one_graph`

SLICES = [
    {"dim": 0, "start": 2, "end": 5},
    {"dim": 1, "start": -3, "end": -1},
    {"dim": 1, "start": 1, "end": None},
    {"dim": 0, "start": 0, "end": 5, "step": 2},
    {"dim": 0, "start": 3, "end": 3},
    {"dim": 2, "start": 0, "end": None},
    {"dim": 0, "start": 1, "end": 3, "step": 4},
    {"dim": 0, "start": 4, "end": 2},
    {"dim": 1, "start": -10, "end": 10},
    {"dim": -1, "start": 1, "end": -1, "step": 3},
]


def test_identity_returns_its_argument() -> None:
    argument = object()
    assert fl.Identity()(argument) is argument


def test_get_arg_returns_the_argument_itself() -> None:
    arguments = (object(), object(), object())
    assert [fl.GetArg(i)(*arguments) for i in (0, 1, -1)] == [arguments[0], arguments[1], arguments[2]]
    with pytest.raises(IndexError):
        fl.GetArg(3)(*arguments)


def test_flatten_begins_at_the_batch_unless_told_otherwise() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(fl.Flatten()(x), torch.arange(24))
    assert torch.equal(fl.Flatten(1)(x), x.reshape(2, 12))
    assert torch.equal(fl.Flatten(start_dim=0, end_dim=1)(x), x.reshape(6, 4))


def test_unflatten_takes_the_sizes_as_second_argument() -> None:
    x = torch.arange(24).reshape(2, 12)
    assert torch.equal(fl.Unflatten(dim=1)(x, (3, 4)), x.reshape(2, 3, 4))
    assert torch.equal(fl.Unflatten(-1)(x, torch.Size([3, -1])), x.reshape(2, 3, 4))


def test_reshape_keeps_the_batch() -> None:
    x = torch.arange(24).reshape(2, 12)
    layer = fl.Reshape(3, -1)
    assert layer.shape == (3, -1)
    assert torch.equal(layer(x), x.reshape(2, 3, 4))
    assert fl.Reshape(3, 4)(x[:0]).shape == (0, 3, 4)
    with pytest.raises(RuntimeError):
        fl.Reshape(24)(x)


def test_dimensions_are_moved_as_in_torch() -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    assert torch.equal(fl.Transpose(0, 2)(x), x.permute(2, 1, 0))
    assert torch.equal(fl.Permute(1, 2, 0)(x), x.movedim(0, 2))
    assert fl.Permute(1, 2, 0).dims == (1, 2, 0)
    assert fl.Unsqueeze(1)(x).shape == (2, 1, 3, 4)
    assert fl.Squeeze(1)(x[:, :1]).shape == (2, 4)
    assert fl.Squeeze(1)(x).shape == (2, 3, 4)


@pytest.mark.parametrize("arguments", SLICES, ids=str)
def test_slicing_equals_python_slicing(arguments: dict[str, int | None]) -> None:
    x = torch.randn(5, 4, 7)
    bounds = slice(arguments["start"], arguments["end"], arguments.get("step", 1))
    index = [slice(None)] * 3
    index[arguments["dim"] or 0] = bounds
    y = fl.Slicing(**arguments)(x)  # type: ignore[arg-type]
    assert torch.equal(y, x[tuple(index)])
    assert y.shape == x[tuple(index)].shape


def test_slicing_takes_an_end_of_zero_for_the_end() -> None:
    x = torch.randn(5, 4)
    assert torch.equal(fl.Slicing(dim=0, start=-2, end=0)(x), x[-2:])


def test_an_empty_slice_keeps_dtype_and_device(device: torch.device) -> None:
    y = fl.Slicing(dim=1, start=3, end=3)(torch.ones(2, 4, dtype=torch.int16, device=device))
    assert (y.shape, y.dtype, y.device.type) == ((2, 0), torch.int16, device.type)


def test_a_slice_is_a_view() -> None:
    x = torch.randn(5, 4)
    assert fl.Slicing(dim=1, start=1, step=2)(x).data_ptr() == x[:, 1:].data_ptr()


@pytest.mark.parametrize("step", [0, -1])
def test_slicing_refuses_a_step_that_is_not_positive(step: int) -> None:
    with pytest.raises(ValueError, match=f"step must be at least 1, got {step}"):
        fl.Slicing(step=step)


def test_slicing_refuses_a_dimension_that_is_not_there() -> None:
    with pytest.raises(IndexError):
        fl.Slicing(dim=2)(torch.ones(2, 2))


def test_sine_and_cosine() -> None:
    x = torch.randn(7)
    assert torch.equal(fl.Sin()(x), torch.sin(x))
    assert torch.equal(fl.Cos()(x), torch.cos(x))


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.5, 1])
@pytest.mark.parametrize("bias", [0.0, 0.75, 0])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int64, torch.bool]
)
def test_multiply_is_its_formula_in_value_and_dtype(scale: float, bias: float, dtype: torch.dtype) -> None:
    x = torch.randn(50).mul(3).to(dtype)
    expected = scale * x + bias
    y = fl.Multiply(scale, bias)(x)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)


def test_multiply_by_default_returns_its_argument() -> None:
    x = torch.randn(3)
    assert fl.Multiply()(x) is x


def test_multiply_never_writes_to_its_argument() -> None:
    x = torch.ones(3)
    for layer in (fl.Multiply(2.0), fl.Multiply(1.0, 2.0), fl.Multiply(2.0, 3.0)):
        layer(x)
    assert torch.equal(x, torch.ones(3))


def test_changes_of_multiply_hold_from_the_next_call_on() -> None:
    layer, x = fl.Multiply(), torch.ones(2)
    layer.scale = 3.0
    assert torch.equal(layer(x), 3 * x)
    layer.bias = 0.5
    assert torch.equal(layer(x), 3 * x + 0.5)
    assert str(layer) == "Multiply(scale=3.0, bias=0.5)"


def test_parameter_is_expanded_over_the_batch() -> None:
    layer = fl.Parameter(3, 4, dtype=torch.float64)
    y = layer(torch.ones(5, 7, 2))
    assert y.shape == (5, 3, 4)
    assert torch.equal(y, layer.weight.detach().expand(5, 3, 4))
    assert y.data_ptr() == layer.weight.data_ptr()
    assert (layer.dims, layer.dtype, list(layer.state_dict())) == ((3, 4), torch.float64, ["weight"])
    assert isinstance(layer, fl.WeightedModule)


def test_parameter_is_drawn_from_the_normal_distribution() -> None:
    torch.manual_seed(3)
    expected = torch.randn(3, 4)
    torch.manual_seed(3)
    assert torch.equal(fl.Parameter(3, 4).weight, expected)


def test_requires_grad_of_a_parameter_is_that_of_its_weight() -> None:
    layer = fl.Parameter(2, requires_grad=False)
    assert not layer.requires_grad
    assert not layer.weight.requires_grad
    layer.requires_grad = True
    assert layer.weight.requires_grad
    layer(torch.ones(3, 1)).sum().backward()
    assert layer.weight.grad is not None
    assert_close(layer.weight.grad, torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (fl.Identity(), "Identity()"),
        (fl.GetArg(1), "GetArg(index=1)"),
        (fl.Flatten(1), "Flatten(start_dim=1)"),
        (fl.Unflatten(2), "Unflatten(dim=2)"),
        (fl.Reshape(2, 3), "Reshape(shape=(2, 3))"),
        (fl.Transpose(1, 2), "Transpose(dim0=1, dim1=2)"),
        (fl.Permute(1, 0), "Permute(dims=(1, 0))"),
        (fl.Slicing(1, 2, 3, 4), "Slicing(dim=1, start=2, end=3, step=4)"),
        (fl.Squeeze(1), "Squeeze(dim=1)"),
        (fl.Unsqueeze(1), "Unsqueeze(dim=1)"),
        (fl.Multiply(2.0), "Multiply(scale=2.0)"),
        (fl.Parameter(2, 3), "Parameter(dims=(2, 3), device=cpu, dtype=float32)"),
    ],
    ids=str,
)
def test_a_leaf_shows_what_it_was_built_with(layer: fl.Module, text: str) -> None:
    assert str(layer) == text


@pytest.mark.parametrize(
    "layer",
    [
        fl.Identity(),
        fl.Flatten(1),
        fl.Reshape(3, 2, 2),
        fl.Transpose(1, 2),
        fl.Permute(2, 0, 1),
        fl.Slicing(1, -2, 4, 2),
        fl.Slicing(0, 4, 2),
        fl.Squeeze(0),
        fl.Unsqueeze(-1),
        fl.Sin(),
        fl.Cos(),
        fl.Multiply(2.0, 1.0),
        fl.Multiply(),
        fl.Parameter(3),
    ],
    ids=str,
)
def test_a_leaf_compiles_into_one_graph(layer: fl.Module, in_one_graph: Compiled) -> None:
    x: Tensor = torch.randn(4, 3, 4)
    assert_close(in_one_graph(layer, x), layer(x))


def test_leaves_of_several_arguments_compile_into_one_graph(in_one_graph: Compiled) -> None:
    chain = fl.Chain(fl.Parallel(fl.GetArg(1), fl.Lambda(lambda x, y: (2, 2))), fl.Unflatten(1))
    x, y = torch.randn(3), torch.randn(3, 4)
    assert torch.equal(in_one_graph(chain, x, y), y.reshape(3, 2, 2))


def test_a_learnable_factor_is_a_parameter() -> None:
    layer = fl.Multiply(torch.nn.Parameter(torch.tensor(0.5)))
    assert list(layer.state_dict()) == ["scale"]
    assert layer.to(torch.float64)(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
