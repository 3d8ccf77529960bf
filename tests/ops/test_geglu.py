import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.ops import geglu
from refiners.ops.geglu import _OPERATOR
from refiners.ops.library import native

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 77, 640), (3, 2), (5, 34), (1, 30), (2,), (0, 8), (4, 0), (2, 0, 6), (1000, 20)]


def reference(x: Tensor, tanh: bool) -> Tensor:
    values, gates = x.double().chunk(2, dim=-1)
    return values * F.gelu(gates, approximate="tanh" if tanh else "none")


def by_torch(x: Tensor, tanh: bool) -> Tensor:
    values, gates = x.chunk(2, dim=-1)
    return values * F.gelu(gates, approximate="tanh" if tanh else "none")


def relative_error(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.fixture
def needs_kernels(isa):
    if not native.has_kernel("geglu", torch.float32):
        pytest.skip("there is no kernel in use")


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_exact_as_torch_on_each_instruction_set(shape, dtype, tanh, isa):
    x = (3 * torch.randn(shape)).to(dtype)
    y, expected = geglu(x, tanh), reference(x, tanh)
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    assert relative_error(y, expected) <= max(
        1.2 * relative_error(by_torch(x, tanh), expected), 2 * torch.finfo(dtype).eps * (y.numel() < 1000)
    )


@pytest.mark.parametrize("tanh", [False, True])
def test_every_gate_is_right(tanh, needs_kernels):
    gates = torch.linspace(-14, 14, 20001)
    x = torch.stack([torch.ones_like(gates), gates], dim=1)
    y, z = geglu(x, tanh)[:, 0].double(), gates.double()
    if tanh:
        expected = z * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))
    else:
        expected = z * torch.special.erfc(-z / 2**0.5) / 2
    assert ((y - expected).abs() <= 2e-5 * expected.abs() + 1e-30).all()  # in the tails too, where torch cancels


@pytest.mark.parametrize("tanh", [False, True])
def test_infinities_and_nans_are_those_of_torch(tanh, isa):
    odd = [torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 0.0, -0.0]
    x = torch.tensor([[1.0, gate] for gate in odd] + [[value, 1.0] for value in odd])
    torch.testing.assert_close(geglu(x, tanh), by_torch(x, tanh), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_any_strides_are_taken(dtype, isa):
    x = torch.randn(6, 40, 3).to(dtype)
    for view in (x.transpose(1, 2), x.permute(2, 0, 1), torch.randn(5, 80).to(dtype)[:, ::2], x[:, :22, 0]):
        torch.testing.assert_close(geglu(view), geglu(view.contiguous()))


def test_is_bitwise_the_same_with_any_number_of_threads(needs_kernels, assert_same_bits):
    x = torch.randn(5000, 66)
    assert_same_bits(lambda: geglu(x))


@pytest.mark.parametrize("tanh", [False, True])
def test_gradients(tanh, isa):
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _OPERATOR(x, tanh), x)
    assert torch.autograd.gradgradcheck(lambda x: _OPERATOR(x, tanh), x)
    y = torch.randn(3, 8, requires_grad=True)
    (found,) = torch.autograd.grad(geglu(y, tanh).sum(), y)
    (expected,) = torch.autograd.grad(by_torch(y, tanh).sum(), y)
    torch.testing.assert_close(found, expected)


def test_passes_opcheck(isa):
    torch.library.opcheck(_OPERATOR, (torch.randn(3, 8),))
    torch.library.opcheck(_OPERATOR, (torch.randn(3, 8, requires_grad=True), True))


def test_one_graph_serves_several_shapes(needs_kernels, assert_one_graph):
    assert_one_graph(geglu, [(torch.randn(rows, 40),) for rows in (3, 7, 50)], "refiners.geglu")


def test_transforms_see_through(isa):
    x = torch.randn(4, 3, 8)
    torch.testing.assert_close(torch.func.vmap(geglu)(x), by_torch(x, False))
    torch.testing.assert_close(
        torch.func.grad(lambda x: geglu(x).sum())(x), torch.func.grad(lambda x: by_torch(x, False).sum())(x)
    )


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_an_odd_number_of_features_raises(shape):
    with pytest.raises(ValueError, match="geglu: x must have an even number of features, got shape"):
        geglu(torch.randn(shape))


@pytest.mark.parametrize("approximation", fl.GeLUApproximation)
def test_the_layer_computes_what_its_parts_do(approximation, isa):
    layer, x = fl.GLU(fl.GeLU(approximation)), torch.randn(4, 10, 32)
    values, gates = x.chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), values * layer.activation(gates))


def test_the_layer_calls_an_activation_that_has_hooks(isa):
    layer, seen = fl.GLU(fl.GeLU()), []
    layer.activation.register_forward_hook(lambda module, args, y: seen.append(y.shape))
    layer(torch.randn(4, 32))
    assert seen == [(4, 16)]


def test_the_layer_calls_a_subclass_of_the_activation(isa):
    class Half(fl.GeLU):
        def forward(self, x: Tensor) -> Tensor:
            return x / 2

    x = torch.randn(4, 32)
    assert torch.equal(fl.GLU(Half())(x), x[:, :16] * x[:, 16:] / 2)
