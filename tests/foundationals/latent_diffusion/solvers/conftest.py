"""A cheap model, and the schedulers of diffusers in float64 to compare with."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    EulerAncestral,
    Heun,
    LCMSolver,
    Solver,
    SolverParams,
    UniPC,
)

PREDICTIONS = {"noise": "epsilon", "sample": "sample", "velocity": "v_prediction"}
RATES = {"beta_start": 8.5e-4, "beta_end": 1.2e-2}
SPACINGS = {
    "linspace": "linspace",
    "linspace_rounded": "linspace",
    "leading": "leading",
    "trailing_rounded": "trailing",
    "custom": "linspace",
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


MIX = normal(24, 24, seed=1) / 24**0.5


def model(x: Tensor, timestep: Tensor) -> Tensor:
    """A smooth function of latents of shape (batch, 4, 3, 2) and of the timestep."""
    return torch.tanh(x.flatten(1) @ MIX.T + timestep.double() / 500 - 1).reshape(x.shape)


def alphas_cumprod(noise_schedule: str, zero_snr: bool) -> Tensor:
    """The table of training, written again plainly, in float64."""
    r0, r1 = RATES.values()
    betas = np.linspace(r0, r1, 1000) if noise_schedule == "uniform" else np.linspace(r0**0.5, r1**0.5, 1000) ** 2
    table = np.cumprod(1 - betas)
    if zero_snr:
        root = table**0.5
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return torch.from_numpy(table)


def make_scheduler(cls: type, params: dict[str, Any], levels_are_finite: bool, **options: Any) -> Any:
    """Make a scheduler of diffusers by the parameters of a solver, with its table in float64."""
    schedule, zero_snr = params.get("noise_schedule", "quadratic"), params.get("rescale_zero_terminal_snr", False)
    sigmas = params.get("sigma_schedule")
    options = {
        **RATES,
        "beta_schedule": {"uniform": "linear", "quadratic": "scaled_linear"}[schedule],
        "prediction_type": PREDICTIONS[params.get("model_prediction_type", "noise")],
        "timestep_spacing": SPACINGS[params["timesteps_spacing"]],
        "steps_offset": params.get("timesteps_offset", 0),
        "use_karras_sigmas": sigmas == "karras",
        "use_exponential_sigmas": sigmas == "exponential",
        **options,
    }
    known = inspect.signature(cls).parameters
    scheduler = cls(**{name: value for name, value in options.items() if name in known})
    table = alphas_cumprod(schedule, zero_snr)
    if zero_snr and levels_are_finite:
        table[-1] = 2.0**-24  # as these schedulers do
    scheduler.alphas_cumprod = table
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = table[0]
    return scheduler


def sample(solver: Solver, x: Tensor, generator: Any = None) -> list[Tensor]:
    """Run a solver and list the latents after each step."""
    trajectory: list[Tensor] = []
    for step in solver.inference_steps:
        prediction = model(solver.scale_model_input(x, step), solver.timesteps[step])
        x = solver(x, prediction, step, generator=generator)
        trajectory.append(x)
    return trajectory


def sample_with_scheduler(scheduler: Any, solver: Solver, x: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Run a scheduler on the steps of a solver, which tells the model the timesteps."""
    is_sde = str(scheduler.config.get("algorithm_type")).startswith("sde")
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": generator} if takes_generator else {}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(solver.first_inference_step)
    trajectory: list[Tensor] = []
    for step in solver.inference_steps:
        timestep = scheduler.timesteps[step]
        if is_sde:  # what it draws itself is float32
            options = {"variance_noise": torch.randn(x.shape, generator=generator, dtype=x.dtype)}
        prediction = model(scheduler.scale_model_input(x, timestep), solver.timesteps[step])
        x = scheduler.step(prediction, timestep, x, **options).prev_sample
        trajectory.append(x)
    return trajectory


def check_trajectory(solver: Solver, scheduler: Any, timesteps: str = "equal") -> float:
    """Assert that a solver (in float64) and a scheduler agree in timesteps, levels and latents; give the error."""
    ours, theirs = solver.timesteps.double(), scheduler.timesteps.double()
    assert ours.shape == theirs.shape
    if timesteps == "equal":
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # float32
    else:
        assert timesteps == "truncated"  # those of an exponential schedule are not rounded by diffusers
        assert ((ours - theirs == 0) | (ours - theirs == 1)).all()
    if hasattr(solver, "sigmas"):
        torch.testing.assert_close(solver.sigmas, scheduler.sigmas.double(), rtol=1e-7, atol=0)  # float32 again
        scheduler.sigmas = solver.sigmas
    noise, image = normal(2, 4, 3, 2, seed=2), normal(2, 4, 3, 2, seed=3)
    x = solver.initial_latents(noise, image if solver.first_inference_step else None)
    expected = sample_with_scheduler(scheduler, solver, x, seeded(4))
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(sample(solver, x, seeded(4)), expected, strict=True)]
    assert max(errors) < 1e-5
    return max(errors)


@pytest.fixture
def compare() -> Callable[..., float]:
    return check_trajectory


@pytest.fixture
def scheduler_of() -> Callable[..., Any]:
    return make_scheduler


def sde(*args: Any, **kwargs: Any) -> DPMSolver:
    return DPMSolver(*args, **{"params": SolverParams(sde_variance=1.0), **kwargs})


SOLVERS: dict[str, Callable[..., Any]] = {
    "DDIM": DDIM,
    "DDPM": DDPM,
    "DPMSolver": DPMSolver,
    "DPMSolver-sde": sde,
    "Euler": Euler,
    "EulerAncestral": EulerAncestral,
    "Heun": Heun,
    "LCMSolver": LCMSolver,
    "UniPC": UniPC,
}


@pytest.fixture(params=SOLVERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each solver, one test each."""
    return request.param


@pytest.fixture
def make(name: str) -> Callable[..., Solver]:
    return SOLVERS[name]
