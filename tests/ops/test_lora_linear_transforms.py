"""`lora_linear` where something else looks at it: autocast in the backward pass, torch.func, dual numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from refiners.ops import lora_linear
from refiners.ops.library import native
from refiners.ops.lora_linear import portable

# Of torch's own, when it differentiates in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

X, WEIGHT, BIAS = torch.randn(5, 24), torch.randn(16, 24), torch.randn(16)
DOWNS, UPS, SCALE = [torch.randn(4, 24)], [torch.randn(16, 4)], torch.tensor([0.5])


def ours(x: Tensor) -> Tensor:
    return lora_linear(x, WEIGHT, BIAS, DOWNS, UPS, SCALE)


def formula(x: Tensor) -> Tensor:
    return portable(x, WEIGHT, BIAS, DOWNS, UPS, SCALE)


def test_a_backward_pass_under_autocast_gives_the_gradient() -> None:
    x = torch.randn(512, 256, requires_grad=True)
    weight, down, up = torch.randn(256, 256), torch.randn(4, 256), torch.randn(256, 4)
    y = lora_linear(x, weight, None, [down], [up], SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    expected = torch.ones_like(y) @ (weight + 0.5 * up @ down)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(not native.loaded, reason="the portable path follows autocast like any function of torch")
def test_the_bare_operator_under_autocast_is_refused() -> None:
    x = torch.randn(64, 24)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast is on"):
        torch.ops.refiners.lora_linear.default(x, WEIGHT, BIAS, DOWNS, UPS, SCALE, None)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.jvp(f, (X,), (torch.ones_like(X),))[1],
        lambda f: torch.func.vmap(f)(X),
        lambda f: torch.func.grad(lambda x: f(x).square().sum())(X),
        lambda f: torch.func.jacrev(f)(X[:1]),
        lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x).square().sum()))(X),
    ],
    ids=["jvp", "vmap", "grad", "jacrev", "per-sample grad"],
)
def test_transforms_see_through_it(transform: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> None:
    torch.testing.assert_close(transform(ours), transform(formula))


def test_dual_numbers_keep_their_tangents() -> None:
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        tangent, expected = (forward_ad.unpack_dual(f(dual)).tangent for f in (ours, formula))
    assert expected.norm() > 1
    torch.testing.assert_close(tangent, expected)


def test_meta_tensors_give_a_shape() -> None:
    meta = [tensor.to("meta") for tensor in (X, WEIGHT, BIAS, *DOWNS, *UPS, SCALE)]
    y = lora_linear(meta[0], meta[1], meta[2], [meta[3]], [meta[4]], meta[5])
    assert (y.shape, y.device.type) == ((5, 16), "meta")


def test_autocast_leaves_float64_alone() -> None:
    tensors = [tensor.double() for tensor in (X, WEIGHT, BIAS, *DOWNS, *UPS)]
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_linear(tensors[0], tensors[1], tensors[2], [tensors[3]], [tensors[4]], SCALE)
    assert y.dtype == torch.float64
