"""The gradients of `conv2d`, and what else looks at it: the compiler, function transforms, autocast."""

import pytest
import torch
import torch.nn.functional as F
from conv2d_reference import CASES, SHORT, by_torch, channels_last, convert, make_inputs, relative_error
from torch import Tensor

from refiners.ops import conv2d
from refiners.ops.conv2d import _OPERATOR


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": (0, 1), "groups": 2}], ids=str)
def test_gradients(silu, options, isa):
    tensors = [t.requires_grad_() for t in make_inputs((2, 4, 5, 4), 2, 3, options, torch.float64).values()]
    function = lambda *inputs: conv2d(*inputs, **options, silu=silu)  # noqa: E731
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    pairs = [[value] * 2 if isinstance(value, int) else value for value in list(given.values())[:3]]
    operator = lambda *inputs: _OPERATOR(*inputs, *pairs, given["groups"], silu)  # noqa: E731
    for each in (function, operator):
        assert torch.autograd.gradcheck(each, tensors)
        assert torch.autograd.gradgradcheck(each, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT], ids=str)
def test_gradients_are_as_exact_as_those_of_torch(dtype, isa):
    inputs, grad = make_inputs((2, 20, 9, 8), 24, 3, {"padding": 1}, dtype), torch.randn(2, 24, 9, 8).to(dtype)

    def gradients(function, dtype):
        tensors = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
        return torch.autograd.grad(function(**tensors, padding=1, silu=True), list(tensors.values()), grad.to(dtype))

    for ours, theirs, expected in zip(
        gradients(conv2d, dtype), gradients(by_torch, dtype), gradients(by_torch, torch.float64), strict=True
    ):
        assert ours.dtype == dtype
        assert relative_error(ours, expected) <= max(1.2 * relative_error(theirs, expected), torch.finfo(dtype).eps)


def test_only_what_needs_a_gradient_gets_one(isa):
    inputs = make_inputs((2, 16, 6, 6), 16, 3, {}, torch.float32)
    for name in inputs:
        tensors = {other: value.detach().requires_grad_(other == name) for other, value in inputs.items()}
        conv2d(**tensors).square().sum().backward()
        assert [other for other, value in tensors.items() if value.grad is not None] == [name]
    with torch.no_grad():
        assert not conv2d(**tensors).requires_grad


@pytest.mark.parametrize(
    ("case", "layout"),
    [(CASES[0], Tensor.contiguous), (CASES[0], channels_last), (CASES[9], channels_last), (CASES[15], channels_last)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_opcheck(case, layout, isa):
    inputs, options = make_inputs(*case, torch.float32), case[-1]
    inputs["x"] = layout(inputs["x"])
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
    pairs = [[value] * 2 for value in list(given.values())[:3]]
    tensors = [value.requires_grad_() for value in inputs.values()]
    torch.library.opcheck(_OPERATOR, (*tensors, *pairs, given["groups"], True))


def test_opcheck_with_defaults(isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32)
    torch.library.opcheck(_OPERATOR, (inputs["x"], inputs["weight"]))


def test_is_compiled_into_one_graph(needs_conv2d_kernels, assert_one_graph):
    weight = torch.randn(16, 16, 3, 3)
    inputs = [[channels_last(torch.randn(2, 16, size, size)), weight] for size in (8, 12, 20)]
    assert_one_graph(lambda x, w: conv2d(x, w, padding=1, silu=True), inputs, "conv2d")


def test_transforms_see_through(isa):
    x, weight = torch.randn(3, 2, 16, 8, 8), torch.randn(16, 16, 3, 3)
    expected = torch.stack([F.conv2d(each, weight) for each in x])
    torch.testing.assert_close(torch.func.vmap(lambda each: conv2d(each, weight))(x), expected)
    slope = torch.func.grad(lambda t: conv2d(x[0], t).square().sum() / 2)(weight)
    torch.testing.assert_close((slope * weight).sum(), expected[0].square().sum())


def test_autocast_casts(isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(**inputs)
    expected = by_torch(**convert(convert(inputs, torch.bfloat16), torch.float64))
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 1e-2


@pytest.mark.parametrize("change", [{"x": torch.int32}, {"weight": torch.float64}, {"weight": torch.int64}], ids=str)
def test_autocast_refuses_what_that_of_torch_refuses(change, isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32, ())
    inputs = {name: value.to(change.get(name, value.dtype)) for name, value in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError) as theirs:
            F.conv2d(**inputs)
        with pytest.raises(RuntimeError) as ours:
            conv2d(**inputs)
    assert str(ours.value) == str(theirs.value)


def test_the_bare_operator_tells_of_autocast(needs_conv2d_kernels):
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(24, 16, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast is on"):
        _OPERATOR(x, weight, stride=[2, 2])  # which torch computes


@pytest.mark.parametrize("wanted", [0, 1])
def test_the_input_is_saved_for_the_gradient_of_the_weight_alone(wanted):
    tensors = [torch.randn(2, 4, 7, 6), torch.randn(5, 4, 3, 3)]
    tensors[wanted].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        y = _OPERATOR(*tensors, stride=[2, 1], padding=[1, 1])
    assert saved == [tensor.data_ptr() for tensor in (tensors if wanted else tensors[1:])]
    y.float().sum().backward()
    plain = [tensor.detach().double().requires_grad_() for tensor in tensors]
    F.conv2d(*plain, None, (2, 1), 1).sum().backward()
    error = tensors[wanted].grad.double() - plain[wanted].grad
    assert error.norm() < 0.02 * plain[wanted].grad.norm()


def test_behind_a_silu_the_input_of_a_frozen_convolution_is_needed_too():
    x, weight = torch.randn(2, 4, 7, 6, requires_grad=True), torch.randn(5, 4, 3, 3)
    (grad,) = torch.autograd.grad(_OPERATOR(x, weight, silu=True).sum(), x)
    (expected,) = torch.autograd.grad(F.silu(F.conv2d(x, weight)).sum(), x)
    assert relative_error(grad, expected.double()) < 1e-6
