"""`lora_conv2d` against its formula, in which each update is a convolution by the product of its kernels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refiners.ops import lora_conv2d

DOWN, UP, POINT = "the kernel in A", "the kernel in B", "points"
RANKS = (3, 16, 8)


def make_inputs(kinds: list[str], dtype: torch.dtype = torch.float64, size: int = 3, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    downs, ups = [], []
    for rank, kind in zip(RANKS, kinds):
        down, up = (size if kind == DOWN else 1), (size if kind == UP else 1)
        downs.append(draw(rank, 20, down, down) / 4)
        ups.append(draw(24, rank, up, up) / 4)
    tensors = {"x": draw(2, 20, 9, 8), "weight": draw(24, 20, size, size) / 8, "bias": draw(24)}
    return {**tensors, "downs": downs, "ups": ups, "scale": torch.linspace(0.5, -2, len(kinds)), **options}


def by_formula(inputs: dict[str, Any]) -> Tensor:
    """Compute the sum in float64, the multipliers last."""
    options = {key: inputs[key] for key in ("padding", "dilation") if key in inputs}
    stride = inputs.get("stride", 1)
    x, weight, bias = (inputs[key].double() for key in ("x", "weight", "bias"))
    y = F.conv2d(x, weight, bias, stride=stride, **options)
    for down, up, scale in zip(inputs["downs"], inputs["ups"], inputs["scale"].double()):
        first, second = (options, {}) if up.shape[2:] == (1, 1) else ({}, options)
        inner = F.conv2d(x, down.double(), stride=stride, **first)
        update = F.conv2d(inner, up.double(), **second)
        shape = {0: (), 1: (2, 1, 1, 1), 3: (2, 1, *update.shape[2:])}[scale.ndim]
        y = y + scale.reshape(shape) * update
    return y


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kinds", [[DOWN], [UP], [DOWN, DOWN], [UP, UP], [DOWN, UP, DOWN], []], ids=str)
@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": (0, 1)}, {"padding": 2, "dilation": 2}], ids=lambda each: str(each)
)
def test_formula(kinds, options, isa):
    inputs = make_inputs(kinds, **options)
    assert error(lora_conv2d(**inputs), by_formula(inputs)) <= 1e-13


@pytest.mark.parametrize("kinds", [[DOWN], [DOWN, DOWN]], ids=str)
def test_strides(kinds, isa):
    inputs = make_inputs(kinds, padding=1, stride=(2, 1))
    assert error(lora_conv2d(**inputs), by_formula(inputs)) <= 1e-13


@pytest.mark.parametrize("stride", [1, 2])
def test_points(stride, isa):
    inputs = make_inputs([POINT, POINT], size=1, stride=stride)
    assert error(lora_conv2d(**inputs), by_formula(inputs)) <= 1e-13


@pytest.mark.parametrize("lead", [(2,), (2, 9, 8)], ids=str)
@pytest.mark.parametrize("kinds", [[DOWN, DOWN], [UP, DOWN, UP]], ids=str)
def test_multipliers_of_samples_and_places(kinds, lead, isa):
    inputs = make_inputs(kinds, padding=1)
    inputs["scale"] = torch.rand(len(kinds), *lead, dtype=torch.float64)
    assert error(lora_conv2d(**inputs), by_formula(inputs)) <= 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_exact_as_two_convolutions_and_a_sum(dtype, isa):
    inputs = make_inputs([DOWN, UP], dtype, padding=1)
    expected = by_formula(inputs)
    y = F.conv2d(inputs["x"], inputs["weight"], inputs["bias"], padding=1)
    for down, up, scale in zip(inputs["downs"], inputs["ups"], inputs["scale"].to(dtype)):
        first, second = (1, 0) if up.shape[2:] == (1, 1) else (0, 1)
        y = y + scale * F.conv2d(F.conv2d(inputs["x"], down, padding=first), up, padding=second)
    ours = lora_conv2d(**inputs)
    assert ours.dtype == dtype
    assert error(ours, expected) <= 1.2 * error(y, expected)


def test_gradients(isa):
    inputs = make_inputs([DOWN, UP], padding=1)
    inputs["x"] = inputs["x"][:, :, :4, :3]
    flat = [inputs["x"], inputs["weight"], inputs["bias"], *inputs["downs"], *inputs["ups"], inputs["scale"].double()]
    flat = [tensor.clone().requires_grad_() for tensor in flat]

    def function(x, weight, bias, *others):
        return lora_conv2d(x, weight, bias, others[:2], others[2:4], others[4], padding=1)

    assert torch.autograd.gradcheck(function, flat, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, flat, fast_mode=True)


def test_what_is_kept_for_the_gradients(isa):
    """Neither what the layer gives nor what the update gives: they are as large as x, or larger."""
    inputs = make_inputs([DOWN], torch.float32, padding=1)
    for each in (*inputs["downs"], *inputs["ups"]):
        each.requires_grad_()
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        y = lora_conv2d(**inputs)
    assert tuple(y.shape) not in shapes and (2, 3, 9, 8) in shapes


def test_compiled_as_one_graph(isa):
    inputs = make_inputs([DOWN, UP, DOWN], torch.float32, padding=1)
    compiled = torch.compile(lora_conv2d, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), lora_conv2d(**inputs))


def test_autocast(isa):
    inputs = make_inputs([DOWN], torch.float32, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = lora_conv2d(**inputs)
    assert y.dtype == torch.bfloat16
    assert error(y, by_formula(inputs)) <= 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ups": []}, "downs, ups and scale must be as many, got 1, 0 and 1"),
        ({"scale": torch.ones(2)}, "downs, ups and scale must be as many, got 1, 1 and 2"),
        ({"scale": torch.ones(1, 2, 5)}, r"scale must be \(adapters\), .*got \(1, 2, 5\)"),
        ({"scale": torch.ones(1, 3)}, r"scale must have 2 samples, as x, got \(1, 3\)"),
    ],
    ids=["ups", "scales", "dimensions", "samples"],
)
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        lora_conv2d(**{**make_inputs([DOWN], padding=1), **change})
