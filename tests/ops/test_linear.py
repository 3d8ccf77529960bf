import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.ops import linear
from refiners.ops.library import native
from refiners.ops.linear import _OPERATOR

SHORT = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *SHORT]
# (batch shape, in, out): few rows, which read the weight as it lies, then tiles; ordinary, then each edge alone.
CASES = [
    ((2,), 320, 640),
    ((1,), 1, 1),
    ((3,), 33, 17),
    ((4,), 257, 70),
    ((2, 100), 320, 640),
    ((5,), 1, 1),
    ((7,), 33, 17),
    ((193,), 257, 70),  # more than one block of rows and of depth
    ((9,), 520, 301),  # of depth and of columns
    ((2, 3), 40, 24),
    ((), 32, 48),
    ((0,), 8, 8),
    ((2, 0, 3), 8, 8),
    ((3,), 0, 5),
    ((3,), 5, 0),
]


def make_inputs(batch, in_features, out_features, dtype, bias=True):
    weight = torch.randn(out_features, in_features) / max(in_features, 1) ** 0.5
    x, b = torch.randn(*batch, in_features), torch.randn(out_features) if bias else None
    return x.to(dtype), weight.to(dtype), None if b is None else b.to(dtype)


def relative_error(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def reference(x, weight, bias):
    y = x.double() @ weight.double().T
    return y if bias is None else y + bias.double()


def assert_agrees(y, inputs):
    """The error is at most that of torch and a fifth; of a few elements, one rounding."""
    expected, dtype = reference(*inputs), inputs[0].dtype
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    one_rounding = torch.finfo(dtype).eps / 2 if y.numel() < 1000 else 0.0
    assert relative_error(y, expected) <= max(1.2 * relative_error(F.linear(*inputs), expected), one_rounding)


@pytest.fixture
def needs_kernels(isa):
    if not native.has_kernel("linear", torch.bfloat16):
        pytest.skip("torch multiplies bfloat16 here")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_formula_on_each_instruction_set(case, dtype, bias, isa):
    inputs = make_inputs(*case, dtype=dtype, bias=bias)
    assert_agrees(linear(*inputs), inputs)


def strided_copy(t: Tensor) -> Tensor:
    """The same values with every stride doubled and the dimensions laid out backwards."""
    backwards = torch.zeros([2 * size for size in reversed(t.shape)], dtype=t.dtype)
    view = backwards[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
    return view.copy_(t)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("rows", [2, 6])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_views_of_any_strides_are_taken(index, rows, dtype, isa):
    inputs = list(make_inputs((rows, 3), 40, 70, dtype))
    inputs[index] = strided_copy(inputs[index])
    assert_agrees(linear(*inputs), inputs)


@pytest.mark.parametrize("rows", [2, 50])
def test_a_transposed_weight_and_rows_with_a_gap_are_taken(rows, isa):
    x, weight, bias = make_inputs((rows,), 300, 70, torch.bfloat16)
    wide = torch.full((rows, 400), torch.nan, dtype=x.dtype)
    wide[:, :300] = x
    inputs = wide[:, :300], weight.t().contiguous().t(), bias
    assert_agrees(linear(*inputs), inputs)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("rows", [3, 301])
def test_is_bitwise_the_same_with_any_number_of_threads(rows, dtype, needs_kernels, assert_same_bits):
    inputs = make_inputs((rows,), 520, 600, dtype)
    assert_same_bits(lambda: linear(*inputs))


def test_a_result_is_rounded_once(needs_kernels):
    x, weight, _ = make_inputs((64,), 640, 320, torch.bfloat16)
    rounded = reference(x, weight, None).bfloat16()
    assert (linear(x, weight) != rounded).float().mean() < 0.01  # sums in float32 end on the other side now and then


@pytest.mark.parametrize("rows", [2, 50])
def test_infinities_and_nans_come_through(rows, isa):
    x, weight, bias = make_inputs((rows,), 40, 24, torch.bfloat16)
    x[0, 3], x[1, 5] = torch.inf, torch.nan
    y = linear(x, weight, bias)
    assert y[0].isinf().all()
    assert y[1].isnan().all()
    assert rows == 2 or y[2:].isfinite().all()


@pytest.mark.parametrize("rows", [3, 20])
def test_the_gradients_are_those_of_torch(rows, isa):
    inputs = [t.requires_grad_() for t in make_inputs((2, rows), 40, 24, torch.bfloat16)]
    grad = torch.randn(2, rows, 24).bfloat16()
    found = torch.autograd.grad(linear(*inputs), inputs, grad)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = torch.autograd.grad(F.linear(*wide), wide, grad.double())
    own = torch.autograd.grad(F.linear(*inputs), inputs, grad)
    for a, b, c in zip(found, expected, own, strict=True):
        assert relative_error(a, b) <= max(1.2 * relative_error(c, b), torch.finfo(torch.bfloat16).eps / 2)


def test_second_derivatives_exist(isa):
    x, weight, _ = (t if t is None else t.requires_grad_() for t in make_inputs((6,), 8, 4, torch.bfloat16, bias=False))
    (grad,) = torch.autograd.grad(linear(x, weight).float().square().sum(), x, create_graph=True)
    grad.float().square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bias", [True, False])
def test_passes_opcheck(bias, isa):
    inputs = make_inputs((2, 3), 8, 4, torch.bfloat16, bias=bias)
    torch.library.opcheck(_OPERATOR, inputs)
    torch.library.opcheck(_OPERATOR, tuple(t if t is None else t.requires_grad_() for t in inputs))


def test_one_graph_serves_several_shapes(needs_kernels, assert_one_graph):
    assert_one_graph(linear, [make_inputs((rows,), 40, 24, torch.bfloat16) for rows in (3, 7, 50)], "refiners.linear")


def test_autocast_reaches_the_kernels(needs_kernels):
    inputs = make_inputs((6,), 40, 24, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(*inputs)
    assert torch.equal(y, linear(*(t.bfloat16() for t in inputs)))


def test_autocast_casts_the_gradients_back(isa):
    inputs = [t.requires_grad_() for t in make_inputs((6,), 40, 24, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        linear(*inputs).float().sum().backward()
    assert [t.grad.dtype for t in inputs] == [torch.float32] * 3


def test_transforms_see_through(isa):
    inputs = make_inputs((4, 3), 8, 4, torch.bfloat16)
    mapped = torch.func.vmap(linear, (0, None, None))(*inputs)
    assert torch.equal(mapped, torch.func.vmap(F.linear, (0, None, None))(*inputs))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, b: (x, w[:, 1:], b),
        lambda x, w, b: (x, w.float(), b),
        lambda x, w, b: (x, w, b[1:]),
        lambda x, w, b: (x, w, b.float()),
        lambda x, w, b: (x, w[0], b[:1, None]),
    ],
)
def test_arguments_that_disagree_raise_as_in_torch(wrong, isa):
    arguments = wrong(*make_inputs((3,), 8, 4, torch.bfloat16))
    with pytest.raises(RuntimeError) as expected:
        F.linear(*arguments)
    with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
        linear(*arguments)


def test_the_layer_uses_it_and_keeps_its_name(needs_kernels):
    layer = fl.Linear(8, 4, dtype=torch.bfloat16)
    x = torch.randn(3, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))
        native.use_kernels("linear", False)
        try:
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        finally:
            native.use_kernels("linear", True)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert str(layer) == "Linear(in_features=8, out_features=4, device=cpu, dtype=bfloat16)"


def test_a_layer_in_float32_is_that_of_torch():
    layer, x = fl.Linear(8, 4), torch.randn(3, 8)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


class Doubled(Tensor):
    """A tensor with a linear layer of its own."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        plain = [a.as_subclass(Tensor) if isinstance(a, Doubled) else a for a in args]
        y = func(*plain, **(kwargs or {}))
        return 2 * y if func is F.linear else y


@pytest.mark.parametrize("index", [0, 1])
def test_another_class_of_tensor_keeps_its_own_linear_layer(index, isa):
    x, weight, _ = make_inputs((3,), 8, 4, torch.bfloat16, bias=False)
    arguments = [x, weight]
    arguments[index] = arguments[index].as_subclass(Doubled)
    assert torch.equal(linear(*arguments), 2 * F.linear(x, weight))


@pytest.mark.parametrize("wanted", [0, 1])
def test_what_the_other_gradient_is_made_of_is_saved(wanted):
    tensors = [torch.randn(5, 8).bfloat16(), torch.randn(6, 8).bfloat16()]
    tensors[wanted].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        y = _OPERATOR(*tensors)
    assert saved == [tensors[1 - wanted].data_ptr()]
    y.float().sum().backward()
    plain = [tensor.detach().double().requires_grad_() for tensor in tensors]
    F.linear(*plain).sum().backward()
    error = tensors[wanted].grad.double() - plain[wanted].grad
    assert error.norm() < 0.02 * plain[wanted].grad.norm()
