"""Steps written again plainly, where there is nothing else to compare with, and what single solvers have."""

import math
from itertools import pairwise
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
    EulerAncestral,
    Heun,
    ModelPredictionType,
    NoiseSchedule,
    SolverParams,
    TimestepSpacing,
    UniPC,
)

SAMPLE = SolverParams(model_prediction_type=ModelPredictionType.SAMPLE)


def latents(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(x: Tensor, step: int) -> Tensor:
    return torch.sin(3 * x + step)


@pytest.mark.parametrize("spacing", ["linspace", "linspace_rounded", "trailing", "trailing_rounded"])
@pytest.mark.parametrize("steps", [1, 3, 7, 30])
def test_ddim_steps_to_the_timestep_that_the_model_is_told_next(steps: int, spacing: str) -> None:
    params = SolverParams(timesteps_spacing=TimestepSpacing(spacing), timesteps_offset=0)
    solver = DDIM(steps, params=params, dtype=torch.float64)
    x, (low, weight) = latents(), (solver.timesteps.long(), solver.timesteps.double() % 1)
    table = torch.cat([solver.cumulative_scale_factors, solver.cumulative_scale_factors[-1:]])
    a = torch.cat([table[low] * (1 - weight) + table[low + 1] * weight, table[:1]])  # and timestep 0 at the end
    s = (1 - a**2).sqrt()
    for step in solver.inference_steps:
        noise = model(x, step)
        expected = a[step + 1] * (x - s[step] * noise) / a[step] + s[step + 1] * noise
        x = solver(x, noise, step)
        assert_close(x, expected)


def test_ddpm_ends_at_the_image() -> None:
    solver, x = DDPM(4, params=SolverParams(timesteps_spacing=TimestepSpacing.TRAILING), dtype=torch.float64), latents()
    assert_close(solver(x, model(x, 3), 3), solver.predict_data(x, model(x, 3), 3))


def test_ddpm_draws_from_the_posterior() -> None:
    solver, x = DDPM(1000, dtype=torch.float64), latents()
    x0, (t, u) = latents(1), (600, 599)
    a, b = solver.cumulative_scale_factors[t] ** 2, solver.cumulative_scale_factors[u] ** 2
    beta = 1 - solver.scale_factors[t]
    noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
    mean = b.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - b) / (1 - a) * x  # equation 7
    deviation = ((1 - b) / (1 - a) * beta).sqrt()
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = solver(x, noise, 1000 - 1 - t, generator=torch.Generator().manual_seed(3))
    assert_close(result, mean + deviation * drawn)


def test_euler_ancestral_from_predicted_samples() -> None:
    solver, x = EulerAncestral(5, params=SAMPLE, dtype=torch.float64), 10 * latents()
    sigmas = solver.sigmas
    for step in range(5):
        x0 = model(x, step)
        up = sigmas[step + 1] * (1 - (sigmas[step + 1] / sigmas[step]) ** 2).sqrt()
        down = (sigmas[step + 1] ** 2 - up**2).sqrt()
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        expected = x0 + down / sigmas[step] * (x - x0) + up * drawn
        x = solver(x, x0, step, generator=torch.Generator().manual_seed(step))
        assert_close(x, expected)
    assert_close(x, x0)  # the last step adds no noise


@pytest.mark.parametrize("cls", [Euler, EulerAncestral, Heun])
@pytest.mark.parametrize("sigmas", NoiseSchedule)
def test_sigma_schedules_keep_the_ends_of_the_timesteps(cls: type[Any], sigmas: NoiseSchedule) -> None:
    spacing = TimestepSpacing.LEADING
    solver = cls(15, params=SolverParams(sigma_schedule=sigmas, timesteps_spacing=spacing), dtype=torch.float64)
    plain = cls(15, params=SolverParams(timesteps_spacing=spacing), dtype=torch.float64)
    assert_close(solver.sigmas[[0, -2, -1]], plain.sigmas[[0, -2, -1]])
    assert_close(solver.timesteps[[0, -1]], plain.timesteps[[0, -1]].float())
    levels = solver.sigmas[:-1].unique().flip(0)
    power = {"uniform": 1, "quadratic": 2, "karras": 7}.get(sigmas.value)
    spaced = (levels ** (1 / power) if power else levels.log()).diff()
    assert_close(spaced, spaced[:1].expand(len(spaced)))


# Heun


def test_heun_counts_calls_of_the_model() -> None:
    odd, even = Heun(7, dtype=torch.float64), Heun(8, dtype=torch.float64)
    assert odd.timesteps.tolist() == [999, 666, 666, 333, 333, 0, 0]
    assert even.timesteps.tolist() == [999, 749.25, 499.5, 499.5, 249.75, 249.75, 0, 0]
    assert odd.sigmas.shape == (8,) and even.sigmas.shape == (9,)
    assert Heun(1).timesteps.tolist() == [0] and Heun(2).timesteps.tolist() == [999, 0]


@pytest.mark.parametrize("calls", [3, 4, 7, 8])
@pytest.mark.parametrize("prediction", ModelPredictionType)
def test_heun_follows_the_mean_of_the_ends(calls: int, prediction: ModelPredictionType) -> None:
    solver = Heun(calls, params=SolverParams(model_prediction_type=prediction), dtype=torch.float64)
    levels = solver.sigmas.unique().flip(0)
    x = 10 * latents()
    expected, y, step = x, x, 0

    def derivative(at: Tensor, step: int) -> Tensor:
        return solver.predict_noise(at, model(at, step), step)

    for stretch, (sigma, target) in enumerate(pairwise(levels)):
        slope = derivative(expected, step)
        landing = expected + (target - sigma) * slope
        y = solver(y, model(y, step), step)
        assert_close(y, landing)
        step += 1
        if target == 0 or (calls % 2 == 0 and stretch == 0):
            expected = landing
            continue
        expected = expected + (target - sigma) * (slope + derivative(landing, step)) / 2
        y = solver(y, model(y, step), step)
        assert_close(y, expected)
        step += 1
    assert step == calls


def test_heun_corrects_nothing_without_a_beginning() -> None:
    x = latents()
    solver = Heun(7, first_inference_step=1)
    assert torch.equal(solver(x, model(x, 1), 1), x)
    solver = Heun(7)
    y = solver(x, model(x, 0), 0)
    solver.reset()
    assert torch.equal(solver(y, model(y, 1), 1), y)
    solver(x, model(x, 0), 0)
    assert torch.equal(solver(y, model(y, 3), 3), y)  # the stretch before is another one


# Multistep solvers


def test_dpm_remembers_two_estimates() -> None:
    solver, x = DPMSolver(5, dtype=torch.float64), latents()
    assert len(solver.estimated_data) == 0 and solver.estimated_data.maxlen == 2
    for step in range(3):
        data = solver.predict_data(x, model(x, step), step)
        x = solver(x, model(x, step), step)
        assert_close(solver.estimated_data[-1], data)
        assert len(solver.estimated_data) == min(step + 1, 2)
    solver.reset()
    assert len(solver.estimated_data) == 0
    solver(x, x, 0)
    assert len(solver.estimated_data) == 1


def test_dpm_remembers_in_float32() -> None:
    solver, x = DPMSolver(5), latents().bfloat16()
    solver(x, x, 0)
    assert solver.estimated_data[0].dtype == torch.float32
    solver.to(dtype=torch.bfloat16)
    assert solver.estimated_data[0].dtype == torch.float32 and solver.estimated_data.maxlen == 2


@pytest.mark.parametrize("sde", [False, True])
def test_updates_of_dpm(sde: bool) -> None:
    solver, x = DPMSolver(5, params=SolverParams(sde_variance=float(sde)), dtype=torch.float64), latents()
    a, s, ratios = solver.cumulative_scale_factors, solver.noise_std, solver.signal_to_noise_ratios
    x = solver(x, model(x, 0), 0, generator=torch.Generator().manual_seed(0))
    data, noise = solver.predict_data(x, model(x, 1), 1), latents(5)
    previous, h = solver.estimated_data[-1], ratios[2] - ratios[1]
    change = 1 - torch.exp(-2 * h if sde else -h)
    base = s[2] / s[1] * x * (torch.exp(-h) if sde else 1)
    more = s[2] * change.sqrt() * noise if sde else 0
    given = noise if sde else None
    first = solver.dpm_solver_first_order_update(x, data, 1, sde_noise=given)
    assert_close(first, base + a[2] * change * data + more)
    slope = (data - previous) * h / (ratios[1] - ratios[0])
    solver.estimated_data.append(data)
    second = solver.multistep_dpm_solver_second_order_update(x, 1, sde_noise=given)
    assert_close(second, base + a[2] * change * (data + slope / 2) + more)


def test_the_second_order_needs_two_estimates() -> None:
    with pytest.raises(AssertionError, match="the second order needs two estimates, got 0"):
        DPMSolver(5).multistep_dpm_solver_second_order_update(latents(), 1)


@pytest.mark.parametrize("cls", [DPMSolver, UniPC])
def test_a_run_may_begin_anywhere(cls: type[Any]) -> None:
    solver, x = cls(6), latents().float()
    later = cls(6, first_inference_step=3)
    solver(x, x, 0)  # a step, then a gap
    for step in (3, 4, 5):
        expected = later(x, model(x, step), step)
        x = solver(x, model(x, step), step)
        assert torch.equal(x, expected)


@pytest.mark.parametrize("cls", [DPMSolver, UniPC])
@pytest.mark.parametrize("sigmas", [None, *NoiseSchedule])
def test_levels_that_are_the_same_do_no_harm(cls: type[Any], sigmas: NoiseSchedule | None) -> None:
    spacing = TimestepSpacing.LEADING  # ends at timestep 0, and so does the last step
    solver = cls(5, params=SolverParams(sigma_schedule=sigmas, timesteps_spacing=spacing), dtype=torch.float64)
    x = latents()
    for step in range(5):
        before, x = x, solver(x, model(x, step), step)
        assert x.isfinite().all()
    if cls is DPMSolver:
        assert_close(x, before)  # of UniPC the last call still corrects


@pytest.mark.parametrize("cls", [DPMSolver, UniPC])
def test_all_timesteps_of_training(cls: type[Any]) -> None:
    solver, x = cls(1000, dtype=torch.float64), latents()  # one of the rounded timesteps stands twice
    for step in solver.inference_steps:
        x = solver(x, model(x, step), step)
    assert x.isfinite().all()


def test_the_order_of_unipc_is_checked() -> None:
    with pytest.raises(ValueError, match="order must be 1, 2 or 3, got 4"):
        UniPC(5, order=4)


def error_on_gaussian_images(solver: Any) -> float:
    """Sample where the answer is known: for images of variance 1/4, `σ·x / (σ² + 1/4)` is the noise in `x₀ + σ·ε`.

    Both kinds of solvers run from the highest to the lowest level of training.
    """
    sigmas, is_scaled = solver.sigmas, not isinstance(solver, (Euler, Heun))
    scale = (sigmas**2 + 1).rsqrt() if is_scaled else torch.ones_like(sigmas)
    x = torch.ones(1, 1, dtype=torch.float64) * scale[0] * sigmas[0]
    last = len(sigmas) - 1 if is_scaled else len(sigmas) - 2  # the other solvers go on to 0
    for step in range(last):
        x = solver(x, sigmas[step] * (x / scale[step]) / (sigmas[step] ** 2 + 0.25), step)
    exact = sigmas[0] * ((sigmas[last] ** 2 + 0.25) / (sigmas[0] ** 2 + 0.25)).sqrt()
    return abs((x / scale[last] / exact).item() - 1)


@pytest.mark.parametrize(
    "cls,options,order",
    [
        (Euler, {}, 1),
        (Heun, {}, 2),
        (DPMSolver, {}, 2),
        (UniPC, {"order": 1}, 2),
        (UniPC, {}, 3),
        (UniPC, {"order": 3}, 4),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_errors_fall_by_the_order(cls: type[Any], options: dict[str, Any], order: int) -> None:
    params = SolverParams(sigma_schedule=NoiseSchedule.KARRAS)
    few, many = (
        error_on_gaussian_images(cls(calls, params=params, dtype=torch.float64, **options)) for calls in (81, 161)
    )
    assert math.log2(few / many) == pytest.approx(order, abs=0.15)
