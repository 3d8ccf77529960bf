import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import refiners.fluxion.layers as fl
from refiners.ops import conv2d
from refiners.ops.conv2d import _OPERATOR
from refiners.ops.library import native

SHORT = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *SHORT]
# (x, out channels, kernel, options): squares of Winograd's algorithm, then products; ordinary ones, then each edge.
CASES = [
    ((2, 64, 16, 16), 96, 3, {"padding": 1}),
    ((1, 17, 8, 8), 19, 3, {"padding": 1}),
    ((1, 16, 3, 3), 16, 3, {}),
    ((2, 24, 7, 5), 33, 3, {"padding": 1}),
    ((1, 80, 13, 21), 40, 3, {"padding": (0, 2)}),
    ((3, 72, 20, 40), 16, 3, {"padding": 1}),  # more than one block of squares and of channels
    ((1, 16, 1, 30), 16, 3, {"padding": (1, 0)}),
    ((2, 4, 9, 9), 32, 3, {"padding": 1}),
    ((2, 32, 9, 9), 1, 3, {"padding": 1}),
    ((2, 32, 9, 9), 4, 3, {"padding": 1}),
    ((2, 32, 10, 9), 24, 3, {"padding": 1, "stride": 2}),
    ((2, 32, 10, 9), 24, 3, {"padding": (2, 1), "stride": (1, 3)}),
    ((2, 32, 10, 9), 24, 3, {"padding": 2, "dilation": 2}),
    ((1, 32, 11, 9), 24, (1, 3), {"dilation": (1, 3), "padding": (0, 3)}),
    ((2, 40, 9, 9), 48, 1, {}),
    ((2, 300, 15, 15), 300, 1, {}),  # more than one block of rows, of columns and of depth
    ((2, 24, 9, 9), 36, 3, {"padding": 1, "groups": 4}),
    ((2, 32, 9, 9), 32, 3, {"padding": 1, "groups": 32}),
    ((1, 3, 28, 28), 40, 14, {"stride": 14}),
    ((0, 16, 8, 8), 16, 3, {"padding": 1}),
]
EXTRAS = ("bias", "add", "residual")


def make_inputs(shape, out_channels, kernel, options, dtype, extras=EXTRAS):
    batch, in_channels, *_ = shape
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    depth = in_channels // options.get("groups", 1)
    weight = torch.randn(out_channels, depth, *sides) / (depth * sides[0] * sides[1]) ** 0.5
    x = torch.randn(shape)
    result = F.conv2d(x, weight, **options).shape
    others = {"bias": (out_channels,), "add": (batch, out_channels), "residual": result}
    inputs = {"x": x, "weight": weight, **{name: torch.randn(others[name]) for name in extras}}
    return {name: value.to(dtype) for name, value in inputs.items()}


def by_torch(x, weight, bias=None, add=None, residual=None, silu=False, **options):
    y = F.conv2d(x, weight, bias, **options)
    y = y if add is None else y + add[:, :, None, None]
    y = y if residual is None else y + residual
    return F.silu(y) if silu else y


def convert(inputs, dtype):
    return {name: value.to(dtype) for name, value in inputs.items()}


def relative_error(y: Tensor, expected: Tensor) -> float:
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_agrees(y, inputs, **options):
    """The error is at most that of torch and a fifth: in 16 bits, of its formula in float32, rounded once."""
    expected, dtype = by_torch(**convert(inputs, torch.float64), **options), inputs["x"].dtype
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    wide = torch.promote_types(dtype, torch.float32)
    torch_error = relative_error(by_torch(**convert(inputs, wide), **options).to(dtype), expected)
    one_rounding = torch.finfo(dtype).eps / 2 if y.numel() < 1000 or dtype == torch.float64 else 0.0
    assert relative_error(y, expected) <= max(1.2 * torch_error, one_rounding)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


@pytest.fixture
def needs_kernels(isa):
    if not native.has_kernel("conv2d", torch.float32):
        pytest.skip("there is no kernel in use")


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
def test_a_large_value_disturbs_no_pixels_beyond_the_kernel(size, dtype, needs_kernels):
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
def test_what_is_not_finite_reaches_no_further_than_the_kernel(value, dtype, needs_kernels):
    inputs = make_inputs((1, 32, 20, 20), 16, 3, {"padding": 1}, torch.float32, ("bias",))
    inputs["weight"] = inputs["weight"].abs()  # infinity times a weight is never its opposite here
    inputs["x"][0, 3, 10, 9] = value
    expected = F.conv2d(**inputs, padding=1)
    y = conv2d(**convert(inputs, dtype), padding=1).float()
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert torch.equal(
        y.nan_to_num(0, 1, -1)[~expected.isfinite()], expected.nan_to_num(0, 1, -1)[~expected.isfinite()]
    )


def test_large_numbers_do_not_overflow_on_the_way(needs_kernels):
    inputs = make_inputs((1, 32, 16, 16), 16, 3, {"padding": 1}, torch.float32, ("bias",))
    inputs["x"] = inputs["x"] * 1e37  # sums of a few are beyond float32, results are not
    y, expected = conv2d(**inputs, padding=1), by_torch(**convert(inputs, torch.float64), padding=1)
    assert y.isfinite().all()
    assert relative_error(y, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[14]], ids=str)
def test_is_bitwise_the_same_with_any_number_of_threads_and_samples(case, dtype, needs_kernels, assert_same_bits):
    if not native.has_kernel("conv2d", dtype):
        pytest.skip("torch computes")
    inputs, options = make_inputs(*case, dtype), case[-1]
    if case[2] != 3 and dtype == torch.float32:
        pytest.skip("torch computes")
    assert_same_bits(lambda: conv2d(**inputs, **options))
    alone = {**inputs, **{name: inputs[name][:1] for name in ("x", "add", "residual")}}
    assert torch.equal(conv2d(**alone, **options), conv2d(**inputs, **options)[:1])


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
    ids=str,
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


def test_is_compiled_into_one_graph(needs_kernels, assert_one_graph):
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


def test_the_bare_operator_tells_of_autocast(needs_kernels):
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(24, 16, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast is on"):
        _OPERATOR(x, weight, stride=[2, 2])  # which torch computes


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


def test_the_operator_itself_checks_what_keeps_memory_safe(needs_kernels):
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


def test_the_layer_uses_it(needs_kernels):
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
