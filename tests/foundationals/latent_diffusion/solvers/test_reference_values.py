"""What the historical implementation computed, but where it was wrong."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
    SolverParams,
    TimestepSpacing,
)

DATA = Path(__file__).parents[3] / "data" / "solvers" / "trajectories.json.gz"
VALUES: dict[str, dict[str, Any]] = json.loads(gzip.decompress(DATA.read_bytes()))
INPUTS = VALUES.pop("_inputs")


def with_params(cls: Callable[..., Solver], steps: int, **params: Any) -> Callable[[], Solver]:
    return lambda: cls(steps, params=SolverParams(**params))


SOLVERS: dict[str, Callable[[], Solver]] = {
    "DDIM(5)": lambda: DDIM(5),
    "DDIM(30,first=10)": lambda: DDIM(30, first_inference_step=10),
    "DDIM(5,noise_schedule=KARRAS)": with_params(DDIM, 5, noise_schedule=NoiseSchedule.KARRAS),
    "DDIM(5,noise_schedule=UNIFORM)": with_params(DDIM, 5, noise_schedule=NoiseSchedule.UNIFORM),
    "DDPM(10)": lambda: DDPM(10),
    "DPMSolver(5)": lambda: DPMSolver(5),
    "DPMSolver(30)": lambda: DPMSolver(30),
    "DPMSolver(5,last_step_first_order)": lambda: DPMSolver(5, last_step_first_order=True),
    "DPMSolver(30,first=10)": lambda: DPMSolver(30, first_inference_step=10),
    "DPMSolver(5,sigma_schedule=UNIFORM)": with_params(DPMSolver, 5, sigma_schedule=NoiseSchedule.UNIFORM),
    "DPMSolver(5,sigma_schedule=QUADRATIC)": with_params(DPMSolver, 5, sigma_schedule=NoiseSchedule.QUADRATIC),
    "DPMSolver(5,sigma_schedule=KARRAS)": with_params(DPMSolver, 5, sigma_schedule=NoiseSchedule.KARRAS),
    "DPMSolver(5,timesteps_spacing=TRAILING)": with_params(DPMSolver, 5, timesteps_spacing=TimestepSpacing.TRAILING),
    "Euler(5)": lambda: Euler(5),
    "Euler(4,TRAILING)": with_params(Euler, 4, timesteps_spacing=TimestepSpacing.TRAILING),
    "Euler(1,TRAILING,SAMPLE)": with_params(
        Euler, 1, timesteps_spacing=TimestepSpacing.TRAILING, model_prediction_type=ModelPredictionType.SAMPLE
    ),
    "Euler(5,LINSPACE_ROUNDED)": with_params(Euler, 5, timesteps_spacing=TimestepSpacing.LINSPACE_ROUNDED),
    "LCMSolver(4)": lambda: LCMSolver(4),
    "LCMSolver(2,num_orig_steps=100)": lambda: LCMSolver(2, num_orig_steps=100),
}


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(INPUTS["shape"])


X, PREDICTION, NOISE = (tensor(INPUTS[name]) for name in ("x", "predicted_noise", "noise"))


def check(actual: Tensor, expected: Any) -> None:
    expected = torch.tensor(expected, dtype=actual.dtype).reshape(actual.shape)
    assert (actual - expected).norm() < 5e-6 * expected.norm()


def test_each_value_is_used() -> None:
    assert set(VALUES) == {*SOLVERS, "base tables (quadratic, 1000 steps) at timesteps 0,1,250,500,999"}


@pytest.mark.parametrize("name", SOLVERS)
def test_timesteps_and_tables(name: str) -> None:
    solver, values = SOLVERS[name](), VALUES[name]
    assert solver.timesteps.tolist() == values["timesteps"]
    assert str(solver.timesteps.dtype) == f"torch.{values['timesteps_dtype']}"
    tables = ["sigmas", "cumulative_scale_factors", "noise_std", "signal_to_noise_ratios", "init_noise_sigma"]
    for table in [*tables, "timestep_indices"]:
        if table in values:
            check(torch.as_tensor(getattr(solver, table), dtype=torch.float32), values[table])


@pytest.mark.parametrize("name", SOLVERS)
def test_scaling(name: str) -> None:
    solver, values = SOLVERS[name](), VALUES[name]
    first = solver.first_inference_step
    check(solver.scale_model_input(X, step=-1), values["scale_model_input(step=-1)"])
    check(solver.scale_model_input(X, step=first), values["scale_model_input(step=first)"])
    if isinstance(solver, Euler):  # whose latents are the image plus noise: the values take them for mixtures
        assert_close(solver.add_noise(X, NOISE, first), X + solver.sigmas[0] * NOISE)
        assert_close(solver.remove_noise(X, NOISE, first), X - solver.sigmas[0] * NOISE)
    else:
        check(solver.add_noise(X, NOISE, first), values["add_noise"])
        check(solver.remove_noise(X, NOISE, first), values["remove_noise"])


@pytest.mark.parametrize("name", [name for name in SOLVERS if "trajectory" in VALUES[name]])
def test_trajectory(name: str) -> None:
    solver, x = SOLVERS[name](), X
    for step, expected in zip(solver.inference_steps, VALUES[name]["trajectory"], strict=True):
        before, x = x, solver(x, PREDICTION, step)
        if isinstance(solver, DDIM) and step == solver.inference_steps[-1]:  # the values leave out the noise here
            x0 = solver.predict_data(before, PREDICTION, step)
            a, s = solver.cumulative_scale_factors[0], solver.noise_std[0]
            assert_close(x, a * x0 + s * PREDICTION)
            x = a * x0
        check(x, expected)


def test_last_step_of_a_consistency_model() -> None:
    check(LCMSolver(4)(X, PREDICTION, 3), VALUES["LCMSolver(4)"]["last step from x"])


def test_tables_of_training() -> None:
    (values,) = (values for name, values in VALUES.items() if name.startswith("base tables"))
    solver = DDIM(5)
    for name, expected in values.items():
        check(getattr(solver, name)[[0, 1, 250, 500, 999]], expected)
