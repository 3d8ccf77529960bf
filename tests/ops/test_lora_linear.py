import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from refiners.ops import lora_linear

# (batch shape, in, out, ranks): one ordinary case, then each edge alone.
CASES = [
    ((2, 7), 32, 48, (4,)),
    ((), 32, 48, (4,)),
    ((0,), 8, 8, (2,)),
    ((2, 0, 3), 8, 8, (2,)),
    ((3,), 1, 1, (1,)),
    ((5,), 33, 17, (3,)),
    ((3,), 0, 5, (2,)),
    ((3,), 5, 0, (2,)),
    ((4,), 24, 24, ()),
    ((4,), 24, 24, (0,)),
    ((4,), 24, 40, (0, 3)),
    ((2, 3), 40, 24, (16, 5, 33)),
    ((50,), 600, 70, (9,)),  # more than one block of rows and of depth
    ((100,), 257, 600, (24,)),  # and of columns
    ((13,), 16, 40, (300,)),  # a rank above both sizes
    ((64,), 640, 320, (16, 16)),  # a real one
    ((6,), 1, 1, (1,)),  # the edges again, where the updates are packed
    ((7,), 33, 17, (3,)),
    ((9,), 24, 40, (0, 3)),
    ((1,), 257, 70, (9, 0, 2)),  # and where few rows read them as they lie
    ((2,), 40, 601, (16, 5, 33)),
    ((3,), 70, 33, (24,)),
    ((2, 2), 16, 40, (300,)),
]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference_on_each_instruction_set(case, dtype, isa, make_inputs, assert_agrees):
    inputs = make_inputs(*case, dtype=dtype)
    assert_agrees(lora_linear(*inputs), inputs)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_reference_on_cuda(case, dtype, make_inputs, assert_agrees):
    inputs = make_inputs(*case, dtype=dtype, device="cuda")
    assert_agrees(lora_linear(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("lead", [0, 1, 2, 3])
def test_a_scale_may_be_given_per_update_sample_or_row(lead, dtype, isa, device, make_inputs, assert_agrees):
    inputs = make_inputs((3, 4, 5), 24, 20, (4, 6), lead=lead, dtype=dtype, device=device)
    assert_agrees(lora_linear(*inputs), inputs)


def test_a_scale_of_zero_switches_an_update_off_for_its_sample_alone(isa, make_inputs):
    inputs = make_inputs((2, 9), 24, 20, (4, 4))
    mixed = lora_linear(*inputs._replace(scale=torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    for sample in (0, 1):
        alone = make_single(inputs, sample)
        assert_close(mixed[sample], lora_linear(*alone)[sample])


def make_single(inputs, update):
    return inputs._replace(downs=[inputs.downs[update]], ups=[inputs.ups[update]], scale=torch.ones(1))


@pytest.mark.parametrize("scale_dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_scale_may_have_another_floating_dtype(scale_dtype, isa, make_inputs, assert_agrees):
    inputs = make_inputs((3, 5), 24, 20, (4,), lead=1)
    inputs = inputs._replace(scale=inputs.scale.to(scale_dtype))
    assert_agrees(lora_linear(*inputs), inputs)


def strided_copy(t: Tensor) -> Tensor:
    """The same values with every stride doubled and the dimensions laid out backwards."""
    backwards = torch.zeros([2 * size for size in reversed(t.shape)], dtype=t.dtype)
    view = backwards[tuple(slice(None, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
    return view.copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["x", "weight", "bias", "downs", "ups", "scale"])
def test_views_of_any_strides_are_taken(name, dtype, isa, make_inputs, assert_agrees):
    inputs = make_inputs((3, 4), 40, 24, (5, 2), lead=2, dtype=dtype)
    value = getattr(inputs, name)
    views = [strided_copy(t) for t in value] if isinstance(value, list) else strided_copy(value)
    y = lora_linear(*inputs._replace(**{name: views}))
    assert y.is_contiguous()
    assert_agrees(y, inputs)


def test_rows_with_a_gap_and_expanded_tensors_are_taken(isa, make_inputs, assert_agrees):
    inputs = make_inputs((6,), 40, 24, (5,), lead=1)
    wide = torch.randn(6, 100)
    cases = [
        inputs._replace(x=wide[:, 30:70]),
        inputs._replace(x=wide[:1, :40].expand(6, 40)),
        inputs._replace(scale=torch.tensor([[0.5]]).expand(1, 6)),
    ]
    for case in cases:
        assert_agrees(lora_linear(*case), case)


def test_inputs_stay_as_they_are(isa, make_inputs):
    inputs = make_inputs((3, 5), 24, 20, (4,))
    before = inputs.map(torch.clone)
    lora_linear(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs[:2], before[:2], strict=True))
    assert torch.equal(inputs.downs[0], before.downs[0])
    assert torch.equal(inputs.ups[0], before.ups[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_bitwise_the_same_with_any_number_of_threads(dtype, isa, needs_native, make_inputs):
    inputs = make_inputs((301,), 520, 90, (20,), dtype=dtype)
    update_alone = inputs._replace(weight=torch.zeros_like(inputs.weight))  # the library's part is not ours to state
    threads = torch.get_num_threads()
    try:
        results = [(torch.set_num_threads(count), lora_linear(*update_alone))[1] for count in (1, 2, 3, 1, 2)]
    finally:
        torch.set_num_threads(threads)
    if isa != "portable":
        assert all(torch.equal(results[0], y) for y in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_infinities_and_nans_come_through(dtype, isa, make_inputs):
    inputs = make_inputs((4,), 16, 24, (3,), dtype=dtype)
    inputs.x[1, 2], inputs.x[2, 3] = float("nan"), float("inf")
    y = lora_linear(*inputs)
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()
    assert y[[0, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_result_is_rounded_to_nearest_and_ties_to_even(dtype, isa):
    first, second = torch.randn(1000).to(dtype), torch.randn(1000).to(dtype) / 64
    first[:4], second[:4] = 1.0, torch.tensor([0.5, 1.5, -0.5, 0.75]) * torch.finfo(dtype).eps
    ones, zeros = torch.ones(2, 1, dtype=dtype), torch.zeros(1000, 1, dtype=dtype)
    y = lora_linear(ones[:1], zeros, None, [ones], [torch.stack([first, second], dim=1)], torch.ones(1))
    assert torch.equal(y[0], (first.float() + second.float()).to(dtype))


def test_a_nan_of_any_payload_stays_a_nan(isa):
    ones = torch.ones(1, 1, dtype=torch.bfloat16)
    scale = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    assert lora_linear(ones, ones, None, [ones], [ones], scale).isnan().all()


def test_autocast_runs_in_its_dtype(device, make_inputs):
    inputs = make_inputs((3, 5), 24, 20, (4,), device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = lora_linear(*inputs)
    assert y.dtype == torch.bfloat16
    expected = lora_linear(*inputs.map(lambda t: t.bfloat16())._replace(scale=inputs.scale))
    assert torch.equal(y, expected)


def test_autocast_passes_gradients_in_the_dtype_of_the_leaves(make_inputs):
    inputs = make_inputs((3, 5), 24, 20, (4,))
    up = inputs.ups[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lora_linear(*inputs).sum().backward()
    assert up.grad is not None
    assert up.grad.dtype == torch.float32
