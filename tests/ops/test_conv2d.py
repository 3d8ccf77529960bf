import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conv2d_reference import CASES, SHORT, by_torch, channels_last, convert, make_inputs, relative_error
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.ops import conv2d
from refiners.ops.conv2d import _OPERATOR
from refiners.ops.library import native

DTYPES = [torch.float64, torch.float32, *SHORT]


def assert_agrees(y, inputs, **options):
    """The error is at most that of torch and a fifth: in 16 bits, of its formula in float32, rounded once."""
    expected, dtype = by_torch(**convert(inputs, torch.float64), **options), inputs["x"].dtype
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    wide = torch.promote_types(dtype, torch.float32)
    torch_error = relative_error(by_torch(**convert(inputs, wide), **options).to(dtype), expected)
    one_rounding = torch.finfo(dtype).eps / 2 if y.numel() < 1000 or dtype == torch.float64 else 0.0
    assert relative_error(y, expected) <= max(1.2 * torch_error, one_rounding)


@pytest.mark.parametrize("layouts", ["contiguous", "channels last", "channels-last images", "channels-last weights"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_is_as_exact_as_torch_in_each_layout(case, dtype, layouts, isa):
    options = case[-1]
    if dtype in SHORT and (options.get("groups") == 32 or not native.has_kernel("conv2d", dtype)):
        pytest.skip("torch computes, which rounds more than once")
    inputs = make_inputs(*case, dtype)
    if layouts in ("channels last", "channels-last images"):
        inputs["x"], inputs["residual"] = channels_last(inputs["x"]), channels_last(inputs["residual"])
    if layouts in ("channels last", "channels-last weights"):
        inputs["weight"] = channels_last(inputs["weight"])
    y = conv2d(**inputs, **options, silu=True)
    assert_agrees(y, inputs, **options, silu=True)
    plain, by_torch_alone = (f(inputs["x"], inputs["weight"], **options) for f in (conv2d, F.conv2d))
    assert plain.stride() == by_torch_alone.stride() or plain.numel() == 0 or 1 in plain.shape[2:]


@pytest.mark.parametrize("extras", [(), ("bias",), ("add",), ("residual",), ("add", "residual")], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[9]], ids=str)
@pytest.mark.parametrize("silu", [False, True])
def test_each_addition_may_be_left_out(extras, case, silu, isa):
    inputs, options = make_inputs(*case, torch.float32, extras), case[-1]
    assert_agrees(conv2d(**inputs, **options, silu=silu), inputs, **options, silu=silu)


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT], ids=str)
@pytest.mark.parametrize("size", [1e4, 6e4, 1e9])
def test_a_large_value_disturbs_no_pixels_beyond_the_kernel(size, dtype, needs_conv2d_kernels):
    if not native.has_kernel("conv2d", dtype) or (dtype == torch.float16 and size > 6e4):
        pytest.skip("torch multiplies this dtype" if size <= 6e4 else "float16 ends before")
    inputs = make_inputs((1, 32, 20, 20), 16, 3, {"padding": 1}, dtype, ("bias",))
    inputs["x"][:, :, 7] = size
    far = [row for row in range(20) if abs(row - 7) > 1]
    y, expected = conv2d(**inputs, padding=1), by_torch(**convert(inputs, torch.float64), padding=1)
    in_float32 = by_torch(**convert(inputs, torch.float32), padding=1).to(dtype)
    torch_error = relative_error(in_float32[:, :, far], expected[:, :, far])
    assert relative_error(y[:, :, far], expected[:, :, far]) <= 1.2 * torch_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [Tensor.contiguous, channels_last])
@pytest.mark.parametrize("out_channels", [1, 16])
def test_the_result_is_no_view(out_channels, layout, dtype, isa):
    x, weight = layout(torch.randn(2, 16, 8, 8).to(dtype)), torch.randn(out_channels, 16, 3, 3).to(dtype)
    with torch.no_grad():
        y = conv2d(x, weight, padding=1)
        assert y._base is None
    y.mul_(torch.ones((), dtype=dtype, requires_grad=True))
    assert conv2d(x, weight.requires_grad_(), padding=1)._base is None


def test_views_of_any_strides_are_taken(isa):
    x, weight = torch.randn(4, 32, 20, 24), torch.randn(32, 32, 3, 3)
    for view in (
        x[:, ::2],
        x[::2, :16],
        x[..., ::2, :][:, :16],
        x.transpose(2, 3)[:, :16],
        channels_last(x)[:, 8:24],
        channels_last(x)[:, :16, 1:, ::2],
        x[:1, :16].expand(4, -1, -1, -1),
        x[:, :1].expand(-1, 16, -1, -1),
    ):
        for kernel in (
            weight[:, ::2],
            weight[::2, :16],
            weight.transpose(2, 3)[:, :16],
            weight[:16, :1].expand(-1, 16, 3, 3),
        ):
            add, residual = torch.randn(kernel.shape[0]).expand(view.shape[0], -1), torch.randn(())
            inputs = {"x": view, "weight": kernel, "add": add, "bias": torch.randn(64)[:: 64 // kernel.shape[0]]}
            inputs["residual"] = residual.expand(F.conv2d(view, kernel).shape)
            expected = by_torch(**convert(inputs, torch.float64))
            assert relative_error(conv2d(**inputs), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_reaches_no_further_than_the_kernel(value, dtype, needs_conv2d_kernels):
    inputs = make_inputs((1, 32, 20, 20), 16, 3, {"padding": 1}, torch.float32, ("bias",))
    inputs["weight"] = inputs["weight"].abs()  # infinity times a weight is never its opposite here
    inputs["x"][0, 3, 10, 9] = value
    expected = F.conv2d(**inputs, padding=1)
    y = conv2d(**convert(inputs, dtype), padding=1).float()
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(
        y.nan_to_num(0, 1, -1)[~expected.isfinite()], expected.nan_to_num(0, 1, -1)[~expected.isfinite()]
    )


def test_large_numbers_do_not_overflow_on_the_way(needs_conv2d_kernels):
    inputs = make_inputs((1, 32, 16, 16), 16, 3, {"padding": 1}, torch.float32, ("bias",))
    inputs["x"] = inputs["x"] * 1e37  # sums of a few are beyond float32, results are not
    y, expected = conv2d(**inputs, padding=1), by_torch(**convert(inputs, torch.float64), padding=1)
    assert y.isfinite().all()
    assert relative_error(y, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[14]], ids=str)
def test_is_bitwise_the_same_with_any_number_of_threads_and_samples(
    case, dtype, needs_conv2d_kernels, assert_same_bits
):
    if not native.has_kernel("conv2d", dtype):
        pytest.skip("torch computes")
    inputs, options = make_inputs(*case, dtype), case[-1]
    if case[2] != 3 and dtype == torch.float32:
        pytest.skip("torch computes")
    assert_same_bits(lambda: conv2d(**inputs, **options))
    alone = {**inputs, **{name: inputs[name][:1] for name in ("x", "add", "residual")}}
    assert torch.equal(conv2d(**alone, **options), conv2d(**inputs, **options)[:1])


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [(1, 2, 3), (), "same", 1.5, (1.5, 2)], ids=str)
def test_geometry_is_one_or_two_whole_numbers(name, value, isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32)
    with pytest.raises(TypeError, match=f"conv2d: {name} must be one or two whole numbers, got"):
        conv2d(**inputs, **{name: value})


def test_numbers_of_other_libraries_are_numbers(isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {"stride": 2, "padding": 1}, torch.float32)
    expected = conv2d(**inputs, stride=2, padding=1)
    assert torch.equal(conv2d(**inputs, stride=np.int64(2), padding=torch.tensor(1)), expected)


def test_additions_need_a_batch(isa):
    x, weight = torch.randn(16, 8, 8), torch.randn(24, 16, 3, 3)
    torch.testing.assert_close(conv2d(x, weight), F.conv2d(x, weight))
    with pytest.raises(ValueError, match=r"conv2d: x must be a batch of images, got \(16, 8, 8\)"):
        conv2d(x, weight, add=torch.zeros(16, 24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add": torch.zeros(1, 24)}, r"conv2d: add must be \(2, 24\), got \(1, 24\)"),
        ({"residual": torch.zeros(2, 24, 6, 5)}, r"conv2d: residual must be \(2, 24, 6, 6\), got \(2, 24, 6, 5\)"),
    ],
)
def test_additions_of_another_shape_are_refused(change, message, isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32) | change
    with pytest.raises(ValueError, match=message):
        conv2d(**inputs)


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(2, 15, 8, 8)},
        {"x": torch.zeros(2, 16, 8, 8, 1)},
        {"x": torch.zeros(2, 16, 2, 8)},
        {"x": torch.zeros(2, 16, 8, 8, dtype=torch.float64)},
        {"weight": torch.zeros(24, 16, 3)},
        {"bias": torch.zeros(23)},
        {"padding": -1},
        {"padding": 2**63 - 1},
        {"weight": torch.zeros(24, 16, 0, 3)},
        {"weight": torch.zeros(0, 16, 3, 3), "bias": None},
        {"x": torch.zeros(2, 16, 0, 8), "padding": 2},
        {"stride": 0},
        {"dilation": 0},
        {"groups": 3},
    ],
    ids=str,
)
def test_what_torch_refuses_is_refused(change, isa):
    inputs = make_inputs((2, 16, 8, 8), 24, 3, {}, torch.float32, ("bias",)) | change
    with pytest.raises((RuntimeError, ValueError)) as theirs:
        F.conv2d(**inputs)
    with pytest.raises((RuntimeError, ValueError)) as ours:
        conv2d(**inputs)
    assert str(ours.value) == str(theirs.value)


def test_the_operator_itself_checks_what_keeps_memory_safe(needs_conv2d_kernels):
    x, weight = torch.zeros(2, 16, 8, 8), torch.zeros(24, 16, 3, 3)
    for arguments in (
        (x, weight[:, :15]),
        (x, weight[0]),
        (x, weight.double()),
        (x, weight, torch.zeros(23)),
        (x, weight, None, torch.zeros(1, 24)),
        (x, weight, None, None, torch.zeros(2, 24, 6, 5)),
        (x, weight, None, None, None, (0, 1)),
        (x, weight, None, None, None, (1, 1), (-1, 0)),
        (x[:, :, :2], weight),
    ):
        with pytest.raises(RuntimeError, match="conv2d"):
            _OPERATOR(*arguments)


def test_the_layer_uses_it(needs_conv2d_kernels):
    layer = fl.Conv2d(16, 24, 3, padding=1)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(layer(x), conv2d(x, layer.weight, layer.bias, padding=1))
    assert not torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))  # other sums


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_the_layer_pads_as_that_of_torch(options, isa):
    layer = fl.Conv2d(16, 24, 3, **options)
    x = torch.randn(2, 16, 8, 8)
    theirs = torch.nn.Conv2d(16, 24, 3, **options)
    theirs.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), theirs(x))
    assert layer(x[0]).shape == theirs(x[0]).shape
