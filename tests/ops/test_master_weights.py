"""Updates in float32 beside layers in 16 bits: results rounded to these, gradients in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.library import opcheck

from refiners.ops.lora_linear_masters import are_master_weights, lora_linear_masters
from refiners.ops.low_rank_conv2d_masters import low_rank_conv2d_masters

SHORT = [torch.bfloat16, torch.float16]


def relative(ours, expected):
    return ((ours.double() - expected.double()).norm() / expected.double().norm()).item()


def with_masters(inputs):
    """The inputs with matrices that a 16-bit dtype does not hold, as leaves that want gradients."""
    wide = [[torch.randn(t.shape, device=t.device) / t.shape[1] ** 0.5 for t in group] for group in inputs[3:5]]
    inputs = inputs._replace(downs=wide[0], ups=wide[1])
    for tensor in (inputs.x, *inputs.downs, *inputs.ups):
        tensor.requires_grad_()
    return inputs


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("lead", [0, 1, 2])
def test_a_linear_layer_and_its_gradients(lead, dtype, isa, device, make_inputs, reference):
    inputs = with_masters(make_inputs((3, 50), 64, 48, (4, 9), lead=lead, dtype=dtype, device=device))
    grad = torch.randn(3, 50, 48, device=device).to(dtype)
    y = lora_linear_masters(*inputs)
    y.backward(grad)
    wide = inputs.map(lambda t: t.detach().double().requires_grad_())
    expected = reference(*wide)
    expected.backward(grad.double())
    assert y.dtype == dtype and relative(y, expected) < 2 * torch.finfo(dtype).eps
    assert relative(inputs.x.grad, wide.x.grad) < 2 * torch.finfo(dtype).eps
    for mine, other in zip((*inputs.downs, *inputs.ups), (*wide.downs, *wide.ups), strict=True):
        assert mine.grad.dtype == torch.float32 and relative(mine.grad, other.grad) < 1e-6


def test_pairs_of_both_dtypes_stand_side_by_side(make_inputs, reference):
    inputs = make_inputs((3, 5), 24, 20, (4, 4), dtype=torch.bfloat16)
    downs, ups = [inputs.downs[0], inputs.downs[1].float()], [inputs.ups[0], inputs.ups[1].float()]
    leaves = [tensor.requires_grad_() for tensor in (*downs, *ups)]
    y = lora_linear_masters(*inputs._replace(downs=downs, ups=ups))
    y.float().sum().backward()
    assert relative(y, reference(*inputs)) < 2 * torch.finfo(torch.bfloat16).eps
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32] * 2


def test_the_gradient_of_the_scale(make_inputs, reference):
    inputs = with_masters(make_inputs((3, 5), 24, 20, (4, 2), lead=1, dtype=torch.bfloat16))
    inputs.scale.requires_grad_()
    lora_linear_masters(*inputs).float().sum().backward()
    wide = inputs.map(lambda t: t.detach().double().requires_grad_())
    reference(*wide).sum().backward()
    assert relative(inputs.scale.grad, wide.scale.grad) < 1e-5


def test_where_nothing_is_recorded_it_is_the_operator_of_rounded_matrices(isa, make_inputs, reference):
    inputs = with_masters(make_inputs((3, 5), 24, 20, (4,), dtype=torch.bfloat16))
    with torch.no_grad():
        y = lora_linear_masters(*inputs)
    assert not y.requires_grad and torch.equal(y, lora_linear_masters(*inputs))


def test_only_arguments_are_saved(make_inputs):
    inputs = with_masters(make_inputs((3, 5), 8, 6, (2,), dtype=torch.bfloat16))
    x = inputs.x.detach()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        lora_linear_masters(x, *inputs[1:])
    assert set(saved) == {t.data_ptr() for t in (x, inputs.weight, inputs.scale, *inputs.downs, *inputs.ups)}


def test_under_transforms(make_inputs, reference):
    inputs = with_masters(make_inputs((3, 5), 8, 6, (2,), dtype=torch.bfloat16))
    mapped = torch.func.vmap(lambda x: lora_linear_masters(x, *inputs[1:]))(inputs.x)
    assert relative(mapped, reference(*inputs)) < 2 * torch.finfo(torch.bfloat16).eps


def test_arguments_that_disagree_are_named(make_inputs):
    inputs = with_masters(make_inputs((3, 5), 8, 6, (2,), dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"downs\[0\] must be \(2, 8\), got \(2, 7\)"):
        lora_linear_masters(*inputs._replace(downs=[torch.zeros(2, 7)]))
    with pytest.raises(TypeError, match=r"ups\[0\] must be torch.bfloat16, the dtype of x, got torch.float64"):
        lora_linear_masters(*inputs._replace(ups=[torch.zeros(6, 2, dtype=torch.float64)]))


def test_which_matrices_are_master_weights():
    wide, short = torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bfloat16)
    assert are_master_weights(wide, wide, torch.bfloat16) and are_master_weights(wide, wide, torch.float16)
    for down, up, dtype in (
        (wide, wide, torch.float32),
        (wide, wide, torch.float64),
        (short, wide, torch.bfloat16),
        (wide, short, torch.bfloat16),
        (wide.double(), wide.double(), torch.bfloat16),
    ):
        assert not are_master_weights(down, up, dtype)


def test_opcheck_of_the_linear_layer(make_inputs):
    inputs = with_masters(make_inputs((3, 5), 8, 6, (2, 3), lead=1, dtype=torch.bfloat16))
    opcheck(torch.ops.refiners._lora_linear_masters.default, tuple(inputs))


# --- convolutions -----------------------------------------------------------------------------------------------------

# (stride, padding, dilation) of kernels of 3 × 5.
GEOMETRIES = [([1, 1], [1, 2], [1, 1]), ([2, 1], [1, 0], [1, 1]), ([1, 3], [0, 2], [2, 1])]


def make_images(dtype, device="cpu"):
    x = torch.randn(2, 18, 12, 13, device=device).to(dtype)
    return x, torch.randn(4, 18, 3, 5, device=device) / 16, torch.randn(20, 4, 1, 1, device=device) / 2


def convolve(x, down, up, stride, padding, dilation):
    return F.conv2d(F.conv2d(x, down, None, stride, padding, dilation), up)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_and_its_gradients(geometry, dtype, device):
    tensors = [tensor.requires_grad_() for tensor in make_images(dtype, device)]
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y, expected = low_rank_conv2d_masters(*tensors, *geometry), convolve(*wide, *geometry)
    grad = torch.randn(y.shape, device=device).to(dtype)
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype and relative(y, expected) < 2 * torch.finfo(dtype).eps
    assert relative(tensors[0].grad, wide[0].grad) < torch.finfo(dtype).eps
    for mine, other in zip(tensors[1:], wide[1:], strict=True):
        assert mine.grad.dtype == torch.float32 and relative(mine.grad, other.grad) < 2e-6


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_only_what_requires_a_gradient_gets_one(wanted):
    tensors = list(make_images(torch.bfloat16))
    tensors[wanted].requires_grad_()
    low_rank_conv2d_masters(*tensors, *GEOMETRIES[0]).float().sum().backward()
    assert [tensor.grad is not None for tensor in tensors] == [index == wanted for index in range(3)]


def test_gradients_have_gradients():
    tensors = [tensor.double().requires_grad_() for tensor in make_images(torch.float64)]
    x, down, up = (tensor[:, :2].detach()[:2].clone().requires_grad_() for tensor in tensors)
    function = lambda *args: low_rank_conv2d_masters(*args, [2, 1], [1, 0], [1, 1])  # noqa: E731
    x = x[..., :5, :6].detach().clone().requires_grad_()
    assert gradcheck(function, (x, down, up))
    torch.autograd.gradgradcheck(function, (x, down, up))


def test_what_is_between_two_convolutions_is_not_saved():
    x, down, up = make_images(torch.bfloat16)
    down.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        low_rank_conv2d_masters(x, down, up, *GEOMETRIES[0])
    assert set(saved) == {t.data_ptr() for t in (x, down, up)}


def test_opcheck_of_the_convolution():
    tensors = [tensor.requires_grad_() for tensor in make_images(torch.bfloat16)]
    opcheck(torch.ops.refiners._low_rank_conv2d_masters.default, (*tensors, *GEOMETRIES[1]))
