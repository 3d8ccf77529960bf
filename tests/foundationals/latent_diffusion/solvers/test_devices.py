"""Dtypes, devices, and what a step costs."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import refiners.fluxion.layers as fl
from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DPMSolver,
    Euler,
    Heun,
    ModelPredictionType,
    Solver,
    UniPC,
)
from refiners.ops.library import native


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 4, 3, 2)), generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def test_latents_keep_their_dtype(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver, x = make(4), latents().to(dtype)  # the solver itself is float32
    image = latents(seed=1).to(dtype)
    assert solver.initial_latents(x).dtype == solver.initial_latents(x, image).dtype == dtype
    assert solver.remove_noise(x, image, 1).dtype == solver.predict_data(x, image, 1).dtype == dtype
    assert solver.scale_model_input(x, 1).dtype == dtype
    for step in solver.inference_steps:
        x = solver(x, x, step)
        assert x.dtype == dtype


@pytest.mark.parametrize("cls", [DDIM, DPMSolver, Euler, Heun, UniPC])  # noise of 16 bits is other noise
def test_sixteen_bits_are_rounded_once(cls: type[Any]) -> None:
    x, prediction = latents().bfloat16(), latents(seed=1).bfloat16()
    narrow, exact = cls(4), cls(4)
    for step in narrow.inference_steps:
        result = narrow(x, prediction, step)
        assert torch.equal(result, exact(x.float(), prediction.float(), step).bfloat16())
        x = result


def test_a_solver_moves(make: Callable[..., Solver], dtype: torch.dtype, device: torch.device) -> None:
    solver = make(5)
    kind = solver.timesteps.dtype
    assert solver.device == torch.device("cpu") and solver.dtype == torch.float32
    assert solver.to(device=device, dtype=dtype) is solver
    tables = [value for value in vars(solver).values() if isinstance(value, Tensor)]
    assert {table.device.type for table in tables} == {device.type}
    for table in ("scale_factors", "cumulative_scale_factors", "noise_std", "signal_to_noise_ratios"):
        assert getattr(solver, table).dtype == dtype
    assert solver.dtype == dtype and solver.timesteps.dtype == kind
    solver.dtype = torch.float64
    solver.device = "cpu"
    assert solver.scale_factors.dtype == torch.float64 and solver.timesteps.device.type == "cpu"


def test_a_solver_moves_with_a_module_above(make: Callable[..., Solver]) -> None:
    class Model(fl.Module):
        def __init__(self) -> None:
            super().__init__()
            self.solver = make(5)

    model = Model().to(dtype=torch.bfloat16)
    assert model.solver.dtype == torch.bfloat16 and model.solver.timesteps.dtype == make(5).timesteps.dtype


def test_timesteps_do_not_depend_on_the_dtype(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    assert torch.equal(make(30, dtype=dtype).timesteps, make(30).timesteps)


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func).split(".")[1]] += 1
        return func(*args, **(kwargs or {}))


NOISE = Counter(randn=1)
COPY = Counter(_to_copy=1)  # of latents that the solver keeps, and the caller may write to
# What a step calls: sums, as many as tensors are left for later, and what makes new ones.
CALLS = {
    "DDIM": Counter(weighted_sum=1),
    "DDPM": Counter(weighted_sum=1) + NOISE,
    "DPMSolver": Counter(weighted_sum=2),
    "DPMSolver-sde": Counter(weighted_sum=2) + NOISE,
    "Euler": Counter(weighted_sum=1),
    "EulerAncestral": Counter(weighted_sum=1) + NOISE,
    "Heun": Counter(weighted_sum=2),
    "LCMSolver": Counter(weighted_sum=1) + NOISE,
    "UniPC": Counter(weighted_sum=2) + COPY,
}


@pytest.mark.skipif(not native.has_kernel("weighted_sum", torch.float32), reason="there is no kernel in use")
@pytest.mark.parametrize("prediction", ModelPredictionType)
def test_a_step_is_one_sum_or_two(
    name: str, make: Callable[..., Solver], dtype: torch.dtype, prediction: ModelPredictionType
) -> None:
    params = dataclasses.replace(make(5).params, model_prediction_type=prediction)
    solver, x = type(make(5))(5, params=params), latents().to(dtype)
    for step in solver.inference_steps:
        with Calls() as calls:
            x = solver(x, x, step)
        if name == "Heun" and step in (1, 3, 4):  # two that correct and the last one leave nothing for later
            assert calls.counts == Counter(weighted_sum=1)
        elif step < 4:
            assert calls.counts == CALLS[name]
        else:  # the last step of some adds no noise
            assert calls.counts in (CALLS[name], CALLS[name] - NOISE)


@pytest.fixture
def without_kernels() -> Iterator[None]:
    before = native.isa, native.isa_reason
    native.use_isa("portable")
    yield
    native.use_isa(before[0])
    native.isa_reason = before[1]


# Calls of torch without kernels in the first step and in the third one, in float32; then how many more 16 bits take.
COSTS = {
    "DDIM": (2, 2, (2, 2)),
    "DDPM": (4, 4, (2, 2)),
    "DPMSolver": (4, 5, (3, 3)),
    "DPMSolver-sde": (6, 7, (3, 3)),
    "Euler": (1, 1, (2, 2)),
    "EulerAncestral": (3, 3, (2, 2)),
    "Heun": (2, 2, (2, 2)),
    "LCMSolver": (4, 4, (2, 2)),
    "UniPC": (5, 7, (2, 1)),
}


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("narrow", [False, True])
def test_without_kernels_a_step_is_a_few_calls(name: str, make: Callable[..., Solver], narrow: bool) -> None:
    dtype = torch.bfloat16 if narrow else torch.float32
    solver, x = make(5, dtype=dtype), latents().to(dtype)
    counts: list[int] = []
    for step in range(3):
        with Calls() as calls:
            x = solver(x, x, step)
        counts.append(calls.counts.total())
    first, third, more = COSTS[name]
    assert (counts[0], counts[2]) == (first + more[0] * narrow, third + more[1] * narrow)


def test_a_step_reads_nothing_back(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver = make(5, device="meta", dtype=dtype)  # tensors without values: to read one raises
    noise, image = (latents(seed=seed).to("meta", dtype) for seed in (0, 1))
    x = solver.initial_latents(noise, image)
    for step in solver.inference_steps:
        assert solver.predict_data(x, noise, step).dtype == solver.predict_noise(x, noise, step).dtype == dtype
        x = solver(x, solver.scale_model_input(x, step), step)
        assert (x.device.type, x.dtype, x.shape) == ("meta", dtype, noise.shape)


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_a_step_does_not_wait_for_the_device(make: Callable[..., Solver], dtype: torch.dtype) -> None:
    solver = make(5, device="cuda", dtype=dtype)
    x, noise = (latents(seed=seed).to("cuda", dtype) for seed in (0, 1))
    generator = generators(1, 2, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        x = solver.initial_latents(noise, x)
        for step in solver.inference_steps:
            timestep = solver.timesteps[step]
            x = solver(x, solver.scale_model_input(x, step), step, generator=generator)
            assert timestep.device == x.device
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert x.isfinite().all()
    assert solver.add_noise(x, noise, [0, 3]).device == x.device
