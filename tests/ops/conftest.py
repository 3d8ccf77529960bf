"""Inputs and reference of `lora_linear`, and the paths that this machine can be forced to."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from refiners.ops.library import native
from refiners.ops.settings import ISAS

sys.path.insert(0, str(Path(__file__).parent))  # the module beside the tests, which are no package


class LoraLinearInputs(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    downs: list[Tensor]
    ups: list[Tensor]
    scale: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> "LoraLinearInputs":
        bias = None if self.bias is None else f(self.bias)
        return LoraLinearInputs(
            f(self.x), f(self.weight), bias, [f(d) for d in self.downs], [f(u) for u in self.ups], f(self.scale)
        )


def make_lora_linear_inputs(
    batch: tuple[int, ...],
    in_features: int,
    out_features: int,
    ranks: tuple[int, ...],
    lead: int = 0,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LoraLinearInputs:
    def normal(*shape: int, fan: int = 1) -> Tensor:
        return (torch.randn(*shape) / max(fan, 1) ** 0.5).to(device, dtype)

    return LoraLinearInputs(
        normal(*batch, in_features),
        normal(out_features, in_features, fan=in_features),
        normal(out_features) if bias else None,
        [normal(rank, in_features, fan=in_features) for rank in ranks],
        [normal(out_features, rank, fan=rank) for rank in ranks],
        torch.randn(len(ranks), *batch[:lead]).to(device),
    )


def lora_linear_reference(x: Any, weight: Any, bias: Any, downs: Any, ups: Any, scale: Any) -> Tensor:
    """The formula, plainly, in float64."""
    x, weight = x.double(), weight.double()
    y = x @ weight.T
    if bias is not None:
        y = y + bias.double()
    for multiplier, down, up in zip(scale.double(), downs, ups, strict=True):
        per_row = multiplier.reshape(multiplier.shape + (1,) * (x.dim() - multiplier.dim()))
        y = y + per_row * (x @ (up.double() @ down.double()).T)
    return y


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}


def relative_error(y: Tensor, expected: Tensor) -> float:
    """The norm of the error, over that of the result."""
    return ((y.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def lora_linear_by_torch(x: Any, weight: Any, bias: Any, downs: Any, ups: Any, scale: Any) -> Tensor:
    """What a user would write, in the dtype of the inputs."""
    y = torch.nn.functional.linear(x, weight, bias)
    for multiplier, down, up in zip(scale.to(x.dtype), downs, ups, strict=True):
        per_row = multiplier.reshape(multiplier.shape + (1,) * (x.dim() - multiplier.dim()))
        y = y + per_row * torch.nn.functional.linear(torch.nn.functional.linear(x, down), up)
    return y


def assert_lora_linear_agrees(y: Tensor, inputs: LoraLinearInputs) -> None:
    """Compare with the formula: in 16 bits the error is that of torch's own functions and a fifth."""
    expected, dtype = lora_linear_reference(*inputs), inputs.x.dtype
    assert (y.dtype, y.shape) == (dtype, expected.shape)
    if dtype in TOLERANCES:
        tolerance = TOLERANCES[dtype]
    else:
        one_rounding = torch.finfo(dtype).eps / 2 if y.numel() < 1000 else 0.0  # of a few elements, by bad luck
        tolerance = max(1.2 * relative_error(lora_linear_by_torch(*inputs), expected), one_rounding)
    assert relative_error(y, expected) <= tolerance


@pytest.fixture
def assert_agrees() -> Callable[[Tensor, LoraLinearInputs], None]:
    return assert_lora_linear_agrees


@pytest.fixture
def assert_one_graph() -> Callable[..., None]:
    """Compile a function, call it with several inputs, and see one graph that holds the operator."""

    def check(function: Callable[..., Tensor], inputs: Sequence[Sequence[Any]], operator: str) -> None:
        graphs: list[Any] = []

        def backend(module: Any, _: Any) -> Any:
            graphs.append(module)
            return module.forward

        compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=True)
        for arguments in inputs:
            assert torch.equal(compiled(*arguments), function(*arguments))
        assert len(graphs) == 1
        assert operator in graphs[0].code

    return check


@pytest.fixture
def assert_same_bits() -> Callable[[Callable[[], Tensor]], None]:
    """Call a function with other numbers of threads."""

    def check(function: Callable[[], Tensor]) -> None:
        threads = torch.get_num_threads()
        try:
            results = [(torch.set_num_threads(count), function())[1] for count in (1, 2, 3, 1, 2)]
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(results[0], y) for y in results[1:])

    return check


@pytest.fixture
def make_inputs() -> Callable[..., LoraLinearInputs]:
    return make_lora_linear_inputs


@pytest.fixture
def reference() -> Callable[..., Tensor]:
    return lora_linear_reference


def _available() -> list[str]:
    before = native.isa, native.isa_reason
    names = [name for name in ISAS if native.use_isa(name)]
    native.use_isa(before[0])
    native.isa_reason = before[1]
    return names


@pytest.fixture(params=_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU and this build have, in use for one test."""
    before = native.isa, native.isa_reason
    assert native.use_isa(request.param)
    yield request.param
    native.use_isa(before[0])
    native.isa_reason = before[1]


@pytest.fixture
def needs_native() -> None:
    if not native.loaded:
        pytest.skip("the native library is not loaded")


@pytest.fixture
def needs_conv2d_kernels(isa: str) -> None:
    if not native.has_kernel("conv2d", torch.float32):
        pytest.skip("there is no kernel in use")
