"""Timesteps, tables of training, and parameters."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from torch.testing import assert_close

from refiners.foundationals.latent_diffusion.solvers import (
    DDIM,
    DDPM,
    DPMSolver,
    Euler,
    Heun,
    LCMSolver,
    ModelPredictionType,
    NoiseSchedule,
    Solver,
    SolverParams,
    TimestepSpacing,
    UniPC,
)
from refiners.foundationals.latent_diffusion.solvers.solver import ResolvedSolverParams

INTEGER_SPACINGS = [
    TimestepSpacing.LINSPACE_ROUNDED,
    TimestepSpacing.LEADING,
    TimestepSpacing.TRAILING,
    TimestepSpacing.TRAILING_ROUNDED,
]


@pytest.mark.parametrize(
    "spacing,expected",
    [
        (TimestepSpacing.LINSPACE, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        (TimestepSpacing.LINSPACE_ROUNDED, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        (TimestepSpacing.LEADING, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        (TimestepSpacing.TRAILING, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
        (TimestepSpacing.TRAILING_ROUNDED, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
    ],
)
def test_ten_timesteps(spacing: TimestepSpacing, expected: list[int]) -> None:
    timesteps = Solver.generate_timesteps(spacing, num_inference_steps=10, num_train_timesteps=1000, offset=1)
    assert timesteps.dtype == (torch.float32 if spacing == TimestepSpacing.LINSPACE else torch.int64)
    assert timesteps.tolist() == expected


@pytest.mark.parametrize("spacing", [TimestepSpacing.LINSPACE, *INTEGER_SPACINGS])
def test_timesteps_descend_for_every_count(spacing: TimestepSpacing) -> None:
    for count in range(1, 1001):
        timesteps = Solver.generate_timesteps(spacing, count)
        assert timesteps.shape == (count,)
        assert (timesteps.diff() < 0).all()
        assert timesteps.min() >= 0 and timesteps.max() <= 999


@pytest.mark.parametrize("spacing", ["linspace_rounded", "leading"])
def test_timesteps_are_those_of_diffusers_for_every_count(spacing: str) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing.removesuffix("_rounded"))
    for count in range(1, 1001):
        scheduler.set_timesteps(count)
        assert torch.equal(Solver.generate_timesteps(TimestepSpacing(spacing), count), scheduler.timesteps), count


def test_trailing_is_rounded_for_every_count() -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for count in range(1, 1001):
        exact = [Fraction(1000 * (count - step), count) for step in range(count)]
        timesteps = Solver.generate_timesteps(TimestepSpacing.TRAILING_ROUNDED, count)
        assert timesteps.tolist() == [round(value) - 1 for value in exact]  # half to even, as table 2 of the paper
        scheduler.set_timesteps(count)  # it rounds halves as its sums happen to fall, and may append a -1
        is_half = torch.tensor([value.denominator == 2 for value in exact])
        assert torch.equal(timesteps[~is_half], scheduler.timesteps[:count][~is_half])


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # in diffusers
def test_linspace_is_that_of_diffusers_for_every_count() -> None:
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace")
    for count in range(1, 1001):
        scheduler.set_timesteps(count)
        assert torch.equal(Solver.generate_timesteps(TimestepSpacing.LINSPACE, count), scheduler.timesteps), count


def test_trailing_goes_down_by_the_quotient() -> None:
    assert Solver.generate_timesteps(TimestepSpacing.TRAILING, 7).tolist() == [999 - 142 * k for k in range(7)]
    assert Solver.generate_timesteps(TimestepSpacing.TRAILING_ROUNDED, 7).tolist() == [
        999,
        856,
        713,
        570,
        428,
        285,
        142,
    ]


def test_custom_timesteps_are_made_by_the_solver() -> None:
    with pytest.raises(RuntimeError, match="CUSTOM"):
        Solver.generate_timesteps(TimestepSpacing.CUSTOM, 10)
    with pytest.raises(RuntimeError, match="CUSTOM"):
        DDIM(10, params=SolverParams(timesteps_spacing=TimestepSpacing.CUSTOM))


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_the_count_of_timesteps_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"num_inference_steps must be from 1 to 1000, got {count}"):
        Solver.generate_timesteps(TimestepSpacing.LEADING, count)
    for cls in (DDIM, DPMSolver):
        with pytest.raises(ValueError, match="num_inference_steps"):
            cls(count)


def test_a_timestep_beyond_the_last_has_its_noise() -> None:
    solver = DDIM(1000)  # with the offset 1 of this solver
    assert solver.timesteps[0] == 1000 and solver.timesteps[-1] == 1
    x, noise = torch.randn(2, 1, 3)
    expected = solver.cumulative_scale_factors[999] * x + solver.noise_std[999] * noise
    assert_close(solver.add_noise(x, noise, 0), expected)
    assert_close(solver.add_noise(x, noise, 1), expected)
    assert solver(x, noise, 0).isfinite().all()


# Tables of training


@pytest.mark.parametrize("schedule", NoiseSchedule)
def test_the_ends_of_the_noise_schedule_are_exact(schedule: NoiseSchedule, device: torch.device) -> None:
    solver = DDIM(10, params=SolverParams(noise_schedule=schedule), device=device)
    assert len(solver.scale_factors) == 1000
    assert solver.scale_factors[0] == 1 - solver.params.initial_diffusion_rate
    assert solver.scale_factors[-1] == 1 - solver.params.final_diffusion_rate
    assert (solver.scale_factors.diff() < 0).all()
    in_full = solver.sample_noise_schedule()
    assert in_full[0].item() == 1 - 8.5e-4 and in_full[-1].item() == 1 - 1.2e-2


def test_powers_of_the_noise_schedule() -> None:
    solver = DDIM(10, dtype=torch.float64)
    assert_close(1 - solver.sample_power_distribution(), solver.sample_noise_schedule())
    assert_close(
        solver.sample_power_distribution(2).sqrt().diff(),
        torch.full([999], (0.012**0.5 - 0.00085**0.5) / 999, dtype=torch.float64),
    )
    karras = DDIM(10, params=SolverParams(noise_schedule=NoiseSchedule.KARRAS), dtype=torch.float64)
    assert_close(1 - solver.sample_power_distribution(7), karras.sample_noise_schedule())
    geometric = DDIM(10, params=SolverParams(noise_schedule=NoiseSchedule.EXPONENTIAL), dtype=torch.float64)
    ratios = (1 - geometric.sample_noise_schedule()).log().diff()
    assert_close(ratios, ratios[:1].expand(999))


@pytest.mark.parametrize("schedule,theirs", [("uniform", "linear"), ("quadratic", "scaled_linear")])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables_are_those_of_diffusers_in_more_digits(schedule: str, theirs: str, zero_snr: bool) -> None:
    scheduler = DDIMScheduler(beta_schedule=theirs, beta_start=8.5e-4, beta_end=1.2e-2, rescale_betas_zero_snr=zero_snr)
    params = SolverParams(
        noise_schedule=NoiseSchedule(schedule),
        rescale_zero_terminal_snr=zero_snr,
        model_prediction_type=ModelPredictionType.VELOCITY,
    )
    solver = DDIM(10, params=params)
    assert_close(solver.cumulative_scale_factors**2, scheduler.alphas_cumprod, rtol=2e-6, atol=1e-7)
    assert_close(solver.scale_factors[:-1], scheduler.alphas[:-1], rtol=0, atol=1e-4 if zero_snr else 1e-7)


def test_tables_are_those_of_the_consistency_scheduler() -> None:
    scheduler, solver = LCMScheduler(), LCMSolver(4)
    assert_close(solver.cumulative_scale_factors, scheduler.alphas_cumprod.sqrt())
    assert_close(solver.noise_std, (1 - scheduler.alphas_cumprod).sqrt(), rtol=2e-5, atol=0)  # theirs cancels


def test_tables_belong_together() -> None:
    solver = DDIM(10, dtype=torch.float64)
    a, s = solver.cumulative_scale_factors, solver.noise_std
    assert_close(a**2, solver.scale_factors.cumprod(0))
    assert_close(a**2 + s**2, torch.ones(1000, dtype=torch.float64))
    assert_close(solver.signal_to_noise_ratios, a.log() - s.log())


def test_zero_terminal_snr_leaves_no_signal() -> None:
    params = SolverParams(rescale_zero_terminal_snr=True, model_prediction_type=ModelPredictionType.VELOCITY)
    plain, rescaled = DDIM(10, dtype=torch.float64), DDIM(10, params=params, dtype=torch.float64)
    a, b = plain.cumulative_scale_factors, rescaled.cumulative_scale_factors
    assert b[0] == a[0] and b[-1] == 0 and rescaled.noise_std[-1] == 1
    assert (b.diff() < 0).all()
    assert_close(b, (a - a[-1]) * a[0] / (a[0] - a[-1]))  # algorithm 1 of arXiv:2305.08891
    assert_close(b**2, rescaled.scale_factors.cumprod(0))
    assert rescaled.signal_to_noise_ratios[-1] == -np.inf


@pytest.mark.parametrize("cls", [Euler, Heun, DPMSolver, UniPC])
def test_levels_are_finite_without_signal(cls: type[Any]) -> None:
    params = SolverParams(
        rescale_zero_terminal_snr=True,
        model_prediction_type=ModelPredictionType.VELOCITY,
        timesteps_spacing=TimestepSpacing.TRAILING,
    )
    solver = cls(5, params=params, dtype=torch.float64)
    assert solver.timesteps[0] == 999
    assert solver.sigmas[0].item() == pytest.approx((2**24 - 1) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("cls", [DDIM, DDPM, LCMSolver])
def test_noise_is_not_predicted_without_signal(cls: type[Any]) -> None:
    params = SolverParams(rescale_zero_terminal_snr=True, timesteps_spacing=TimestepSpacing.TRAILING)
    with pytest.raises(ValueError, match="model_prediction_type must be VELOCITY or SAMPLE, got NOISE"):
        cls(4, params=params)


@pytest.mark.parametrize("cls", [DPMSolver, UniPC])
@pytest.mark.parametrize("schedule,power", [("uniform", 1), ("quadratic", 2), ("karras", 7)])
def test_sigma_schedules_span_the_range_of_training(cls: type[Any], schedule: str, power: int) -> None:
    solver = cls(9, params=SolverParams(sigma_schedule=NoiseSchedule(schedule)), dtype=torch.float64)
    table = DDIM(1, dtype=torch.float64)
    levels = table.noise_std / table.cumulative_scale_factors
    assert_close(solver.sigmas[[0, -2, -1]], levels[[-1, 0, 0]])
    roots = (solver.sigmas[:-1] ** (1 / power)).diff()
    assert_close(roots, roots[:1].expand(8))


def test_one_level_of_a_sigma_schedule_is_the_highest() -> None:
    assert DPMSolver(1, params=SolverParams(sigma_schedule=NoiseSchedule.KARRAS)).timesteps.tolist() == [999]


# Parameters


def test_parameters_are_resolved() -> None:
    given = SolverParams(timesteps_offset=0, noise_schedule=NoiseSchedule.UNIFORM)
    params = DDIM(5, params=given).params
    assert isinstance(params, ResolvedSolverParams)
    assert params.timesteps_offset == 0 and params.noise_schedule == NoiseSchedule.UNIFORM
    assert params.timesteps_spacing == TimestepSpacing.LEADING  # of the class
    assert params.sigma_schedule is None
    assert DDIM(5).params == DDIM.default_params
    assert Euler(5).params.timesteps_spacing == TimestepSpacing.LINSPACE
    assert DPMSolver(5).params.timesteps_spacing == TimestepSpacing.CUSTOM


def test_values_of_enumerations_are_accepted() -> None:
    assert SolverParams(timesteps_spacing="leading").timesteps_spacing is TimestepSpacing.LEADING  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values,message",
    [
        ({"num_train_timesteps": 1}, "num_train_timesteps must be at least 2, got 1"),
        ({"timesteps_offset": -1}, "timesteps_offset must be at least 0, got -1"),
        ({"initial_diffusion_rate": 0.0}, "initial_diffusion_rate must be between 0 and 1, got 0.0"),
        ({"final_diffusion_rate": 1.0}, "final_diffusion_rate must be between 0 and 1, got 1.0"),
        ({"sde_variance": -1.0}, "sde_variance must not be negative, got -1.0"),
        ({"sigma_schedule": "cubic"}, "sigma_schedule must be one of .*'karras'.* got 'cubic'"),
    ],
)
def test_parameters_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolverParams(**values)


def test_integers_are_integers() -> None:
    with pytest.raises(TypeError, match="num_train_timesteps must be an integer, got 1000.0"):
        SolverParams(num_train_timesteps=1000.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [DDIM, DDPM, Euler, Heun, UniPC, LCMSolver])
def test_unsupported_noise_is_refused(cls: type[Any]) -> None:
    with pytest.raises(NotImplementedError, match=f"sde_variance of {cls.__name__}"):
        cls(4, params=SolverParams(sde_variance=1.0))


def test_dpm_has_all_noise_or_none() -> None:
    with pytest.raises(NotImplementedError, match="sde_variance of DPMSolver"):
        DPMSolver(4, params=SolverParams(sde_variance=0.5))


@pytest.mark.parametrize("cls", [DDIM, DDPM, LCMSolver])
def test_unsupported_sigma_schedules_are_refused(cls: type[Any]) -> None:
    with pytest.raises(NotImplementedError, match=f"{cls.__name__} has no sigma_schedule"):
        cls(4, params=SolverParams(sigma_schedule=NoiseSchedule.KARRAS))
