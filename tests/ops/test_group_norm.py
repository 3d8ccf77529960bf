import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.ops import group_norm
from refiners.ops.group_norm import _OPERATOR
from refiners.ops.library import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# (shape, groups): an ordinary one, then each edge alone.
CASES = [
    ((2, 64, 16, 16), 32),
    ((2, 320, 9, 7), 32),
    ((3, 6), 3),
    ((2, 7, 5), 7),
    ((1, 33, 3, 3), 11),
    ((2, 12, 70, 67), 1),
    ((1, 5, 2, 3, 4), 5),
    ((2, 8, 1, 9000), 2),
    ((0, 8, 4, 4), 2),
    ((2, 8, 0, 4), 2),
]


def make_inputs(shape, dtype):
    channels = shape[1]
    return {
        "x": (torch.randn(shape) + torch.randn(channels, *[1] * (len(shape) - 2))).to(dtype),
        "weight": torch.randn(channels).to(dtype),
        "bias": torch.randn(channels).to(dtype),
        "add": torch.randn(shape[:2]).to(dtype),
    }


def by_torch(x, groups, weight=None, bias=None, add=None, eps=1e-5, silu=False):
    if add is not None:
        x = x + add.reshape(*add.shape, *[1] * (x.dim() - 2))
    y = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(y) if silu else y


def in_double(inputs):
    return {name: value.double() for name, value in inputs.items()}


def relative_error(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_agrees(y, inputs, groups, **options):
    expected, dtype = by_torch(**in_double(inputs), groups=groups, **options), inputs["x"].dtype
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    torch_error = relative_error(by_torch(**inputs, groups=groups, **options), expected)
    assert relative_error(y, expected) <= max(1.2 * torch_error, 2 * torch.finfo(dtype).eps * (y.numel() < 1000))


def channels_last(x: Tensor) -> Tensor:
    """The same values with the channels next to each other, in any number of dimensions."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.fixture
def needs_kernels(isa):
    if not native.has_kernel("group_norm", torch.float32):
        pytest.skip("there is no kernel in use")


@pytest.mark.filterwarnings("ignore:An output with one or more elements")
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_as_exact_as_torch_in_each_layout(case, dtype, layout, isa):
    shape, groups = case
    inputs = make_inputs(shape, dtype)
    inputs["x"] = layout(inputs["x"])
    assert_agrees(group_norm(**inputs, groups=groups, silu=True), inputs, groups, silu=True)


@pytest.mark.parametrize("left_out", ["weight", "bias", "add"])
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_each_vector_may_be_left_out(left_out, layout, isa):
    inputs = make_inputs((2, 24, 5, 5), torch.float32)
    inputs["x"] = layout(inputs["x"])
    del inputs[left_out]
    assert_agrees(group_norm(**inputs, groups=4, eps=0.1), inputs, 4, eps=0.1)


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_a_far_mean_costs_no_precision(layout, needs_kernels):
    x = layout(torch.randn(2, 16, 33, 31) + 1000)
    expected = F.group_norm(x.double(), 4)
    assert relative_error(group_norm(x, 4), expected) <= 1e-4  # x itself is rounded to 6e-5 of its deviation


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("value", [1000.1, 12345.6, -3e-5])
def test_a_constant_group_gives_the_bias(value, layout, needs_kernels):
    x, bias = layout(torch.full((2, 8, 9, 7), value)), torch.randn(8)
    assert torch.equal(group_norm(x, 2, torch.randn(8), bias), bias.reshape(8, 1, 1).expand(2, 8, 9, 7))


def test_the_memory_format_stays(isa):
    x = torch.randn(2, 8, 4, 4)
    assert group_norm(x, 2).is_contiguous()
    assert group_norm(x.to(memory_format=torch.channels_last), 2).is_contiguous(memory_format=torch.channels_last)


def test_views_of_any_strides_are_taken(isa):
    x, vector = torch.randn(4, 16, 10, 6), torch.randn(16)
    for view in (
        x[:, ::2],
        x[::2],
        x[..., ::2],
        x.transpose(2, 3),
        x.transpose(0, 1),
        x[:, :8],
        x.expand(4, 16, 10, 6),
    ):
        channels = view.shape[1]
        weight = torch.randn(2 * channels)[::2]
        expected = F.group_norm(view.contiguous(), 2, weight.contiguous())
        torch.testing.assert_close(group_norm(view, 2, weight), expected)
    add = vector.reshape(1, 16).expand(4, 16)
    torch.testing.assert_close(group_norm(x, 4, add=add), F.group_norm(x + vector.reshape(16, 1, 1), 4))


@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
def test_is_bitwise_the_same_with_any_number_of_threads(layout, needs_kernels, assert_same_bits):
    x = layout(torch.randn(3, 64, 60, 60))
    assert_same_bits(lambda: group_norm(x, 8, silu=True))


@pytest.mark.parametrize("silu", [False, True])
def test_gradients(silu, isa):
    inputs = {name: t.requires_grad_() for name, t in make_inputs((2, 6, 3, 2), torch.float64).items()}
    x, weight, bias, add = inputs.values()
    function = lambda *tensors: _OPERATOR(tensors[0], 3, *tensors[1:], 1e-5, silu)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, weight, bias, add))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias, add))


def test_gradients_in_bfloat16_are_as_exact_as_those_of_torch(isa):
    inputs = make_inputs((2, 12, 5, 5), torch.bfloat16)
    grad = torch.randn(2, 12, 5, 5)

    def gradients(function, dtype):
        tensors = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
        return torch.autograd.grad(function(**tensors, groups=3, silu=True), list(tensors.values()), grad.to(dtype))

    found, own = gradients(group_norm, torch.bfloat16), gradients(by_torch, torch.bfloat16)
    expected = gradients(by_torch, torch.float64)
    for a, b, c in zip(found, own, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert relative_error(a, c) <= max(1.2 * relative_error(b, c), torch.finfo(torch.bfloat16).eps)


def test_passes_opcheck(isa):
    x, weight, bias, add = make_inputs((2, 6, 3, 2), torch.float32).values()
    torch.library.opcheck(_OPERATOR, (x, 3, weight, bias, add, 1e-5, True))
    torch.library.opcheck(_OPERATOR, (channels_last(x), 3))
    torch.library.opcheck(_OPERATOR, (x.requires_grad_(), 3, weight.requires_grad_()))


def test_one_graph_serves_several_shapes(needs_kernels, assert_one_graph):
    inputs = [(torch.randn(2, 8, size, size + 1), 4) for size in (3, 7, 20)]
    assert_one_graph(group_norm, inputs, "refiners.group_norm")


def test_transforms_see_through(isa):
    x = torch.randn(3, 2, 8, 4)
    mapped = torch.func.vmap(lambda x: group_norm(x, 2))(x)
    torch.testing.assert_close(mapped.flatten(0, 1), F.group_norm(x.flatten(0, 1), 2))


def test_dtypes_may_differ_as_in_torch(isa):
    x, weight = torch.randn(2, 8, 3, 3).bfloat16(), torch.randn(8)
    assert torch.equal(group_norm(x, 2, weight, weight), F.group_norm(x, 2, weight, weight))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(group_norm(x, 2, weight), F.group_norm(x, 2, weight))


WRONG = [
    ({"x": torch.ones(3)}, r"x must be \(batch, channels, ...\), got \(3,\)"),
    ({"groups": 3}, "groups must divide the 8 channels of x, got 3"),
    ({"groups": 0}, "groups must divide the 8 channels of x, got 0"),
    ({"weight": torch.ones(7)}, r"weight must be \(8,\), got \(7,\)"),
    ({"bias": torch.ones(8, 1)}, r"bias must be \(8,\), got \(8, 1\)"),
    ({"add": torch.ones(1, 8)}, r"add must be \(2, 8\), got \(1, 8\)"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_an_argument_that_disagrees_is_named(wrong, message):
    with pytest.raises(ValueError, match=f"group_norm: {message}"):
        group_norm(**{"x": torch.ones(2, 8, 3, 3), "groups": 2, **wrong})


def test_the_layer_computes_by_it(needs_kernels):
    layer, x = fl.GroupNorm(8, 2), torch.randn(2, 8, 3, 3)
    with torch.no_grad():
        layer.weight.normal_()
        assert torch.equal(layer(x), group_norm(x, 2, layer.weight, layer.bias, eps=layer.eps))
    assert set(layer.state_dict()) == {"weight", "bias"}
