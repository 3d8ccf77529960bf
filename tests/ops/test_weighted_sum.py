from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from refiners.ops import weighted_sum
from refiners.ops.library import native
from refiners.ops.weighted_sum import _OPERATOR

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
FACTORS = (0.75, -1.5, 2.0, 0.0, 1e-3, -0.3, 1.0)
SHAPES = [(2, 4, 64, 64), (), (1,), (0,), (3, 0, 2), (31,), (33,), (5, 7, 3), (70001,)]
# The dtypes of the terms, and of the result where it is given.
DTYPES: list[tuple[Sequence[torch.dtype], torch.dtype | None]] = [
    *(([dtype], None) for dtype in (F64, F32, F16, BF16)),
    *(([dtype] * 3, None) for dtype in (F64, F32, F16, BF16)),
    ([F32, BF16], None),
    ([BF16, F32, F16], None),
    ([BF16, BF16], F32),
    ([F32, F32, F32], F16),
    ([F32, F64], None),
    ([BF16] * 6, None),
    ([F32, F16, BF16, F32, F16, BF16, F32], None),  # six with a factor that is not 0
    ([F32] * 8, None),  # more than kernels take
]


def reference(tensors: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """The formula, plainly, in float64."""
    return torch.stack([factor * tensor.double() for tensor, factor in zip(tensors, factors, strict=True)]).sum(0)


def make(shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> tuple[list[Tensor], list[float]]:
    return [torch.randn(shape).to(dtype) for dtype in dtypes], [FACTORS[i % len(FACTORS)] for i in range(len(dtypes))]


def assert_agrees(y: Tensor, tensors: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype) -> None:
    assert (y.dtype, y.shape) == (dtype, tensors[0].shape)
    wide = F64 if F64 in {tensor.dtype for tensor in tensors} else F32
    terms = [factor * tensor.double() for tensor, factor in zip(tensors, factors, strict=True)]
    sizes = (
        torch.stack(terms).abs().sum(0)
    )  # each sum is rounded in the dtype that is computed in, the last one once more
    expected = reference(tensors, factors)
    tolerance = len(tensors) * torch.finfo(wide).eps * sizes + torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((y.double() - expected).abs() <= tolerance.clamp_min(torch.finfo(dtype).smallest_normal * 2**-10)).all()


@pytest.fixture
def needs_kernels(isa: str) -> None:
    if not native.has_kernel("weighted_sum", F32):
        pytest.skip("there is no kernel in use")


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_rounded_once_on_each_instruction_set(shape, dtypes, isa):
    (tensors, factors), dtype = make(shape, dtypes[0]), dtypes[1]
    y = weighted_sum(tensors, factors, dtype)
    assert_agrees(y, tensors, factors, dtype or tensors[0].dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_rounded_once_on_cuda(shape, dtypes):
    (tensors, factors), dtype = make(shape, dtypes[0]), dtypes[1]
    y = weighted_sum([tensor.cuda() for tensor in tensors], factors, dtype)
    assert_agrees(y.cpu(), tensors, factors, dtype or tensors[0].dtype)


@pytest.mark.cuda
def test_tensors_that_start_anywhere_are_taken_on_cuda():
    x, y = torch.randn(1003, device="cuda"), torch.randn(1003, device="cuda").bfloat16()
    expected = 0.5 * x[1:] + 2 * y[1:].float()
    torch.testing.assert_close(weighted_sum([x[1:], y[1:]], [0.5, 2.0]), expected)


def test_the_kernel_rounds_as_torch_does(needs_kernels):
    tensors = [torch.randn(1000), torch.randn(1000).bfloat16(), torch.randn(1000).half()]
    for dtype in (F32, BF16, F16):
        by_torch = torch.ops.refiners._weighted_sum_portable(tensors, [0.3, -1.7, 0.11], dtype)
        assert torch.equal(weighted_sum(tensors, [0.3, -1.7, 0.11], dtype), by_torch)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("zero", [0.0, -0.0, 0])
def test_what_has_the_factor_zero_is_not_looked_at(odd, zero, isa, device):
    x, bad = torch.randn(40, device=device), torch.full((40,), odd, device=device)
    assert torch.equal(weighted_sum([x, bad], [2.0, zero]), 2 * x)
    assert torch.equal(weighted_sum([bad, x, x], [zero, 0.5, 1]), 0.5 * x + x)
    assert torch.equal(weighted_sum([bad, bad], [zero, zero], BF16), torch.zeros(40, device=device).bfloat16())
    assert not weighted_sum([x, bad], [2.0, 1.0]).isfinite().any()


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_the_result_is_new_even_for_one_term(dtype, isa, device):
    x = torch.tensor([1.0, -0.0, 0.0, 3.5], device=device, dtype=dtype)
    y = weighted_sum([x], [1.0])
    assert torch.equal(y, x) and torch.equal(y.signbit(), x.signbit())
    assert y.data_ptr() != x.data_ptr()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "with gaps": lambda x: torch.cat([x, x], dim=1)[:, : x.shape[1]],
    "steps": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_the_result_lies_in_memory_as_the_first_tensor(first, second, dtype, isa):
    x, z = (torch.randn(2, 3, 5, 4).to(dtype) for _ in range(2))
    tensors = [LAYOUTS[first](x), LAYOUTS[second](z)]
    for factors in ([0.5, -2.0], [0.0, 2.0], [0.0, 0.0], [1.0, 0.0]):
        y = weighted_sum(tensors, factors)
        torch.testing.assert_close(y, reference(tensors, factors).to(dtype))
        assert y.stride() == torch.empty_like(tensors[0]).stride()


def test_is_bitwise_the_same_with_any_number_of_threads(needs_kernels, assert_same_bits):
    x, y = torch.randn(100_003), torch.randn(100_003).bfloat16()
    assert_same_bits(lambda: weighted_sum([x, y], [0.7, 0.3], BF16))


def test_gradients(isa):
    tensors = [torch.randn(3, 4, dtype=F64, requires_grad=True) for _ in range(3)]
    for factors in ([0.5, -2.0, 1.0], [0.0, 3.0, 0.0]):

        def run(*tensors: Tensor, factors: Sequence[float] = factors) -> Tensor:
            return _OPERATOR(list(tensors), factors)

        assert torch.autograd.gradcheck(run, tensors)
        assert torch.autograd.gradgradcheck(run, tensors)


def test_gradients_have_the_dtypes_of_their_tensors(isa):
    tensors = [torch.randn(40, dtype=dtype, requires_grad=dtype != F16) for dtype in (F32, BF16, F16)]
    y = weighted_sum(tensors, [0.3, -2.0, 3.0], BF16)
    x_grad, bf16_grad = torch.autograd.grad(y, tensors[:2], torch.ones_like(y))
    assert torch.equal(x_grad, torch.full((40,), 0.3))  # not rounded to bfloat16
    assert torch.equal(bf16_grad, torch.full((40,), -2.0).bfloat16())


def test_passes_opcheck(isa):
    x, z = torch.randn(3, 8), torch.randn(3, 8).bfloat16()
    torch.library.opcheck(_OPERATOR, ([x, z], [0.5, 2.0]))
    torch.library.opcheck(_OPERATOR, ([x.requires_grad_(), z.requires_grad_()], [0.5, 0.0], BF16))
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    torch.library.opcheck(_OPERATOR, ([last, torch.randn(2, 3, 4, 5)], [0.0, 2.0]))


def test_one_graph_serves_several_shapes(needs_kernels, assert_one_graph):
    inputs = [(torch.randn(rows, 40), torch.randn(rows, 40).bfloat16()) for rows in (3, 7, 50)]
    assert_one_graph(lambda x, z: weighted_sum([x, z], [0.3, 0.7]), inputs, "refiners.weighted_sum")


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, of forward mode
def test_transforms_see_through(isa):
    x, z = torch.randn(4, 3, 8), torch.randn(4, 3, 8)

    def run(x: Tensor, z: Tensor) -> Tensor:
        return weighted_sum([x, z], [0.5, -2.0])

    expected = 0.5 * x - 2 * z
    torch.testing.assert_close(torch.func.vmap(run)(x, z), expected)
    torch.testing.assert_close(torch.func.vmap(run, in_dims=(0, None))(x, z[0]), 0.5 * x - 2 * z[0])
    torch.testing.assert_close(torch.func.jvp(run, (x, z), (z, x))[1], 0.5 * z - 2 * x)
    torch.testing.assert_close(torch.func.grad(lambda x: run(x, z).sum())(x), torch.full_like(x, 0.5))


def test_nothing_is_read_back_from_the_device():
    x = torch.randn(2, 3, device="meta", dtype=BF16)
    y = weighted_sum([x, x.float()], [0.5, 2.0], F32)
    assert (y.device.type, y.dtype, y.shape) == ("meta", F32, (2, 3))


X = torch.zeros(2, 3)
WRONG = [
    ([], [], None, ValueError, "tensors must not be empty"),
    ([X, X], [1.0], None, ValueError, "factors must be 2 numbers, one for each tensor, got 1"),
    (
        [X, X[:1]],
        [1.0, 1.0],
        None,
        ValueError,
        r"tensors\[1\] must have the shape of the first, \(2, 3\), got \(1, 3\)",
    ),
    (
        [X, X.to("meta")],
        [1.0, 1.0],
        None,
        ValueError,
        r"tensors\[1\] must be on the device of the first, cpu, got meta",
    ),
    ([X, X.long()], [1.0, 1.0], None, TypeError, r"tensors\[1\] must have a floating dtype, got torch.int64"),
    ([X], [1.0], torch.int32, TypeError, "dtype must be a floating one, got torch.int32"),
]


@pytest.mark.parametrize("tensors,factors,dtype,error,message", WRONG, ids=[case[-1] for case in WRONG])
def test_wrong_arguments_are_named(tensors, factors, dtype, error, message):
    with pytest.raises(error, match=f"weighted_sum: {message}"):
        weighted_sum(tensors, factors, dtype)


def test_the_operator_itself_keeps_memory_safe(needs_kernels):
    for tensors, factors in (([X, X[:1]], [1.0, 1.0]), ([X, X], [1.0])):
        with pytest.raises(RuntimeError, match="weighted_sum"):
            _OPERATOR(tensors, factors)
