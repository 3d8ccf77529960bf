"""Inputs of `conv2d`, and the same by torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = [torch.bfloat16, torch.float16]
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


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)
